"""Jobs on a Ray cluster, submitted, followed and stopped through Ray's Jobs API.

A job's output names its submissions: the n-th is ``{job}-{hash of the output}-{n}``, so that
submitting a job twice does not run it twice. What a failed submission has committed stays, and the
next one goes on from there.
"""

import asyncio
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import aiohttp
import requests
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from effnet_batch.errors import ConfigError, JobError
from effnet_batch.storage import canonical_uri, redact, scheme_of
from effnet_batch.storage.uris import LOCAL

DEFAULT_ADDRESS: Final = "http://127.0.0.1:8265"
CONFIG_FILE: Final = "job.toml"
"""The job's settings, in its working directory on the cluster."""

_ANSWER_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 120.0
"""A cluster that does not answer for so long, while its job is waited for, is given up."""
_POLL_SECONDS: Final = 1.0
_HASH_DIGITS: Final = 12
_TALKATIVE: Final = ("ray", JobSubmissionClient.__module__, SubmissionClient.__module__)
"""Ray's loggers; those of its client set their levels themselves."""

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """One submission of a job, as the cluster tells it."""

    submission_id: str
    status: str
    """``PENDING``, ``RUNNING``, ``STOPPED``, ``SUCCEEDED`` or ``FAILED``."""
    is_over: bool
    exit_code: int | None
    """Of the job's driver; None unless it ran to its end."""
    started_seconds: float | None
    """Since the epoch."""
    seconds: float | None
    """How long it has run, or ran."""
    output: str | None
    """None for what effnet-batch did not submit."""
    message: str
    """What the cluster says about the status."""

    @classmethod
    def from_details(cls, details: JobDetails) -> Self:
        """Reads what the Jobs API returned."""
        start, end = details.start_time, details.end_time
        now = time.time()
        return cls(
            submission_id=details.submission_id or "",
            status=details.status.value,
            is_over=details.status.is_terminal(),
            exit_code=details.driver_exit_code,
            started_seconds=start / 1000 if start else None,
            seconds=max(0.0, (end / 1000 if end else now) - start / 1000) if start else None,
            output=(details.metadata or {}).get("output"),
            message=details.message or "",
        )

    @property
    def is_stopped(self) -> bool:
        """Whether somebody stopped it."""
        return self.status == JobStatus.STOPPED.value

    @property
    def is_failed(self) -> bool:
        """Whether it ended otherwise than with exit code 0 or by being stopped."""
        return self.status == JobStatus.FAILED.value


class JobCluster:
    """The Jobs API of one Ray cluster.

    The token is Ray's own: ``RAY_AUTH_TOKEN``, else the file ``RAY_AUTH_TOKEN_PATH``, else
    ``~/.ray/auth_token``.
    """

    def __init__(self, address: str | None = None) -> None:
        """Connects.

        Args:
            address: of the dashboard, such as ``http://HEAD:8265``; None means
                ``RAY_API_SERVER_ADDRESS``, else this machine.

        Raises:
            ConfigError: nothing answers there, or the token is refused.
        """
        address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        if not address.startswith(("http://", "https://")):
            raise ConfigError(
                f"the address of a cluster's Jobs API begins with http:// or https://, got "
                f"{address}; it is the dashboard's, such as http://HEAD:8265"
            )
        self.address = address.rstrip("/")
        _check_answers(self.address)
        _use_token_if_any()
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        # Ray would let this variable, or RAY_ADDRESS, win over the address that it is given.
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address
        self._client = self._call(lambda: JobSubmissionClient(self.address))

    def _call(self, request: Callable[[], _Result]) -> _Result:
        """Sends a request.

        Raises:
            ConfigError: the token is refused, or the cluster refuses the request.
            JobError: the cluster does not answer.
        """
        try:
            return request()
        except AuthenticationError as error:
            raise ConfigError(
                f"the cluster at {self.address} refuses the token: {_first_line(error)}; set "
                f"RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN to the cluster's"
            ) from error
        except (ConnectionError, requests.RequestException) as error:
            raise JobError(f"the cluster at {self.address} does not answer: {error}") from error
        except RuntimeError as error:
            raise ConfigError(f"the cluster at {self.address}: {_first_line(error)}") from error

    def submit(
        self,
        job: str,
        input: str,
        output: str,
        settings: Mapping[str, Any],
        *,
        ships_project: bool = True,
        forwarded: Sequence[str] = (),
        log_format: str = "text",
    ) -> tuple[str, bool]:
        """Submits a job, or finds the submission that already works on its output.

        Args:
            job: command that runs it, such as ``score``.
            input: of the job; a local path must be absolute and shared by the nodes.
            output: the same.
            settings: flat settings; ``address`` is left out, since the job runs where it is.
            ships_project: send this package along; else the cluster's image has one.
            forwarded: names of environment variables whose values go to the cluster in plain text.
            log_format: of the job's log, ``text`` or ``json``.

        Returns:
            Submission id, and whether it is new.

        Raises:
            ConfigError: a path that means nothing on the cluster, or the cluster refuses.
        """
        for name, place in (("INPUT", input), ("OUTPUT", output)):
            if scheme_of(canonical_uri(place)) == LOCAL and not Path(place).is_absolute():
                raise ConfigError(
                    f"{name} {place} is a path of this machine; give one that every node has, "
                    f"absolute, or a URL such as s3://bucket/folder"
                )
        if missing := [name for name in forwarded if name not in os.environ]:
            raise ConfigError(f"not set, so it cannot be forwarded: {', '.join(missing)}")
        stem = submission_stem(job, output)
        latest = self._latest(stem)
        if latest is not None and not latest[1].is_over:
            return latest[1].submission_id, False
        number = 1 if latest is None else latest[0] + 1
        values = {name: value for name, value in settings.items() if name != "address"}
        with tempfile.TemporaryDirectory(prefix="effnet-batch-") as folder:
            _stage(Path(folder), {"input": input, "output": output, **values}, ships_project)
            new = self._call(
                lambda: self._client.submit_job(
                    entrypoint=(
                        f"exec python -m effnet_batch --log-format {log_format} {job} "
                        f"--config {CONFIG_FILE}"
                    ),
                    submission_id=f"{stem}-{number}",
                    runtime_env={
                        "working_dir": folder,
                        "env_vars": {name: os.environ[name] for name in forwarded},
                    },
                    metadata={"job": job, "output": redact(canonical_uri(output))},
                )
            )
        return new, True

    def _latest(self, stem: str) -> tuple[int, Submission] | None:
        """Returns number and state of the latest submission of a job into an output."""
        numbered = re.compile(re.escape(stem) + r"-(\d+)")
        found = [
            (int(match[1]), each)
            for each in self.submissions()
            if (match := numbered.fullmatch(each.submission_id))
        ]
        return max(found, key=lambda pair: pair[0], default=None)

    def submissions(self) -> list[Submission]:
        """Returns all submissions that the cluster remembers, oldest first."""
        found = [
            Submission.from_details(details)
            for details in self._call(self._client.list_jobs)
            if details.submission_id
        ]
        return sorted(found, key=lambda each: each.started_seconds or 0)

    def submission(self, submission_id: str) -> Submission:
        """Returns one submission.

        Raises:
            ConfigError: there is none of this id.
        """
        return Submission.from_details(self._call(lambda: self._client.get_job_info(submission_id)))

    def logs(self, submission_id: str) -> str:
        """Returns what a job's driver has printed so far."""
        return self._call(lambda: self._client.get_job_logs(submission_id))

    def follow(self, submission_id: str) -> Iterator[str]:
        """Yields what a job's driver prints, from its beginning until the job is over.

        It ends early where the connection breaks; `wait` says how the job ended.
        """
        self.submission(submission_id)
        lines = self._client.tail_job_logs(submission_id)

        async def step() -> str | None:
            return await anext(lines, None)

        with asyncio.Runner() as runner:
            try:
                while (text := runner.run(step())) is not None:
                    yield text
            except (aiohttp.ClientError, RuntimeError):
                return
            finally:
                runner.run(lines.aclose())  # type: ignore[attr-defined]

    def wait(self, submission_id: str) -> Submission:
        """Waits until a job is over.

        Raises:
            ConfigError: there is none of this id.
            JobError: the cluster has not answered for two minutes.
        """
        answered = time.monotonic()
        while True:
            try:
                found = self.submission(submission_id)
            except JobError:
                if time.monotonic() - answered > _SILENCE_SECONDS:
                    raise
            else:
                answered = time.monotonic()
                if found.is_over:
                    return found
            time.sleep(_POLL_SECONDS)

    def stop(self, submission_id: str) -> Submission:
        """Ends a job and waits for that; what it has committed stays."""
        self._call(lambda: self._client.stop_job(submission_id))
        return self.wait(submission_id)


def submission_stem(job: str, output: str) -> str:
    """Returns what the ids of all submissions of a job into an output begin with."""
    digest = hashlib.sha256(canonical_uri(output).encode()).hexdigest()
    return f"{job}-{digest[:_HASH_DIGITS]}"


def _stage(folder: Path, settings: Mapping[str, Any], ships_project: bool) -> None:
    """Fills the working directory of a job: its settings, and the package if it is shipped."""
    # Of these types JSON is TOML: texts, numbers, booleans and lists of them.
    lines = [
        f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items()
    ]
    (folder / CONFIG_FILE).write_text("".join(lines), encoding="utf-8")
    if ships_project:
        package = Path(__file__).parent
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / package.name, ignore=ignore)


def _check_answers(address: str) -> None:
    """Refuses an address where nothing answers, for which Ray would wait for minutes.

    Raises:
        ConfigError: nothing answers there.
    """
    try:
        requests.get(f"{address}/api/version", timeout=_ANSWER_SECONDS)
    except requests.RequestException as error:
        reason = str(error).rpartition(": ")[2].rstrip("'\")>")
        raise ConfigError(f"no Ray cluster at {address}: {reason}") from error


def _use_token_if_any() -> None:
    """Turns token authentication on where there is a token and nobody said whether to use it."""
    has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    if has_token and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # Ray read the mode when it was imported; it reads it again here


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
