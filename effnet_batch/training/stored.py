"""Clips of stored frame embeddings: nothing is decoded, a head alone is trained on them."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import nn

from effnet_batch.ledger import read_frames_of
from effnet_batch.media.sampling import Indices
from effnet_batch.models.checkpoint_info import CheckpointInfo
from effnet_batch.models.sequence import SequenceClassifier
from effnet_batch.stages.frames import stored_segments
from effnet_batch.stages.lanes import StageClock
from effnet_batch.stages.look import Segment
from effnet_batch.stages.score import Member, Scorer, group_by_view
from effnet_batch.stages.show import View
from effnet_batch.storage import Storage
from effnet_batch.training.plan import Step
from effnet_batch.training.trainer import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFrames:
    """Where frame embeddings lie; plain values."""

    fingerprint: str
    """Of the embeddings that are wanted; the parts may hold others beside them."""
    parts: Mapping[str, Sequence[str]]
    """Files of frames, by the part that they belong to."""


class StoredClips:
    """The clips of an output's frames, spooled to an unnamed file: any of them at any time.

    Memory holds places and times; of the embeddings what the page cache keeps.

    Args:
        frames: where they lie.
        info: how the classifier is run.
        view: what it is shown.
        samples: clips to train on, of `feed.SAMPLES_SCHEMA`.
        validation: videos to validate on: ``uri`` (of the part) and ``record_id``.
        storage: reads them.
    """

    def __init__(
        self,
        frames: StoredFrames,
        *,
        info: CheckpointInfo,
        view: View,
        samples: pa.Table,
        validation: pa.Table,
        storage: Storage,
    ) -> None:
        self._info, self._view = info, view
        wanted: dict[str, set[str]] = {}
        for table in (samples, validation):
            for uri, record in zip(
                table["uri"].to_pylist(), table["record_id"].to_pylist(), strict=True
            ):
                wanted.setdefault(uri, set()).add(record)
        judged = set(validation["record_id"].to_pylist())
        clips: dict[str, list[Indices]] = {}
        self._segments: dict[str, list[tuple[slice, Segment]]] = {}
        num_rows = width = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the clips
        for uri, records in wanted.items():
            ids = pa.array(sorted(records), pa.string())
            tables = read_frames_of(storage, frames.parts[uri], records=ids)
            for stored in stored_segments(tables):
                if stored.fingerprint != frames.fingerprint:
                    continue
                vectors = stored.embeddings
                self._file.write(vectors.tobytes())
                segment = stored.seen(view.max_clip_frames, [])
                record, width = stored.record_id, vectors.shape[1]
                if record in judged:
                    rows = slice(num_rows, num_rows + len(vectors))
                    self._segments.setdefault(record, []).append((rows, segment))
                else:
                    places = [num_rows + positions for _, positions in segment.clips]
                    clips.setdefault(record, []).extend(places)
                num_rows += len(vectors)
        self._file.flush()
        self._vectors: npt.NDArray[np.float32] = np.memmap(
            self._file, np.float32, "r", shape=(num_rows, width)
        )
        self._labels = samples["label"].to_pylist()
        self._clips = [
            clips[record][number]
            for record, number in zip(
                samples["record_id"].to_pylist(), samples["clip"].to_pylist(), strict=True
            )
        ]

    def batches(
        self,
        steps: Sequence[Step],
        weights: Mapping[int, float],
        *,
        epoch: int,
        batch_size: int,
    ) -> Iterator[Batch]:
        """Yields a worker's batches, as `prepared.PreparedClips.batches`; every epoch's alike."""
        del epoch  # what is stored cannot be augmented
        for start in range(0, len(steps), batch_size):
            chosen = steps[start : start + batch_size]
            yield Batch(
                clips=[self._vectors[self._clips[step.sample]] for step in chosen],
                labels=[self._labels[step.sample] for step in chosen],
                weights=[step.counts * weights[self._labels[step.sample]] for step in chosen],
            )

    def judge(self, model: nn.Module, rows: pa.Table, *, device: str) -> list[float]:
        """Returns the logit of every video, as `rescore` finds it.

        Args:
            model: as it is now; it is left alone.
            rows: some of the validation videos.
            device: that the model is on.
        """
        del device  # the model is where it is
        assert isinstance(model, SequenceClassifier)
        member = Member(info=self._info, view=self._view, model=model, encoder=None)
        scorer = Scorer(members=[member], thresholds=self._info.thresholds)
        was_training = model.training
        model.eval()
        logits = []
        for record in rows["record_id"].to_pylist():
            seen = group_by_view(scorer.members)
            for place, segment in self._segments[record]:
                vectors = np.array(self._vectors[place])
                seen[0].take(dataclasses.replace(segment, embeddings=[vectors]), StageClock())
            logits.append(float(scorer.judge(seen)["logit"]))
        model.train(was_training)
        return logits
