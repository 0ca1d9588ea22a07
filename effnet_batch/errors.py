"""Every exception effnet_batch raises on purpose, in one tree.

::

    EffnetBatchError
    ├── ConfigError              wrong usage or configuration       exit 2
    │   ├── WeightsError         weights missing, of unknown recipe, or of other keys
    │   ├── InputError           the input cannot be listed or read as what it claims to be
    │   ├── StorageError         storage unreachable, refused or missing
    │   ├── LockedError          another run is writing this output
    │   └── FingerprintError     this run's numbers would not match the output's
    ├── JobError                 the job failed                     exit 1
    │   ├── OutageError          storage went away while the job ran
    │   └── PoisonError          a worker kept dying although its sources were isolated
    └── RecordError              one record failed; becomes a row, never leaves a stage
        ├── FetchError           its bytes could not be fetched     status fetch_error
        ├── DecodeError          its bytes are damaged              status decode_error
        ├── UnsupportedError     a format we do not read            status unsupported
        ├── TooLargeError        over the limits on bytes or pixels status too_large
        ├── TimeoutRecordError   decoding took too long             status timeout
        ├── CrashedError         decoding killed its process        status crashed
        ├── OutOfMemoryError     decoding needed too much memory    status out_of_memory
        ├── NoFaceError          no face was found in it            status no_face
        ├── TooShortError        it has too few frames              status too_short
        └── ModelError           the model gives no numbers for it  status model_error

Only the command line turns these into exit codes. ``ValueError`` is kept for bad arguments of the
Python API and ``assert`` for invariants.
"""

from typing import ClassVar

from effnet_batch import vocabulary


class EffnetBatchError(Exception):
    """Base of every error that effnet_batch raises on purpose."""


class ConfigError(EffnetBatchError):
    """Wrong usage or configuration, found before any cluster is touched."""


class WeightsError(ConfigError):
    """Weights are missing, do not fit the model, or do not say how they must be run."""


class InputError(ConfigError):
    """The input cannot be listed, or is not what it claims to be."""


class StorageError(ConfigError):
    """Storage is unreachable, refused the credentials, or lacks the bucket or folder."""


class LockedError(ConfigError):
    """Another run is writing this output."""


class FingerprintError(ConfigError):
    """The numbers of this run would not match those already in the output."""


class JobError(EffnetBatchError):
    """The job ended without its result; what is committed stays and the next run goes on."""


class OutageError(JobError):
    """Storage went away during the run; the affected rows were not committed."""


class PoisonError(JobError):
    """A worker kept dying although every source ran in a process of its own."""


class RecordError(EffnetBatchError):
    """One record failed. A stage turns it into a row with ``status``; the job goes on."""

    status: ClassVar[str] = vocabulary.STATUS_DECODE_ERROR


class FetchError(RecordError):
    """The bytes of a source could not be fetched.

    Attributes:
        error_type: name of the storage error, as it goes into the row's ``error_type``.
        is_transient: whether it counts towards the outage rule; a missing object does not.
    """

    status = vocabulary.STATUS_FETCH_ERROR

    def __init__(
        self, message: str, *, error_type: str = "FetchError", is_transient: bool = True
    ) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.is_transient = is_transient

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_fetch_error, (str(self), self.error_type, self.is_transient))


def _rebuild_fetch_error(message: str, error_type: str, is_transient: bool) -> FetchError:
    return FetchError(message, error_type=error_type, is_transient=is_transient)


class DecodeError(RecordError):
    """The bytes are damaged, cut short, or not what their header says."""

    status = vocabulary.STATUS_DECODE_ERROR


class UnsupportedError(RecordError):
    """The bytes are of a format that effnet_batch does not read."""

    status = vocabulary.STATUS_UNSUPPORTED


class TooLargeError(RecordError):
    """The record is over the limit on bytes or pixels."""

    status = vocabulary.STATUS_TOO_LARGE


class TimeoutRecordError(RecordError):
    """Decoding the record took longer than the limit."""

    status = vocabulary.STATUS_TIMEOUT


class CrashedError(RecordError):
    """Decoding the record killed the process it ran in."""

    status = vocabulary.STATUS_CRASHED


class OutOfMemoryError(RecordError):
    """Decoding the record needed more memory than the limit."""

    status = vocabulary.STATUS_OUT_OF_MEMORY


class NoFaceError(RecordError):
    """No face was found in the record, so there is nothing to score."""

    status = vocabulary.STATUS_NO_FACE


class TooShortError(RecordError):
    """The record has fewer frames than are needed to score it."""

    status = vocabulary.STATUS_TOO_SHORT


class ModelError(RecordError):
    """What the model made of the record are not finite numbers."""

    status = vocabulary.STATUS_MODEL_ERROR
