"""Clips of prepared videos: the pictures that scoring shows a model, kept in files."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from torch import nn

from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.engine import build_engine
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.stages.encode import OwnEncoder
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.score import Member, Scorer
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage
from effnet_batch.training.clips import unpack
from effnet_batch.training.feed import Feed, stream_batches
from effnet_batch.training.plan import Step
from effnet_batch.training.trainer import Batch

_BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PreparedClips:
    """The clips of videos that were prepared."""

    info: CheckpointInfo
    """How the classifier is run."""
    view: View
    """What it is shown."""
    feed: Feed
    """Makes batches of the first epoch."""
    samples: pa.Table
    """Clips to train on, of `feed.SAMPLES_SCHEMA`."""
    storage: Storage
    """Reads them."""
    feed_cpus: float
    """What a task asks for that makes some of them ready."""

    def batches(
        self,
        steps: Sequence[Step],
        weights: Mapping[int, float],
        *,
        epoch: int,
        batch_size: int,
    ) -> Iterator[Batch]:
        """Yields a worker's batches in the order of its steps."""
        feed = dataclasses.replace(self.feed, epoch=epoch)
        return stream_batches(
            self.samples, steps, feed, weights, batch_size=batch_size, num_cpus=self.feed_cpus
        )

    def judge(self, model: nn.Module, rows: pa.Table, *, device: str) -> list[float]:
        """Returns the logit of every video, by the same path as scoring.

        Args:
            model: as it is now; it is left alone.
            rows: videos with ``uri``, of `clips.pack`'s files.
            device: that the model runs on.
        """
        assert isinstance(model, SequenceClassifier)
        engine = build_engine(
            model.encoder,
            self.info.preprocessing,
            engine="torch",
            device=device.partition(":")[0],
            precision="fp32",
            batch_size=_BATCH_SIZE,
        )
        member = Member(info=self.info, view=self.view, model=model, encoder=OwnEncoder(engine))
        scorer = Scorer(members=[member], thresholds=self.info.thresholds)
        was_training = model.training
        model.eval()
        logits = []
        for uri in rows["uri"].to_pylist():
            row: dict[str, float] = {}
            scorer.score(unpack(self.storage.read(uri)), row, StageClock())
            logits.append(row["logit"])
        model.train(was_training)
        return logits
