"""What the actors of every job on videos share: units in, committed rows out.

A lane of an actor works on one video: it decodes, finds faces and runs the model. What an actor
holds at most: its models; per lane an encoded video of at most 32 MiB (larger ones lie on disk), a
decoder, a batch of the model's input and the embeddings of a segment (at most ``max_frames`` times
the faces of a frame); one video more, and what `stages.read` reads ahead; where embeddings are
stored, also a `FrameSpool` per lane and what a `PartWriter` gathers; where crops are, a `JpegSpool`
per lane and the crops themselves. Its disk holds the large ones among the videos, twice those that
are decoded in a child, and the rest of the spools.

Where videos are decoded in tasks, a lane awaits what its video's task sends (`decode_videos` says
what that holds), in two units at once. The actor then holds its models, four batches of each, and
per lane the embeddings of a segment; in the object store lie per lane `PARCELS_AHEAD` parcels. Of
shards, which it reads itself, it also holds per lane a member of at most 32 MiB, and the object
store one of any size.
"""

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from effnet_batch.config import (
    FaceDetectionSettings,
    JobConfig,
    ModelActorSettings,
    VideoLimitSettings,
)
from effnet_batch.media.card_video import CardVideos
from effnet_batch.media.faces import load_model
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.backbone import Backbone
from effnet_batch.pipelines.decode_videos import DecodeTask
from effnet_batch.pipelines.open_videos import video_opener
from effnet_batch.pipelines.progress import ProgressBoard, UnitProgress
from effnet_batch.pipelines.remote_videos import RemoteVideos
from effnet_batch.pipelines.resolution import build_chosen_engine
from effnet_batch.pipelines.units import STAGES, Task, part_writer, read_unit, receipt
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.sink import num_failed
from effnet_batch.stages.encode import Encoder, OwnEncoder, SharedEncoder
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock, run_lanes
from effnet_batch.stages.read import Item, OutageGuard, sources_from_table
from effnet_batch.stages.records import record_columns
from effnet_batch.stages.show import Viewing
from effnet_batch.stages.video import OpenVideo, VideoHere
from effnet_batch.storage import Storage

_BATCHES_ON_GPU: Final = 2
"""Run at once, so that one is copied to the card while it computes another."""


_Made = tuple[pa.Table, FrameSpool | None]
"""A video's row, and the rows of its frames where they are stored."""
_Work = Callable[[Item], _Made]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTask(Task, abc.ABC):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    is_split: bool
    """Whether videos are decoded in tasks."""

    @property
    @abc.abstractmethod
    def limits(self) -> VideoLimitSettings:
        """What one video may cost."""


class VideoWorker(abc.ABC):
    """Actor that makes rows of videos and commits them, wherever the videos are decoded."""

    def __init__(self, task: VideoTask, board: ProgressBoard) -> None:
        self.task = task
        self._board = board
        self._storage = Storage(task.storage)
        self._guard = OutageGuard()
        # The recipes were looked at when the run was resolved.
        self._card = CardVideos() if task.resolved.gpu_decode else None

    @property
    @abc.abstractmethod
    def viewings(self) -> tuple[Viewing, ...]:
        """What every video is shown as, in this order."""

    @abc.abstractmethod
    def work(
        self, item: Item, open_video: OpenVideo, clock: StageClock, frames: FrameSpool | None
    ) -> pa.Table:
        """Returns one video's row; called in the lanes' threads.

        Args:
            item: the video.
            open_video: opens it.
            clock: takes the seconds of ``decode`` and ``model``.
            frames: takes the embeddings of its frames, where `Resolution.frames` has any; they are
                dropped where the row is not ok.
        """

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Does one unit; returns its receipt."""
        task, clock = self.task, StageClock()
        progress = UnitProgress(self._board, unit)
        writer = part_writer(task, self._storage, progress.unit, clock)
        if task.is_split:
            items, working = self._unfetched(unit), self._working_remotely(clock)
        else:
            items = self._read(unit)
            working = self._working_here(clock, is_suspect=progress.is_suspect)
        with working as work:
            tables = run_lanes(
                items,
                lambda batch: work(batch[0]),
                batch_size=1,
                num_lanes=task.num_lanes,
                num_waiting=task.num_lanes,
                clock=clock,
            )
            for table, frames in tables:
                if frames is None:
                    writer.add(table)
                else:
                    writer.add(table, frames.tables())
                    frames.close()
                progress.count(table)
        writer.close()
        progress.finish()
        return receipt(writer, clock, ("model", "write") if task.is_split else STAGES)

    def _read(self, unit: pa.Table) -> Iterator[Item]:
        return read_unit(
            self.task,
            unit,
            self._storage,
            self._guard,
            self._board,
            max_bytes=self.task.limits.max_video_bytes,
            medium=KIND_VIDEO,
        )

    @contextlib.contextmanager
    def _working_here(self, clock: StageClock, *, is_suspect: bool) -> Iterator[_Work]:
        """Yields what works on a video, in the lane's own thread from first to last.

        Args:
            clock: of the unit.
            is_suspect: the unit did not finish on an earlier try.
        """
        face_model, card = self._face_model, self._card
        with video_opener(
            self.task.limits, is_suspect=is_suspect, open_on_card=card.open if card else None
        ) as open_reader:

            @contextlib.contextmanager
            def open_here(item: Item) -> Iterator[VideoHere]:
                assert item.content is not None
                with open_reader(item.content) as reader:
                    yield VideoHere(reader, face_model, clock, card)

            yield lambda item: self._make(item, open_here, clock)

    def _unfetched(self, unit: pa.Table) -> Iterator[Item]:
        """Yields plain videos without their content; only shards are read here."""
        for row, source in enumerate(sources_from_table(unit)):
            if source.kind == KIND_VIDEO:
                yield Item(source, size_bytes=source.size_bytes, num_source_records=1)
            else:
                yield from self._read(unit.slice(row, 1))

    @contextlib.contextmanager
    def _working_remotely(self, clock: StageClock) -> Iterator[_Work]:
        """Yields what works on a video that a task decodes.

        That an actor died says nothing of a video then: none is decoded in it.
        """
        videos = self._remote_videos
        yield lambda item: videos.work(
            item, lambda item, open_video: self._make(item, open_video, clock)
        )

    @functools.cached_property
    def _remote_videos(self) -> RemoteVideos:
        return RemoteVideos(
            DecodeTask(
                storage=self.task.storage,
                limits=self.task.limits,
                viewings=self.viewings,
                face_model=self.task.config.group(FaceDetectionSettings).face_model,
            ),
            self._guard,
        )

    @functools.cached_property
    def _face_model(self) -> bytes | None:
        """The face detector's file, where faces are looked for.

        Raises:
            WeightsError: it cannot be had here.
        """
        return load_face_model(self.task.config, self.viewings)

    def _make(self, item: Item, open_video: OpenVideo, clock: StageClock) -> _Made:
        frames = self._open_spool(item)
        try:
            table = self.work(item, open_video, clock, frames)
        except BaseException:
            if frames is not None:
                frames.close()
            raise
        if frames is not None and num_failed(table):
            frames.clear()
        return table, frames

    def _open_spool(self, item: Item) -> FrameSpool | None:
        frames = self.task.resolved.frames
        if not frames:
            return None
        float16 = any(fields["dtype"] == "float16" for fields in frames.values())
        return FrameSpool(record_columns(item, None, self.task.stamp), float16=float16)


def load_face_model(config: JobConfig, viewings: tuple[Viewing, ...]) -> bytes | None:
    """Returns the face detector's file, where faces are looked for.

    Raises:
        WeightsError: it cannot be had here.
    """
    if not any(viewing.view.faces for viewing in viewings):
        return None
    return load_model(config.group(FaceDetectionSettings).face_model)


def build_encoder(model: Backbone, preprocessing: Preprocessing, task: VideoTask) -> Encoder:
    """Builds what runs a model for all lanes of an actor, as the run was resolved to.

    Raises:
        FingerprintError: this node runs another precision.
    """
    choice, actors = task.resolved.engine, task.config.group(ModelActorSettings)
    if choice.device == "cpu" and not task.is_split:
        engine = build_chosen_engine(
            model, preprocessing, choice, num_streams=task.num_lanes, actors=actors
        )
        return OwnEncoder(engine)
    num_runners = (
        _BATCHES_ON_GPU if choice.device == "cuda" else max(1, int(actors.cpus_per_actor or 1))
    )
    engine = build_chosen_engine(
        model, preprocessing, choice, num_streams=num_runners, actors=actors
    )
    return SharedEncoder(engine, num_runners=num_runners)
