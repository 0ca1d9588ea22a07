"""What a run failed of, said in our own words instead of Ray's."""

import re
from typing import Final

import ray.exceptions

from effnet_batch import errors
from effnet_batch.errors import (
    ConfigError,
    EffnetBatchError,
    JobError,
    OutageError,
    PoisonError,
    RecordError,
)
from effnet_batch.storage import redact

_OURS: Final = re.compile(r"\beffnet_batch\.errors\.(\w+): (.*)")
"""Our own error in the last line of a traceback."""
_NAMED: Final = re.compile(r"(?:(?:\w+\.)+[A-Z]\w*|\w*(?:Error|Exception|Invalid|Interrupt)): ")
"""How the last line of a traceback begins, also of errors not called so: ``ArrowInvalid: ``."""
_WRAPPER: Final = "ray.exceptions.UserCodeException: "
"""Ray Data's own error, which stands below the one that it is about."""


def cause_of(error: Exception) -> EffnetBatchError:
    """Finds our own error inside Ray's, or says in one line what a worker died of."""
    seen: BaseException | None = error
    while seen is not None:
        # Ray's error may be of the class of ours as well; its text is a traceback.
        for candidate in (getattr(seen, "cause", None), seen):
            if isinstance(candidate, OutageError | ConfigError | JobError):
                return candidate
            if isinstance(candidate, RecordError):
                return JobError(str(candidate))
        seen = seen.__cause__ or seen.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.WorkerCrashedError):
        return PoisonError(
            "a worker died again and again although every source was decoded in a process of its "
            f"own: {redact(lines[0])}; see Ray's logs, then run the same command again"
        )
    errors_named = (
        line
        for line in reversed(lines)
        if ("Error:" in line or _NAMED.match(line)) and not line.startswith(_WRAPPER)
    )
    named = next(errors_named, lines[-1] if lines else "")
    if ours := _OURS.search(named):  # Ray wraps what an actor raised, and ships the text alone
        kind = getattr(errors, ours[1], JobError)
        is_final = issubclass(kind, ConfigError | JobError)
        return (kind if is_final else JobError)(redact(ours[2]))
    return JobError(f"a worker failed: {redact(named)}")
