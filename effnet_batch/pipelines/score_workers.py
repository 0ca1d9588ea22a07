"""What runs on the workers of the scoring job: units in, committed verdicts out.

A lane of an actor works on one video: it decodes, finds faces, runs the model and judges. What an
actor holds at most: its models; per lane two encoded videos, a decoder, a batch of the model's
input and the embeddings of a segment (at most ``max_frames`` times the faces of a frame); and what
`stages.read` reads ahead.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch

from effnet_batch.config import ScoreConfig
from effnet_batch.media.container import VideoLimits
from effnet_batch.media.faces import load_model
from effnet_batch.media.isolated_video import open_isolated_video
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.media.sampling import Indices
from effnet_batch.media.video import Frame, VideoReader, open_video
from effnet_batch.pipelines.progress import UnitProgress
from effnet_batch.pipelines.resolution import build_chosen_engine, check_sha256
from effnet_batch.pipelines.score_resolve import ResolvedScoring, load_checkpoints
from effnet_batch.pipelines.units import Task, end_process, part_writer, read_unit, receipt
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.stages.lanes import StageClock, run_lanes
from effnet_batch.stages.look import Reader
from effnet_batch.stages.read import Item, OutageGuard
from effnet_batch.stages.score import Member, OpenVideo, Scorer, score_item
from effnet_batch.stages.watchdog import Watchdog
from effnet_batch.storage import Storage


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreTask(Task):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    config: ScoreConfig
    resolved: ResolvedScoring


class ScoreWorker:
    """Actor of the fused graph: reads, decodes, judges and commits."""

    def __init__(self, task: ScoreTask, board: Any) -> None:
        self._task = task
        self._board = board
        self._storage = Storage(task.storage)
        self._guard = OutageGuard()
        self._scorer = build_scorer(task)

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Does one unit; returns its receipt."""
        task, clock = self._task, StageClock()
        progress = UnitProgress(self._board, unit)
        writer = part_writer(task, self._storage, progress.unit, clock)
        with _opener(task, is_suspect=progress.is_suspect) as open_one:

            def work(batch: list[Item]) -> pa.Table:
                (item,) = batch
                return score_item(item, open_one, self._scorer, task.stamp, clock)

            items = read_unit(
                task,
                unit,
                self._storage,
                self._guard,
                self._board,
                max_bytes=task.config.limits.max_video_bytes,
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
            for table in tables:
                writer.add(table)
                progress.count(table)
        writer.close()
        progress.finish()
        return receipt(writer, clock)


def build_scorer(task: ScoreTask) -> Scorer:
    """Loads the checkpoints and builds the engines that the run was resolved to.

    Raises:
        FingerprintError: the checkpoints on this node are not those of the run.
        WeightsError: the face detector's model cannot be had here.
    """
    torch.set_num_threads(1)
    resolved = task.resolved
    members = []
    for loaded, wanted in zip(load_checkpoints(task.config), resolved.checkpoints, strict=True):
        check_sha256(wanted.info.name, loaded.sha256, wanted.sha256)
        engine = build_chosen_engine(
            loaded.model.encoder,
            wanted.info.preprocessing,
            resolved.engine,
            num_streams=task.num_lanes,
        )
        members.append(
            Member(info=wanted.info, view=resolved.view(wanted), model=loaded.model, engine=engine)
        )
    wants_faces = any(member.view.faces for member in members)
    return Scorer(
        members=members,
        thresholds=resolved.thresholds,
        min_frames=resolved.min_frames,
        face_model=load_model(task.config.faces.face_model) if wants_faces else None,
    )


@contextlib.contextmanager
def _opener(task: ScoreTask, *, is_suspect: bool) -> Iterator[OpenVideo]:
    """Yields what opens the videos of a unit.

    A unit that did not finish on its first try may hold a video that kills or hangs its decoder;
    each is decoded in a child that can be killed, and what dies there becomes a record.
    """
    limits = task.config.limits
    video_limits = VideoLimits(max_pixels=limits.max_pixels)
    if is_suspect:

        def open_in_child(data: bytes) -> contextlib.AbstractContextManager[Reader]:
            return open_isolated_video(
                data,
                video_limits,
                timeout_seconds=limits.timeout_seconds,
                memory_bytes=limits.max_decode_memory_bytes,
            )

        yield open_in_child
        return
    with Watchdog(limits.timeout_seconds, end_process) as watchdog:

        @contextlib.contextmanager
        def open_watched(data: bytes) -> Iterator[Reader]:
            with contextlib.ExitStack() as stack:
                with watchdog.step():
                    reader = stack.enter_context(open_video(data, video_limits))
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
