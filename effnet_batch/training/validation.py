"""Validation by the same path as scoring: the videos that were kept, judged by the scorer."""

import pyarrow as pa

from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.engine import build_engine
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.stages.encode import OwnEncoder
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.score import Member, Scorer
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage
from effnet_batch.training.clips import unpack

_BATCH_SIZE = 16


def judge(
    model: SequenceClassifier,
    info: CheckpointInfo,
    view: View,
    videos: pa.Table,
    storage: Storage,
    *,
    device: str,
) -> list[float]:
    """Returns the logit of every video.

    Args:
        model: as it is now; it is left alone.
        info: how it is run.
        view: what it is shown.
        videos: rows with ``uri``, of `clips.pack`'s files.
        storage: reads them.
        device: that the model runs on.
    """
    engine = build_engine(
        model.encoder,
        info.preprocessing,
        engine="torch",
        device=device.partition(":")[0],
        precision="fp32",
        batch_size=_BATCH_SIZE,
    )
    was_training = model.training
    model.eval()
    scorer = Scorer(
        members=[Member(info=info, view=view, model=model, encoder=OwnEncoder(engine))],
        thresholds=info.thresholds,
    )
    logits = []
    for uri in videos["uri"].to_pylist():
        row: dict[str, float] = {}
        scorer.score(unpack(storage.read(uri)), row, StageClock())
        logits.append(row["logit"])
    model.train(was_training)
    return logits
