"""What runs on the workers of the scoring job: units in, committed verdicts out."""

import dataclasses

import pyarrow as pa
import torch

from effnet_batch.config import ScoreConfig, VideoLimitSettings
from effnet_batch.models.weights_file import check_sha256
from effnet_batch.pipelines.progress import ProgressBoard
from effnet_batch.pipelines.score_resolve import ResolvedScoring, load_checkpoints
from effnet_batch.pipelines.video_workers import VideoTask, VideoWorker, build_encoder
from effnet_batch.stages.frames import FrameSpool
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.read import Item
from effnet_batch.stages.score import Member, Scorer, score_item
from effnet_batch.stages.show import Viewing
from effnet_batch.stages.video import OpenVideo


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreTask(VideoTask):
    """Everything a worker needs to know; plain values, no secret and no open file."""

    config: ScoreConfig
    resolved: ResolvedScoring

    @property
    def limits(self) -> VideoLimitSettings:
        """What one video may cost."""
        return self.config.limits


class ScoreWorker(VideoWorker):
    """Actor that judges videos and commits the verdicts."""

    def __init__(self, task: ScoreTask, board: ProgressBoard) -> None:
        super().__init__(task, board)
        self._scorer = build_scorer(task)

    @property
    def viewings(self) -> tuple[Viewing, ...]:
        """As its checkpoints want it."""
        return self._scorer.viewings

    def work(
        self, item: Item, open_video: OpenVideo, clock: StageClock, frames: FrameSpool | None
    ) -> pa.Table:
        """Judges one video."""
        return score_item(item, open_video, self._scorer, self.task.stamp, clock, frames)


def build_scorer(task: ScoreTask) -> Scorer:
    """Loads the checkpoints and builds the engines that the run was resolved to.

    Raises:
        FingerprintError: the checkpoints on this node are not those of the run.
    """
    torch.set_num_threads(1)
    resolved, dtype = task.resolved, task.resolved.frames_dtype
    members = []
    for loaded, wanted in zip(load_checkpoints(task.config), resolved.checkpoints, strict=True):
        check_sha256(wanted.info.name, loaded.sha256, wanted.sha256)
        loaded.model.move_head(resolved.engine.device)
        members.append(
            Member(
                info=wanted.info,
                view=resolved.view(wanted),
                model=loaded.model,
                encoder=build_encoder(loaded.model.encoder, wanted.info.preprocessing, task),
                frames=resolved.frame_fingerprint(wanted, dtype).digest if dtype else "",
            )
        )
    return Scorer(
        members=members,
        thresholds=resolved.thresholds,
        min_frames=resolved.min_frames,
        num_crops=task.config.output.store_crops,
    )
