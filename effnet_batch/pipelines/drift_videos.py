"""What `drift` needs of videos: a few of them, through a job's own work, in this process."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from effnet_batch.models.engine import EngineChoice
from effnet_batch.models.engine_base import Frames
from effnet_batch.models.sequence import Embeddings
from effnet_batch.pipelines.drift import check_finite, golden_items
from effnet_batch.pipelines.open_videos import video_opener
from effnet_batch.pipelines.run import storage_options
from effnet_batch.pipelines.video_workers import VideoTask, load_face_model
from effnet_batch.schema import KIND_VIDEO, STATUS_OK
from effnet_batch.stages.encode import Encoder
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item
from effnet_batch.stages.show import Viewing
from effnet_batch.stages.video import OpenVideo, VideoHere

_Task = TypeVar("_Task", bound=VideoTask)


class EncoderKeeper:
    """Passes frames on to an encoder and keeps what comes back.

    Args:
        encoder: of one model.
        precision: that it runs.
    """

    def __init__(self, encoder: Encoder, precision: str) -> None:
        self._encoder = encoder
        self.precision = precision
        self._kept: list[Embeddings] = []
        self.embedding_dim = encoder.embedding_dim
        self.batch_size = encoder.batch_size

    def encode(self, frames: Frames, clock: StageClock) -> Future[Embeddings]:
        """Encodes as the encoder does.

        Raises:
            JobError: what comes back are no numbers, which no judge of them would take.
        """
        future = self._encoder.encode(frames, clock)
        check_finite(future.result(), self.precision)
        self._kept.append(future.result())
        return future

    def take(self) -> Embeddings:
        """Returns float32 [N, D], of all frames since it was asked last, in order."""
        kept, self._kept = self._kept, []
        return np.concatenate([np.empty((0, self.embedding_dim), np.float32), *kept])


def golden_task(task_type: type[_Task], config: Any, resolved: Any, choice: EngineChoice) -> _Task:
    """Returns the task of a worker that decodes beside the model, with another engine."""
    return task_type(
        config=config,
        storage=storage_options(config),
        output="",
        run_id="",
        resolved=dataclasses.replace(resolved, engine=choice),
        num_lanes=1,
        rows_per_part=1,
        is_split=False,
    )


def golden_rows(
    task: VideoTask,
    sources: pa.Table,
    viewings: tuple[Viewing, ...],
    keepers: Sequence[EncoderKeeper],
    work: Callable[[Item, OpenVideo, StageClock], pa.Table],
) -> Iterator[tuple[dict[str, Any], Embeddings]]:
    """Yields the rows of the videos that can be read, and float32 [N, D], what was made of each.

    Args:
        task: from `golden_task`.
        sources: from `drift.golden_sources`.
        viewings: what the videos are shown as.
        keepers: the encoders that the work uses; those of narrower vectors have zeros behind them,
            which changes no cosine.
        work: a video to its row.
    """
    clock = StageClock()
    face_model = load_face_model(task.config, viewings)
    items = golden_items(
        task.config, sources, medium=KIND_VIDEO, max_bytes=task.limits.max_video_bytes
    )
    # Nobody has seen these videos yet, and one of them may kill its decoder.
    with video_opener(task.limits, is_suspect=True) as open_reader:

        @contextlib.contextmanager
        def open_here(item: Item) -> Iterator[VideoHere]:
            assert item.content is not None
            with open_reader(item.content) as reader:
                yield VideoHere(reader, face_model, clock)

        widest = max(keeper.embedding_dim for keeper in keepers)
        for item in items:
            (row,) = work(item, open_here, clock).to_pylist()
            vectors = [
                np.pad(keeper.take(), ((0, 0), (0, widest - keeper.embedding_dim)))
                for keeper in keepers
            ]
            if row["status"] == STATUS_OK:
                yield row, np.concatenate(vectors)
