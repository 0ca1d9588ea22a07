"""What the actors of every job on videos share: units in, committed rows out.

A lane of an actor works on one video: it decodes, finds faces and runs the model. What an actor
holds at most: its models; per lane an encoded video of at most 32 MiB (larger ones lie on disk), a
decoder, a batch of the model's input and the embeddings of a segment (at most ``max_frames`` times
the faces of a frame); one video more, and what `stages.read` reads ahead; where embeddings are
stored, also a `FrameSpool` per lane and what a `PartWriter` gathers; where crops are, a `JpegSpool`
per lane and the crops themselves. Its disk holds the large ones
among the videos, twice those that are decoded in a child, and the rest of the spools.
"""

import abc
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import pyarrow as pa

from effnet_batch.config import FaceDetectionSettings, VideoLimitSettings
from effnet_batch.media.container import VideoLimits
from effnet_batch.media.faces import load_model
from effnet_batch.media.isolated_video import open_isolated_video
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import Indices
from effnet_batch.media.video import Frame, VideoReader, open_video
from effnet_batch.models.backbone import Backbone
from effnet_batch.pipelines.progress import UnitProgress
from effnet_batch.pipelines.resolution import build_chosen_engine
from effnet_batch.pipelines.units import Task, end_process, part_writer, read_unit, receipt
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.sink import num_failed
from effnet_batch.stages.encode import Encoder, OwnEncoder, SharedEncoder
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock, run_lanes
from effnet_batch.stages.read import Item, OutageGuard
from effnet_batch.stages.records import record_columns
from effnet_batch.stages.show import Reader, Viewing
from effnet_batch.stages.video import OpenVideo, VideoHere
from effnet_batch.stages.watchdog import Watchdog
from effnet_batch.storage import Storage, spool, spool_stream

_BATCHES_ON_GPU: Final = 2
"""Run at once, so that one is copied to the card while it computes another."""

OpenReader = Callable[[bytes | BinaryIO], contextlib.AbstractContextManager[Reader]]
"""Opens a video from its bytes or a file; raises RecordErrors only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTask(Task, abc.ABC):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    @property
    @abc.abstractmethod
    def limits(self) -> VideoLimitSettings:
        """What one video may cost."""


class VideoWorker(abc.ABC):
    """Actor of a fused graph: reads, decodes, runs the model and commits."""

    def __init__(self, task: VideoTask, board: Any) -> None:
        self.task = task
        self._board = board
        self._storage = Storage(task.storage)
        self._guard = OutageGuard()

    @functools.cached_property
    def _face_model(self) -> bytes | None:
        """The face detector's file, where faces are looked for.

        Raises:
            WeightsError: it cannot be had here.
        """
        if not any(viewing.view.faces for viewing in self.viewings):
            return None
        return load_model(self.task.config.group(FaceDetectionSettings).face_model)

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
        limits = task.limits
        face_model = self._face_model
        progress = UnitProgress(self._board, unit)
        writer = part_writer(task, self._storage, progress.unit, clock)
        with _opener(limits, is_suspect=progress.is_suspect) as open_reader:

            @contextlib.contextmanager
            def open_one(item: Item) -> Iterator[VideoHere]:
                assert item.content is not None
                with open_reader(item.content) as reader:
                    yield VideoHere(reader, face_model, clock)

            def work(batch: list[Item]) -> tuple[pa.Table, FrameSpool | None]:
                (item,) = batch
                frames = self._open_spool(item)
                table = self.work(item, open_one, clock, frames)
                if frames is not None and num_failed(table):
                    frames.clear()
                return table, frames

            items = read_unit(
                task,
                unit,
                self._storage,
                self._guard,
                self._board,
                max_bytes=limits.max_video_bytes,
                medium=KIND_VIDEO,
            )
            tables = run_lanes(
                items,
                work,
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
        return receipt(writer, clock)

    def _open_spool(self, item: Item) -> FrameSpool | None:
        frames = self.task.resolved.frames
        if not frames:
            return None
        float16 = any(fields["dtype"] == "float16" for fields in frames.values())
        return FrameSpool(record_columns(item, None, self.task.stamp), float16=float16)


def build_encoder(model: Backbone, preprocessing: Preprocessing, task: Task) -> Encoder:
    """Builds what runs a model for all lanes of an actor, as the run was resolved to.

    Raises:
        FingerprintError: this node runs another precision.
    """
    choice = task.resolved.engine
    if choice.device == "cpu":
        return OwnEncoder(
            build_chosen_engine(model, preprocessing, choice, num_streams=task.num_lanes)
        )
    engine = build_chosen_engine(model, preprocessing, choice, num_streams=_BATCHES_ON_GPU)
    return SharedEncoder(engine, num_runners=_BATCHES_ON_GPU)


@contextlib.contextmanager
def _opener(limits: VideoLimitSettings, *, is_suspect: bool) -> Iterator[OpenReader]:
    """Yields what opens the videos of a unit.

    A unit that did not finish on its first try may hold a video that kills or hangs its decoder;
    each is decoded in a child that can be killed, and what dies there becomes a record.
    """
    video_limits = VideoLimits(max_pixels=limits.max_pixels)
    if is_suspect:

        @contextlib.contextmanager
        def open_in_child(source: bytes | BinaryIO) -> Iterator[Reader]:
            # A copy: what may be written to by others, or is somebody's own file, is not for it.
            copy = spool([source]) if isinstance(source, bytes) else spool_stream(source)
            with (
                copy as file,
                open_isolated_video(
                    file,
                    video_limits,
                    timeout_seconds=limits.timeout_seconds,
                    memory_bytes=limits.max_decode_memory_bytes,
                ) as reader,
            ):
                yield reader

        yield open_in_child
        return
    with Watchdog(limits.timeout_seconds, end_process) as watchdog:

        @contextlib.contextmanager
        def open_watched(source: bytes | BinaryIO) -> Iterator[Reader]:
            with contextlib.ExitStack() as stack:
                with watchdog.step():
                    reader = stack.enter_context(open_video(source, video_limits, watchdog.beat))
                yield _WatchedVideo(reader, watchdog)

        yield open_watched


class _WatchedVideo:
    """A reader whose every frame must come in time."""

    def __init__(self, reader: VideoReader, watchdog: Watchdog) -> None:
        self._reader = reader
        self._watchdog = watchdog
        self.info = reader.info
        self.pts_seconds = reader.pts_seconds

    @property
    def is_partial(self) -> bool:
        """As the reader says."""
        return self._reader.is_partial

    def read(self, indices: Indices, preprocessing: Preprocessing | None) -> Iterator[Frame]:
        """Decodes the given frames under watch."""
        frames = self._reader.read(indices, preprocessing)
        while True:
            with self._watchdog.step():
                frame = next(frames, None)
            if frame is None:
                return
            yield frame
