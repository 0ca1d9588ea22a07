"""Clips on their way to a training worker: read, blended and augmented in Ray Data's tasks."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.read_api import from_blocks

from effnet_batch.capacity import num_beside
from effnet_batch.config import AugmentationSettings
from effnet_batch.storage import Storage, StorageOptions
from effnet_batch.training.augmentation import Augmentation, augment, resize_clip
from effnet_batch.training.clips import unpack
from effnet_batch.training.plan import Step, side_at
from effnet_batch.training.self_blending import self_blend
from effnet_batch.training.trainer import Batch

SAMPLES_SCHEMA: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("clip", pa.int32(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
    ]
)
"""One row per clip to train on: the file of its video (`clips.pack`), its record, its number among
the video's clips, 1 for fake."""

PIXELS_SCHEMA: Final = pa.schema(
    [
        pa.field("pixels", pa.large_binary()),
        pa.field("shape", pa.list_(pa.int32())),
        pa.field("label", pa.int32()),
        pa.field("weight", pa.float32()),
    ]
)
"""What a training worker takes: uint8 [T, S, S, 3] each as bytes and shape, images [S, S, 3]."""

WORKER_CPUS: Final = 0.25
"""What a training worker asks for: what it trains on is made ready beside it, by Ray's tasks."""
_FEED_CPUS: Final = (1.0, 0.75, 0.5, 0.25)
_CLIPS_PER_TASK: Final = 4


def feed_cpus(
    nodes: Sequence[tuple[float, float]], num_workers: int, *, gpus: float
) -> float | None:
    """Returns what a task may ask for that makes clips or images ready.

    That is a whole CPU, or on a cluster that the workers might fill what they leave of one,
    wherever they are. None if they leave nothing.

    Args:
        nodes: CPUs and GPUs of every node.
        num_workers: that train.
        gpus: of a worker.
    """
    for cpus in _FEED_CPUS:
        if num_beside(nodes, WORKER_CPUS, gpus, spare=cpus) >= num_workers:
            return cpus
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feed:
    """How samples become clips; plain values, that travel to Ray's tasks."""

    storage: StorageOptions
    augmentation: AugmentationSettings
    self_blended: float
    """Chance that a real clip becomes a fake."""
    resolutions: tuple[str, ...]
    """Sides by epoch, as `plan.side_at` takes them."""
    seed: int
    epoch: int

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Returns the clips of some rows of `SAMPLES_SCHEMA` with a column ``weight``."""
        storage = Storage(self.storage)
        chances = Augmentation.of(self.augmentation)
        rows = []
        for sample in samples.to_pylist():
            clip = unpack(storage.read(sample["uri"])).clips()[sample["clip"]]
            generator = np.random.default_rng(
                [self.seed, self.epoch, int(sample["record_id"], 16), sample["clip"]]
            )
            label = sample["label"]
            if generator.random() < self.self_blended and label == 0:
                clip, _ = self_blend(clip, generator)
                label = 1
            clip = augment(clip, chances, generator)
            if (side := side_at(self.resolutions, self.epoch)) is not None:
                clip = resize_clip(clip, side)
            rows.append(
                {
                    "pixels": clip.tobytes(),
                    "shape": list(clip.shape),
                    "label": label,
                    "weight": sample["weight"],
                }
            )
        return pa.Table.from_pylist(rows, PIXELS_SCHEMA)


def stream_batches(
    samples: pa.Table,
    steps: Sequence[Step],
    feed: Callable[[pa.Table], pa.Table],
    weights: Mapping[int, float],
    *,
    batch_size: int,
    num_cpus: float,
    per_task: int = _CLIPS_PER_TASK,
) -> Iterator[Batch]:
    """Yields a worker's batches in the order of its steps.

    Args:
        samples: all there are, with ``label``.
        steps: the worker's share of an epoch's plan; whole batches.
        feed: makes rows of `PIXELS_SCHEMA` of them.
        weights: of each label.
        batch_size: samples of a batch.
        num_cpus: that a task asks for; those that ask for none are made one after the other.
        per_task: samples that are made together; no number depends on it.
    """
    order = samples.take([step.sample for step in steps])
    counts = np.array([step.counts for step in steps])
    classes = np.array([weights[label] for label in order["label"].to_pylist()])
    order = order.append_column("weight", pa.array((counts * classes).astype(np.float32)))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    blocks = [order.slice(start, per_task) for start in range(0, len(order), per_task)]
    # `from_arrow` would ask tasks of a whole CPU each what is in them.
    made = from_blocks(blocks).map_batches(
        cast("Any", feed),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        compute=ray.data.TaskPoolStrategy(size=None if num_cpus else 1),
    )
    waiting: list[dict[str, Any]] = []
    for block in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        assert isinstance(block, pa.Table)
        waiting += block.to_pylist()
        while len(waiting) >= batch_size:
            yield _batch(waiting[:batch_size])
            del waiting[:batch_size]
    assert not waiting, "a share is whole batches"


def _batch(rows: list[dict[str, Any]]) -> Batch:
    return Batch(
        clips=[np.frombuffer(row["pixels"], np.uint8).reshape(row["shape"]).copy() for row in rows],
        labels=[row["label"] for row in rows],
        weights=[row["weight"] for row in rows],
    )
