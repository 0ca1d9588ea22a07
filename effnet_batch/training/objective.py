"""What is trained, on what, and how it is judged: all that the train loop leaves open."""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from torch import nn

from effnet_batch.config import AugmentationSettings, NetworkSettings, OptimisationSettings
from effnet_batch.storage import Storage, StorageOptions
from effnet_batch.training.plan import Step
from effnet_batch.training.trainer import Batch, Trainer


class Examples(Protocol):
    """What is trained and validated on, opened by one worker: `prepared`, `stored`, `images`."""

    def batches(
        self,
        steps: Sequence[Step],
        weights: Mapping[int, float],
        *,
        epoch: int,
        batch_size: int,
    ) -> Iterator[Batch]:
        """Yields a worker's batches in the order of its steps.

        Args:
            steps: the worker's share of an epoch's plan; whole batches.
            weights: of each label.
            epoch: from 0; augmentation depends on it.
            batch_size: samples of a batch.
        """
        ...

    def judge(self, model: nn.Module, rows: pa.Table, *, device: str) -> Sequence[Any]:
        """Returns what a model makes of rows of `Objective.validation`: few plain values of each.

        The path is that of inference. The model is left as it is.

        Args:
            model: as it is now.
            rows: some of what is validated on.
            device: that the model runs on.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """Plain values that travel to every worker; no secret and no open file."""

    METRIC: ClassVar[str]
    """Name of the metric of validation of which the epoch with the most is kept, of equals the one
    with the least ``log_loss``."""

    NOUN: ClassVar[str]
    """What a record is called."""

    network: NetworkSettings
    optimisation: OptimisationSettings
    augmentation: AugmentationSettings
    storage: StorageOptions
    start_sha256: str
    """Of the file that the network starts from; a worker that finds another one does not train."""
    fingerprint: str
    """Of the run; states of another one are not taken up."""
    samples: pa.Table
    """What is trained on, a row each; ``label`` counts from 0."""
    validation: pa.Table
    """What is validated on, a row each."""

    @abc.abstractmethod
    def make_trainer(
        self, storage: Storage, *, steps_per_epoch: int, device: str, num_workers: int
    ) -> Trainer:
        """Returns a trainer at its very start; every worker makes the same.

        Raises:
            FingerprintError: the network would start from another file than the run's.
        """

    @abc.abstractmethod
    def open(self, storage: Storage, *, feed_cpus: float) -> Examples:
        """Opens what is trained and validated on.

        Args:
            storage: reads it.
            feed_cpus: what a task asks for that makes some of it ready, as `feed.feed_cpus` says.
        """

    @abc.abstractmethod
    def measure(self, judged: Sequence[Any]) -> dict[str, float]:
        """Returns the metrics of what `Examples.judge` made of all rows of ``validation``.

        Among them are `METRIC` and ``log_loss``.
        """

    @abc.abstractmethod
    def checkpoint(self, model: nn.Module) -> bytes:
        """Returns the file of a model that inference runs as it is."""
