"""Preparing training: every video decoded once, what is shown of it kept in a file of its own."""

import dataclasses
import functools
from typing import Any, Final

import pyarrow as pa

from effnet_batch.config import FinetuneConfig, VideoLimitSettings
from effnet_batch.errors import ConfigError, NoFaceError
from effnet_batch.fingerprint import Fingerprint
from effnet_batch.media.faces import MODEL_SHA256
from effnet_batch.media.preprocess import Preprocessing
from effnet_batch.models.engine import EngineChoice
from effnet_batch.pipelines.placement import resolve_placement
from effnet_batch.pipelines.prepare_images import JOB, ResolvedImages, prepare_images
from effnet_batch.pipelines.progress import ProgressBoard, Reporter
from effnet_batch.pipelines.resolution import Resolution, library_versions, resolved_run
from effnet_batch.pipelines.run import Run, open_run, storage_options
from effnet_batch.pipelines.video_workers import VideoTask, VideoWorker
from effnet_batch.pipelines.videos import run_videos
from effnet_batch.pipelines.views import check_view, faces_with, make_view, sampling_with
from effnet_batch.schema import KIND_VIDEO, clips_schema, record_id
from effnet_batch.sink import OutputPaths
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item
from effnet_batch.stages.show import View, Viewing
from effnet_batch.stages.video import OpenVideo, ShownVideo, video_row
from effnet_batch.storage import Storage, join
from effnet_batch.training.clips import ShownClips, gather, pack
from effnet_batch.training.network import build_network

CLIPS_FOLDER: Final = "clips"

_SCHEMA: Final = clips_schema()
_PICTURES_TOGETHER: Final = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedClips(Resolution):
    """What is shown of the videos. Plain values; stored in run.json."""

    network: str
    preprocessing: Preprocessing
    sampling: dict[str, Any]
    faces: dict[str, Any]
    max_frames: int
    segment_seconds: float | None

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What determines the pictures."""
        return Fingerprint(
            {
                "job": JOB,
                "preprocessing": dataclasses.asdict(self.preprocessing),
                "sampling": self.sampling,
                "faces": self.faces,
                "face_model_sha256": MODEL_SHA256 if self.view.faces else None,
                "max_frames": self.max_frames,
                "segment_seconds": self.segment_seconds,
            }
        )

    @property
    def model_names(self) -> str:
        """The network that the clips are for."""
        return self.network

    @property
    def view(self) -> View:
        """What is shown of a video."""
        return make_view(
            self.sampling,
            self.faces,
            max_frames=self.max_frames,
            segment_seconds=self.segment_seconds,
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ResolvedClips":
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareTask(VideoTask):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    config: FinetuneConfig
    resolved: ResolvedClips

    @property
    def limits(self) -> VideoLimitSettings:
        """What one video may cost."""
        return self.config.limits.of_videos()


class PrepareWorker(VideoWorker):
    """Actor of the fused graph: reads, decodes, keeps what is shown and commits."""

    task: PrepareTask

    def __init__(self, task: PrepareTask, board: ProgressBoard) -> None:
        super().__init__(task, board)
        self._storage = Storage(task.storage)
        self._viewing = Viewing(
            task.resolved.view, (task.resolved.preprocessing,), _PICTURES_TOGETHER
        )

    @property
    def viewings(self) -> tuple[Viewing, ...]:
        """The one that is trained on."""
        return (self._viewing,)

    def work(
        self, item: Item, open_video: OpenVideo, clock: StageClock, frames: FrameSpool | None
    ) -> pa.Table:
        """Keeps what is shown of one video."""
        record = record_id(item.source.uri, item.member, item.occurrence)
        name = f"{record}-{item.source.attempt}.safetensors"
        uri = join(join(self.task.output, CLIPS_FOLDER), name)

        def keep(video: ShownVideo, row: dict[str, Any], clock: StageClock) -> None:
            stretches, pixels = gather(video.info, video.show(self._viewing))
            clips = ShownClips(video.info, video.is_partial, stretches, pixels)
            if not clips.clip_lengths:
                raise NoFaceError("nothing in it can be shown: no frame, or no face")
            with clock.measure("write"):
                self._storage.write(uri, pack(clips))
            row.update(clips_uri=uri, clip_lengths=clips.clip_lengths)

        row = video_row(item, open_video, keep, self.task.stamp, clock)
        return pa.Table.from_pylist([row], _SCHEMA)


def prepare(
    manifest: str, output: str, config: FinetuneConfig, reporter: Reporter
) -> ResolvedClips | ResolvedImages:
    """Keeps what is shown of every video, or every image, of a manifest.

    A rerun does what is missing.

    Returns:
        What is shown; its type says of what.

    Raises:
        ConfigError: wrong settings, unreachable storage, an output of other settings.
        JobError: the job failed; what is committed stays.
    """
    with open_run(
        JOB,
        manifest,
        output,
        config,
        update=False,
        retry=(),
        reporter=reporter,
        medium=config.medium.medium,
    ) as run:
        config.check_medium(run.medium)
        resolved: ResolvedClips | ResolvedImages
        if run.medium == KIND_VIDEO:
            resolved = _prepare_videos(run, config)
        else:
            resolved = prepare_images(run, config)
        run.finish()
        return resolved


def _prepare_videos(run: Run, config: FinetuneConfig) -> ResolvedClips:
    with resolved_run(run, config, resolve_clips, ResolvedClips.from_dict) as (resolved, nodes):
        if run.pending.num_rows:
            placement = resolve_placement(config.cluster, resolved.engine, nodes)
            run_videos(run, config, resolved, placement, nodes, PrepareTask, PrepareWorker)
        return resolved


def resolve_clips(config: FinetuneConfig) -> ResolvedClips:
    """Resolves what is shown for the machine that it runs on.

    Raises:
        ConfigError: the settings contradict each other, or there is nothing to start from.
    """
    storage = Storage(storage_options(config))
    _, info, _ = build_network(config.network, config.optimisation, storage)
    try:
        resolved = ResolvedClips(
            network=info.name,
            preprocessing=info.preprocessing,
            sampling=sampling_with(info.sampling, config.sampling),
            faces=faces_with(info.faces, config.faces, info.name),
            max_frames=config.sampling.max_frames,
            segment_seconds=config.sampling.segment_seconds,
            # Nothing is run by it here: decoding is all there is to do.
            engine=EngineChoice("none", "cpu", "fp32", 1),
            versions=library_versions(),
        )
        check_view(resolved.view, config.faces)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return resolved


def prepared_data(output: str) -> str:
    """Returns the folder of the prepared videos' parts."""
    return OutputPaths(output).data
