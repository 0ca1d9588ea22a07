"""The s3fs filesystem that writes."""

import s3fs

from effnet_batch.storage.objects import StorageOptions

_QUICK_SECONDS = 5.0


def new_writer(options: StorageOptions, *, is_quick: bool) -> s3fs.S3FileSystem:
    """Returns a filesystem with the options' endpoint, profile, encryption and limits.

    Args:
        options: the rest comes from the AWS environment.
        is_quick: one attempt and short time-outs, for checks before work.
    """
    connect, read = options.connect_timeout_seconds, options.read_timeout_seconds
    encryption = {}
    if options.kms_key_id is not None:
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": options.kms_key_id}
    session = {"profile": options.profile} if options.profile is not None else {}
    fs = s3fs.S3FileSystem(
        anon=options.anonymous,
        endpoint_url=options.endpoint_url,
        requester_pays=options.requester_pays,
        s3_additional_kwargs=encryption,
        config_kwargs={
            "connect_timeout": min(connect, _QUICK_SECONDS) if is_quick else connect,
            "read_timeout": min(read, _QUICK_SECONDS) if is_quick else read,
            "retries": {
                "mode": "standard",
                "total_max_attempts": 1 if is_quick else options.num_attempts,
            },
        },
        # A cached instance would keep old credentials, and a cached listing hide new parts.
        skip_instance_cache=True,
        use_listings_cache=False,
        **session,
    )
    fs.retries = 1  # botocore repeats already; both together would multiply
    return fs
