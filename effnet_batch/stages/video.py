"""What the jobs on videos share: one video to one row, whatever is made of it."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from effnet_batch.errors import ModelError, NoFaceError, RecordError, TooShortError
from effnet_batch.media.tracks import Box
from effnet_batch.media.video import VideoInfo
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.look import Segment
from effnet_batch.stages.read import Item
from effnet_batch.stages.records import Stamp, record_columns
from effnet_batch.stages.show import CropFitter, Reader, Shown, Viewing, show


class ShownVideo(Protocol):
    """A video that is shown to models, from this process or from elsewhere."""

    @property
    def info(self) -> VideoInfo:
        """Size, length, codec."""
        ...

    @property
    def is_partial(self) -> bool:
        """Whether the file is cut or damaged, as far as it was looked at."""
        ...

    @property
    def decoder(self) -> str:
        """What decoded the frames that were shown."""
        ...

    def show(self, viewing: Viewing) -> Iterator[Shown]:
        """Shows the video as `show.show` does; to be called for a job's viewings in order."""
        ...


class VideoHere:
    """A video that is decoded in this process, in the thread that asks."""

    def __init__(
        self,
        reader: Reader,
        face_model: bytes | None,
        clock: StageClock,
        fitter: CropFitter | None = None,
    ) -> None:
        self._reader = reader
        self._face_model = face_model
        self._clock = clock
        self._fitter = fitter
        self.info = reader.info

    @property
    def is_partial(self) -> bool:
        """As the reader says."""
        return self._reader.is_partial

    @property
    def decoder(self) -> str:
        """As the reader says."""
        return self._reader.decoder

    def show(self, viewing: Viewing) -> Iterator[Shown]:
        """Decodes, finds faces and cuts them out."""
        return show(self._reader, viewing, self._face_model, self._clock, self._fitter)


OpenVideo = Callable[[Item], contextlib.AbstractContextManager[ShownVideo]]
"""Opens the video of an item without an error; raises RecordErrors only."""

FillRow = Callable[[ShownVideo, dict[str, Any], StageClock], None]
"""Looks at a video and puts what it finds into its row; where a RecordError ends the work, what was
known by then."""


def video_row(
    item: Item, open_video: OpenVideo, fill: FillRow, stamp: Stamp, clock: StageClock
) -> dict[str, Any]:
    """Returns a video's row: what the job made of it, or why it could make nothing.

    Args:
        item: what `read_items` yields; it is closed.
        open_video: its RecordErrors become the row's status.
        fill: adds the job's own columns.
        stamp: goes into the row.
        clock: takes the seconds of ``decode`` and ``model``.
    """
    row: dict[str, Any] = {}
    error = item.error
    if error is None:
        try:
            with contextlib.ExitStack() as stack:
                stack.callback(item.close)
                with clock.measure("decode"):
                    video = stack.enter_context(open_video(item))
                info = video.info
                row.update(
                    duration_seconds=info.duration_seconds,
                    fps=info.fps,
                    codec=info.codec,
                    width=info.width,
                    height=info.height,
                )
                try:
                    fill(video, row, clock)
                finally:
                    row.update(is_partial=video.is_partial, decoder=video.decoder)
        except RecordError as caught:
            error = caught
    return {**row, **record_columns(item, error, stamp)}


@dataclasses.dataclass
class FrameCounts:
    """Frames of a video, and faces in them, over all that was shown of it; each counted once."""

    expected: set[int] = dataclasses.field(default_factory=set)
    read: set[int] = dataclasses.field(default_factory=set)
    used: set[int] = dataclasses.field(default_factory=set)
    faces: set[tuple[int, Box]] = dataclasses.field(default_factory=set)
    is_finite: bool = True
    """Whether the models made numbers of all that they saw."""

    def add(self, segment: Segment) -> None:
        """Takes what was seen of a stretch."""
        self.expected.update(segment.expected)
        self.read.update(segment.read)
        self.used.update(shot.frame_index for shot in segment.shots)
        self.faces.update((shot.frame_index, shot.box) for shot in segment.shots if shot.box)
        self.is_finite &= all(np.isfinite(vectors).all() for vectors in segment.embeddings)

    def columns(self, *, has_faces: bool) -> dict[str, int | None]:
        """Returns the columns of counts; ``num_faces`` is null where none were looked for."""
        return {
            "num_frames_expected": len(self.expected),
            "num_frames_sampled": len(self.read),
            "num_frames_used": len(self.used),
            "num_faces": len(self.faces) if has_faces else None,
        }

    def check(self, min_frames: int, *, has_tracks: bool, precision: str) -> None:
        """Refuses a video of which too little was seen, or that no model can be shown.

        Args:
            min_frames: that are wanted.
            has_tracks: whether there is something to show every model.
            precision: that the models run.

        Raises:
            TooShortError: fewer frames than ``min_frames`` could be read.
            NoFaceError: there is nothing to show the model.
            ModelError: what a model made of it are not finite numbers.
        """
        if len(self.read) < min_frames:
            raise TooShortError(
                f"{len(self.read)} frames can be read, at least {min_frames} are wanted"
            )
        if not has_tracks:
            raise NoFaceError(f"no face in {len(self.read)} frames")
        if not self.is_finite:
            raise ModelError(f"the model's output is not finite in {precision}")
