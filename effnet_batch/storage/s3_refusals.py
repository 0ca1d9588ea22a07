"""Why S3 refused a request, and what a person can do about it."""

from dataclasses import dataclass
from typing import Any, Final, Self

from effnet_batch.errors import OutageError
from effnet_batch.storage.s3_client import Location
from effnet_batch.storage.transport import Response
from effnet_batch.storage.uris import redact

REMEDIES: Final = {
    "InvalidAccessKeyId": (
        "the server does not know the access key id; check AWS_ACCESS_KEY_ID or the profile"
    ),
    "SignatureDoesNotMatch": (
        "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile"
    ),
    "ExpiredToken": "the session token has expired; renew the credentials",
    "InvalidToken": "the session token is not valid; renew the credentials",
    "TokenRefreshRequired": "the session token must be refreshed; renew the credentials",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "NoSuchBucket": "the bucket does not exist at this endpoint; create it or correct its name",
    "InvalidBucketName": "the bucket's name is not valid; correct it",
    "AuthorizationHeaderMalformed": "the region is wrong; set AWS_DEFAULT_REGION",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "AccountProblem": "there is a problem with the account; ask its administrator",
    "AllAccessDisabled": "all access to the bucket is disabled; ask its owner",
    "NotSignedUp": "the account is not signed up for S3",
    "KMS.DisabledException": "the KMS key is disabled; enable it",
    "KMS.NotFoundException": "the KMS key is not in the bucket's region; correct its id",
    "NoCredentialsError": (
        "no AWS credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    ),
}
"""By error code: what concerns the bucket or the account and not one object."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the server, or the way there, answered.

    Attributes:
        status: HTTP status; 0 if there was no answer.
        code: S3's error code, or the name of the client's exception.
        num_retries: how often the request had been repeated before.
    """

    status: int
    code: str
    message: str
    num_retries: int = 0

    @classmethod
    def of_response(cls, response: Response) -> Self:
        """Returns the refusal that a response is."""
        return cls(response.status, response.code, response.message)

    @classmethod
    def of_exception(cls, error: BaseException) -> Self:
        """Returns the refusal behind an exception of s3fs or botocore."""
        answer: Any = getattr(error.__cause__, "response", None)
        if not isinstance(answer, dict):
            return cls(0, type(error).__name__, str(error))
        metadata = answer.get("ResponseMetadata", {})
        details = answer.get("Error", {})
        return cls(
            metadata.get("HTTPStatusCode", 0),
            details.get("Code", ""),
            details.get("Message", ""),
            metadata.get("RetryAttempts", 0),
        )

    def __str__(self) -> str:
        said = ": ".join(each for each in (self.code, self.message) if each)
        return redact(said or f"HTTP status {self.status}")

    @property
    def concerns_bucket(self) -> bool:
        """Whether no object of the bucket can be expected to fare better."""
        return self.code in REMEDIES

    def outage(self, uri: str, location: Location, *, verb: str, needed: str) -> OutageError:
        """Returns the error for storage that refuses as a whole.

        Args:
            uri: what was asked for.
            location: where its bucket is.
            verb: what was tried, such as ``list``.
            needed: the S3 permission for it.
        """
        reason = REMEDIES.get(self.code)
        if reason is None and self.status in (401, 403):
            reason = f"no permission; the credentials need {needed}"
        told = f"{self} at {location.scheme}://{location.host}:{location.port}"
        return OutageError(f"cannot {verb} {uri}: " + (f"{reason} ({told})" if reason else told))


class RefusedError(Exception):
    """A refused write, on its way to whoever knows what it means. Never leaves the S3 backend."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
