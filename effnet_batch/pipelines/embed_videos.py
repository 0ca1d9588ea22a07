"""The embedding job's work on videos: pooled vectors, exactly once."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch

from effnet_batch.config import EmbedConfig, VideoLimitSettings
from effnet_batch.errors import ConfigError
from effnet_batch.media.card_video import NVDEC, CardVideos
from effnet_batch.media.faces import MODEL_SHA256
from effnet_batch.models.backbone import Backbone
from effnet_batch.models.engine import EngineChoice
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.models.sequence_config import SequenceConfig
from effnet_batch.pipelines.drift import Drift, Judged, class_scores, measure_drift
from effnet_batch.pipelines.drift_videos import EncoderKeeper, golden_rows, golden_task
from effnet_batch.pipelines.placement import resolve_placement
from effnet_batch.pipelines.progress import ProgressBoard
from effnet_batch.pipelines.resolution import resolved_run
from effnet_batch.pipelines.resolve import Resolved, load, load_chosen, resolve
from effnet_batch.pipelines.run import Run
from effnet_batch.pipelines.video_workers import VideoTask, VideoWorker, build_encoder
from effnet_batch.pipelines.videos import run_videos
from effnet_batch.pipelines.views import (
    NO_DETECTOR,
    check_view,
    faces_with,
    frame_fingerprint,
    make_view,
    sampling_with,
)
from effnet_batch.schema import KIND_VIDEO
from effnet_batch.stages.embed_video import VideoEmbedder, embed_video
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item
from effnet_batch.stages.show import View, Viewing
from effnet_batch.stages.video import OpenVideo


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedVideos(Resolved):
    """What a run on videos really uses. Plain values; stored in run.json."""

    CARD_DECODER: ClassVar = NVDEC

    sampling: dict[str, Any]
    """Strategy and parameters."""
    faces: dict[str, Any]
    """The detector, and the fields of `FaceSettings`."""
    max_frames: int
    min_frames: int
    segment_seconds: float | None
    encoder_sha256: str | None
    """As `SequenceClassifier.encoder_sha256` has it, where the embeddings of frames are stored."""

    def number_fields(self) -> dict[str, Any]:
        """Returns the fields of the fingerprint."""
        return {
            **super().number_fields(),
            "medium": KIND_VIDEO,
            "pooling": "mean",
            "sampling": self.sampling,
            "faces": self.faces,
            "face_model_sha256": MODEL_SHA256 if self.view.faces else None,
            "max_frames": self.max_frames,
            "min_frames": self.min_frames,
            "segment_seconds": self.segment_seconds,
        }

    @property
    def frames(self) -> dict[str, dict[str, Any]]:
        """What stored frame embeddings depend on, by digest."""
        if self.encoder_sha256 is None:
            return {}
        dtype = self.output["dtype"]
        fingerprint = frame_fingerprint(
            self.encoder_sha256,
            self.preprocessing,
            self.view,
            self.engine,
            dtype,
            gpu_decode=self.gpu_decode,
        )
        return {fingerprint.digest: fingerprint.to_dict()}

    @property
    def view(self) -> View:
        """What the model is shown of a video."""
        return make_view(
            self.sampling,
            self.faces,
            max_frames=self.max_frames,
            segment_seconds=self.segment_seconds,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedVideosTask(VideoTask):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    config: EmbedConfig
    resolved: ResolvedVideos

    @property
    def limits(self) -> VideoLimitSettings:
        """What one video may cost."""
        return self.config.limits.of_videos()


class EmbedVideosWorker(VideoWorker):
    """Actor that embeds videos and commits the vectors."""

    def __init__(self, task: EmbedVideosTask, board: ProgressBoard) -> None:
        super().__init__(task, board)
        self._embedder = build_embedder(task, load_chosen(task.config, task.resolved))

    @property
    def viewings(self) -> tuple[Viewing, ...]:
        """The one that is embedded."""
        return (self._embedder.viewing,)

    def work(
        self, item: Item, open_video: OpenVideo, clock: StageClock, frames: FrameSpool | None
    ) -> pa.Table:
        """Embeds one video."""
        return embed_video(item, open_video, self._embedder, self.task.stamp, clock, frames)


def build_embedder(task: EmbedVideosTask, model: Backbone) -> VideoEmbedder:
    """Builds the engine that the run was resolved to.

    Raises:
        FingerprintError: this node runs another precision.
    """
    torch.set_num_threads(1)
    resolved = task.resolved
    return VideoEmbedder(
        view=resolved.view,
        preprocessing=resolved.preprocessing,
        encoder=build_encoder(model, resolved.preprocessing, task),
        min_frames=resolved.min_frames,
        dtype=task.config.output.dtype,
        frames=next(iter(resolved.frames), ""),
    )


def embed_videos(run: Run, config: EmbedConfig) -> None:
    """Embeds the pending videos of a run."""
    with resolved_run(
        run, config, resolve_videos, ResolvedVideos.from_dict, drift_of_videos
    ) as found:
        resolved, nodes = found
        if run.pending.num_rows:
            placement = resolve_placement(
                config.cluster, resolved.engine, nodes, decodes_on_gpu=resolved.gpu_decode
            )
            run_videos(run, config, resolved, placement, nodes, EmbedVideosTask, EmbedVideosWorker)


def drift_of_videos(config: EmbedConfig, resolved: ResolvedVideos, sources: pa.Table) -> Drift:
    """Finds out how far the precision moves the vectors of some videos, and their classes."""
    model = load_chosen(config, resolved)

    def judge(choice: EngineChoice) -> Judged:
        task = golden_task(EmbedVideosTask, config, resolved, choice)
        embedder = build_embedder(task, model)
        keeper = EncoderKeeper(embedder.encoder, choice.precision)
        embedder = dataclasses.replace(embedder, encoder=keeper)
        rows = golden_rows(
            task,
            sources,
            (embedder.viewing,),
            [keeper],
            lambda item, opened, clock: embed_video(item, opened, embedder, task.stamp, clock),
        )
        return {
            row["record_id"]: (
                vectors,
                class_scores(model, np.array([row["embedding"]], np.float32)),
            )
            for row, vectors in rows
        }

    return measure_drift(resolved.engine, judge)


def resolve_videos(config: EmbedConfig) -> ResolvedVideos:
    """Resolves every ``auto`` for the machine that it runs on.

    Raises:
        ConfigError: the settings contradict each other, or this machine cannot run them.
    """
    settings = config.sampling
    shown: dict[str, Any] = {
        "max_frames": settings.max_frames,
        "segment_seconds": settings.segment_seconds,
    }
    try:
        sampling = sampling_with({"strategy": "uniform"}, settings)
        faces = faces_with({"detector": NO_DETECTOR}, config.faces, config.model.model)
        check_view(make_view(sampling, faces, **shown), config.faces)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model = resolve(config, lambda preprocessing: CardVideos([preprocessing]))
    output = config.output
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return ResolvedVideos(
        **{**fields, "output": {"dtype": output.dtype, "frames": output.frames}},
        sampling=sampling,
        faces=faces,
        min_frames=settings.min_frames,
        **shown,
        encoder_sha256=_encoder_sha256(load(config)) if output.frames else None,
    )


def _encoder_sha256(model: Backbone) -> str:
    """Returns the digest that a classifier has whose frames are encoded by this backbone."""
    info = model.weights_info
    assert info is not None
    classifier = SequenceClassifier(
        SequenceConfig(architecture=info.architecture, padding=info.padding, bn_eps=info.bn_eps)
    )
    classifier.take_backbone(model)
    return classifier.encoder_sha256()
