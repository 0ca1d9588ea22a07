"""Metrics passed on to MLflow or Weights & Biases, while training writes them.

Where to and as whom, those tools read from their own environment variables, on the machine that
the run was started on: no training worker needs their package, or a secret.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from effnet_batch.errors import ConfigError
from effnet_batch.storage import ObjectInfo, Storage, redact
from effnet_batch.training.events import Point, points_of

TRACKERS: Final = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
"""Package, which is the setting's value as well, and what it is called."""

_SECONDS_BETWEEN_LOOKS: Final = 5.0
_MLFLOW_TAG: Final = "effnet_batch.training"
_MLFLOW_METRICS_PER_REQUEST: Final = 1000


class Tracker(Protocol):
    """One run of a tool; a command that is run again goes on with the same."""

    last_epoch: int
    """The last that the tool knew when it was opened; 0 for none."""

    def log(self, points: Sequence[Point]) -> None:
        """Passes points on."""
        ...

    def close(self, *, is_complete: bool) -> None:
        """Ends the run; it can be taken up again."""
        ...


class MlflowTracker:
    """A run of the experiment that ``MLFLOW_EXPERIMENT_NAME`` says, found again by a tag.

    Args:
        key: known to the run alone.
        name: of the run.
        settings: shown with it.
    """

    def __init__(self, key: str, name: str, settings: Mapping[str, str]) -> None:
        import mlflow

        found = mlflow.search_runs(
            filter_string=f"tags.`{_MLFLOW_TAG}` = '{key}'", output_format="list", max_results=1
        )
        run_id = found[0].info.run_id if found else None
        run = mlflow.start_run(
            run_id=run_id, run_name=None if found else name, tags={_MLFLOW_TAG: key}
        )
        self._run_id, self._client = run.info.run_id, mlflow.MlflowClient()
        try:
            if not run.data.params:  # also where an earlier try got no further
                mlflow.log_params(dict(settings))
            history = self._client.get_metric_history(self._run_id, "epoch/mean_loss")
        except BaseException:
            # Left open, it would take in whatever this process starts next.
            mlflow.end_run("FAILED")
            raise
        self.last_epoch = max((metric.step for metric in history), default=0)

    def log(self, points: Sequence[Point]) -> None:
        """Passes points on."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, round(point.unix_seconds * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        ]
        for start in range(0, len(metrics), _MLFLOW_METRICS_PER_REQUEST):
            some = metrics[start : start + _MLFLOW_METRICS_PER_REQUEST]
            self._client.log_batch(self._run_id, metrics=some)

    def close(self, *, is_complete: bool) -> None:
        """Ends the run."""
        import mlflow

        mlflow.end_run("FINISHED" if is_complete else "FAILED")


class WandbTracker:
    """A run of the project that ``WANDB_PROJECT`` says, with an id that is always the same.

    Args:
        key: known to the run alone.
        name: of the run.
        settings: shown with it.
    """

    def __init__(self, key: str, name: str, settings: Mapping[str, str]) -> None:
        import wandb

        self._run = wandb.init(
            id=key,
            name=name,
            project=os.environ.get("WANDB_PROJECT", "effnet_batch"),
            config=dict(settings),
            resume="allow",
            # The metadata of a run has the command line, and with it what URIs sign or log in with.
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
        )
        for curves, axis in (("step/*", "step"), ("epoch/*", "epoch"), ("val/*", "epoch")):
            self._run.define_metric(curves, step_metric=axis)
        self.last_epoch = int(self._run.summary.get("epoch") or 0)

    def log(self, points: Sequence[Point]) -> None:
        """Passes points on."""
        for point in points:
            axis = "step" if "step/loss" in point.values else "epoch"
            self._run.log({**point.values, axis: point.step})

    def close(self, *, is_complete: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=0 if is_complete else 1)


def check_tracker(name: str | None) -> None:
    """Refuses a tool that is not installed.

    Raises:
        ConfigError: it is not.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"--track {name}: {TRACKERS[name]} is not installed: pip install 'effnet-batch[{name}]'"
        )


@contextlib.contextmanager
def tracked(
    name: str | None,
    storage: Storage,
    metrics: str,
    *,
    fingerprint: str,
    settings: Mapping[str, object],
    warn: Callable[[str], None],
) -> Iterator[None]:
    """Passes the metrics on that a run writes in the meantime, and those that it wrote before.

    A tool that does not answer costs a warning and not the training; what it missed it is given
    as soon as it does.

    Args:
        name: of `TRACKERS`; None does nothing.
        storage: reads the metrics.
        metrics: URI of the lines of metrics.
        fingerprint: of the training run; another run's lines are not passed on.
        settings: shown with the run, without secrets; None values are left out.
        warn: is told what went wrong.

    Raises:
        ConfigError: the tool cannot be reached, or refuses.
    """
    if name is None:
        yield
        return
    key = hashlib.sha256(f"{metrics}\n{fingerprint}".encode()).hexdigest()[:16]
    shown = {each: redact(str(value)) for each, value in settings.items() if value is not None}
    kind = MlflowTracker if name == "mlflow" else WandbTracker
    try:
        tracker: Tracker = kind(key, f"effnet_batch {fingerprint}", shown)
    except Exception as error:
        raise ConfigError(f"--track {name}: {redact(str(error))}") from error
    with _Follower(tracker, storage, metrics, fingerprint, warn, TRACKERS[name]):
        yield


class _Follower:
    """Context manager that looks at the lines of metrics again and again, from a thread."""

    def __init__(
        self,
        tracker: Tracker,
        storage: Storage,
        metrics: str,
        fingerprint: str,
        warn: Callable[[str], None],
        title: str,
    ) -> None:
        self._tracker, self._storage, self._metrics = tracker, storage, metrics
        self._fingerprint, self._warn, self._title = fingerprint, warn, title
        self._last_epoch = tracker.last_epoch
        self._version: ObjectInfo | None = None
        self._told = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pass_on()
        with self._warned():
            self._tracker.close(is_complete=kind is None)

    def _follow(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_LOOKS):
            self._pass_on()

    def _pass_on(self) -> None:
        with self._warned():
            if not self._storage.exists(self._metrics):
                return
            version = self._storage.info(self._metrics)
            if version == self._version:
                return  # no epoch has ended since
            text = self._storage.read(self._metrics).decode()
            lines = [json.loads(line) for line in text.splitlines()]
            if lines[-1]["training_fingerprint"] == self._fingerprint:
                points = [each for each in points_of(lines) if each.epoch > self._last_epoch]
                self._tracker.log(points)
                self._last_epoch = lines[-1]["epoch"]
            self._version = version

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  tools and networks raise anything
            text = f"{self._title} was not told of the metrics: {redact(str(error))}"
            if text != self._told:
                self._warn(text)
            self._told = text
