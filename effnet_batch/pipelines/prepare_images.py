"""Preparing training on images: each is decoded once to see that it can be, and kept as it came.

Some dozens lie together in a file, so that any image is one ranged read away, wherever its source
is: in a shard, behind a URL that expires, or changed since.
"""

import dataclasses
import functools
from typing import Any, Final

import pyarrow as pa

from effnet_batch.config import FinetuneConfig
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.engine import EngineChoice
from effnet_batch.pipelines.graphs import actor_graph, run_units
from effnet_batch.pipelines.open_images import open_decoder
from effnet_batch.pipelines.pending import cut_units
from effnet_batch.pipelines.placement import Placement, resolve_placement
from effnet_batch.pipelines.progress import ProgressBoard, UnitProgress
from effnet_batch.pipelines.resolution import Resolution, library_versions, resolved_run
from effnet_batch.pipelines.run import Run, storage_options
from effnet_batch.pipelines.units import Task, part_writer, read_unit, receipt
from effnet_batch.schema import STATUS_OK, images_schema
from effnet_batch.stages.decode import Decode, decode_batch
from effnet_batch.stages.lanes import StageClock, run_lanes
from effnet_batch.stages.read import Item, OutageGuard
from effnet_batch.storage import Storage, join
from effnet_batch.training.network import load_backbone

JOB: Final = "prepare"
IMAGES_FOLDER: Final = "images"
_SCHEMA: Final = images_schema()
_IMAGES_PER_UNIT: Final = 2_000
_IMAGES_PER_FILE: Final = 64
"""Large images make fewer: a lane's batch is cut by its bytes, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedImages(Resolution):
    """What is shown of the images. Plain values; stored in run.json."""

    weights: str
    preprocessing: Preprocessing

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What determines the pictures that a model is judged on."""
        return Fingerprint({"job": JOB, "preprocessing": self.preprocessing.to_dict()})

    @property
    def model_names(self) -> str:
        """The weights that the images are for."""
        return self.weights

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ResolvedImages":
        """Rebuilds what `to_dict` returned."""
        preprocessing = dict(values["preprocessing"])
        for name in ("mean", "std"):
            preprocessing[name] = tuple(preprocessing[name])
        return cls(
            **{
                **values,
                "preprocessing": Preprocessing(**preprocessing),
                "engine": EngineChoice(**values["engine"]),
            }
        )


def prepare_images(run: Run, config: FinetuneConfig) -> ResolvedImages:
    """Works through the pending images of a run.

    Raises:
        ConfigError: wrong settings, or an output of other settings.
        ray.exceptions.RayError: a worker raised or died too often.
    """
    with resolved_run(run, config, _resolve, ResolvedImages.from_dict) as (resolved, nodes):
        if run.pending.num_rows:
            placement = resolve_placement(config.cluster, resolved.engine, nodes)
            _prepare_pending(run, config, resolved, placement)
        return resolved


def _resolve(config: FinetuneConfig) -> ResolvedImages:
    info = load_backbone(config.network, Storage(storage_options(config))).weights_info
    assert info is not None
    return ResolvedImages(
        weights=info.name,
        preprocessing=info.preprocessing,
        # Nothing is run by it here: decoding is all there is to do.
        engine=EngineChoice("none", "cpu", "fp32", 1),
        versions=library_versions(),
    )


def _prepare_pending(
    run: Run, config: FinetuneConfig, resolved: ResolvedImages, placement: Placement
) -> None:
    for pending in run.passes():
        units = list(cut_units(pending, _IMAGES_PER_UNIT, first_unit=run.num_units))
        bounded = placement.bounded(len(units))
        task = _Task(
            config=config,
            storage=run.storage.options,
            output=run.paths.root,
            run_id=run.run_id,
            resolved=resolved,
            num_lanes=bounded.num_lanes,
            rows_per_part=_IMAGES_PER_UNIT,
        )
        run.reporter.message(f"keeping images, {bounded.num_actors} actor(s)")
        run_units(run, units, actor_graph(_Worker, task, bounded))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task(Task):
    config: FinetuneConfig
    resolved: ResolvedImages


class _Worker:
    """Actor that reads, decodes, keeps and commits."""

    def __init__(self, task: _Task, board: ProgressBoard) -> None:
        self._task, self._board = task, board
        self._storage = Storage(task.storage)
        self._guard = OutageGuard()

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Does one unit; returns its receipt."""
        task, clock = self._task, StageClock()
        progress = UnitProgress(self._board, unit)
        writer = part_writer(task, self._storage, progress.unit, clock)
        with open_decoder(
            task.config,
            task.resolved.preprocessing,
            is_suspect=progress.is_suspect,
            num_lanes=task.num_lanes,
        ) as decode:
            items = read_unit(
                task,
                unit,
                self._storage,
                self._guard,
                self._board,
                max_bytes=task.config.limits.max_image_bytes,
            )
            tables = run_lanes(
                items,
                lambda batch: self._keep(batch, decode, clock),
                batch_size=_IMAGES_PER_FILE,
                num_lanes=task.num_lanes,
                num_waiting=2 * task.num_lanes,
                clock=clock,
            )
            for table in tables:
                writer.add(table)
                progress.count(table)
        writer.close()
        progress.finish()
        return receipt(writer, clock, ("read", "decode", "write"))

    def _keep(self, batch: list[Item], decode: Decode, clock: StageClock) -> pa.Table:
        """Writes a file of the images of a batch that can be decoded; returns the batch's rows."""
        task = self._task
        with clock.measure("decode"):
            size = task.resolved.preprocessing.image_size
            rows = decode_batch(batch, decode, task.stamp, size).rows
        first = f"{task.run_id}-{rows['record_id'][0].as_py()}"
        uri = join(task.output, f"{IMAGES_FOLDER}/{first}")
        data = bytearray()
        places: list[int | None] = []
        for item, status in zip(batch, rows["status"].to_pylist(), strict=True):
            if status == STATUS_OK and item.data is not None:
                places.append(len(data))
                data += item.data
            else:
                places.append(None)
        if data:
            with clock.measure("write"):
                self._storage.write(uri, bytes(data))
        columns = {
            "images_uri": pa.array(
                [None if place is None else uri for place in places], pa.string()
            ),
            "offset": pa.array(places, pa.int64()),
        }
        arrays = [columns[name] if name in columns else rows[name] for name in _SCHEMA.names]
        return pa.Table.from_arrays(arrays, schema=_SCHEMA)
