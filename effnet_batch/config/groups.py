"""Groups of settings that jobs share."""

import dataclasses

from effnet_batch.config.base import setting
from effnet_batch.vocabulary import KINDS, MEDIA


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """What runs the model."""

    device: str = setting("auto", "Where the model runs.", choices=("auto", "cpu", "cuda"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings(DeviceSettings):
    """What runs the model."""

    engine: str = setting("auto", "What runs it.", choices=("auto", "torch", "openvino"))
    precision: str = setting(
        "auto", "Number format of the forward pass.", choices=("auto", "fp32", "bf16", "fp16")
    )
    batch_size: int | None = setting(
        None, "Images per forward pass; default: automatic.", minimum=1
    )
    compiled: bool = setting(
        False, "Let torch.compile generate the kernels; the first batch then takes up to minutes."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """What decodes images and videos."""

    gpu_decode: bool = setting(
        False, "Decode JPEGs (nvJPEG) and videos (NVDEC) on the GPU; what it cannot, on CPUs."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """How far a precision below fp32 may move what comes out."""

    golden: str | None = setting(
        None, "Sources on which the precision is held against fp32; default: the first of INPUT."
    )
    max_score_drift: float | None = setting(
        None, "Fail the run if the precision moves a score of theirs further.", minimum=0, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What is read, and how it is labelled."""

    kind: str | None = setting(
        None, "What the sources are, if their names do not say.", choices=KINDS
    )
    media_column: str | None = setting(
        None, "Column of image or video bytes in Parquet shards; default: found by its name."
    )
    label_from: str | None = setting(
        None, "Take the label from the parent folder's name.", choices=("parent",)
    )
    recursive: bool = setting(True, "List also the folders inside a folder.")
    skip_bad_lines: bool = setting(
        False, "Leave out entries of a list that are refused, instead of failing."
    )
    limit: int | None = setting(None, "Take only the first N sources.", minimum=1)
    sample: int | None = setting(None, "Take N sources at random.", minimum=1)
    seed: int = setting(0, "Seed of --sample.", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediumSettings:
    """Which medium is read, where the job reads either."""

    medium: str | None = setting(
        None,
        "What plain sources and members of shards are; default: what INPUT holds, shards images.",
        choices=MEDIA,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """How object storage is spoken to; credentials come from the environment only."""

    endpoint_url: str | None = setting(None, "S3 endpoint, if not AWS's own or AWS_ENDPOINT_URL.")
    profile: str | None = setting(None, "AWS profile.")
    anonymous: bool = setting(
        False, "Send no credentials to S3, for public buckets; the output must then be elsewhere."
    )
    requester_pays: bool = setting(False, "Pay for requests to requester-pays buckets.")
    kms_key_id: str | None = setting(None, "KMS key that encrypts what is written to S3.")
    max_requests_per_second: float | None = setting(
        None, "Requests per second of each worker process.", minimum=0.01
    )
    allow_private_hosts: bool = setting(False, "Let http(s) sources name private addresses.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorSettings:
    """Where the work runs."""

    address: str | None = setting(None, "Ray cluster; default: RAY_ADDRESS, else this machine.")
    num_actors: int | None = setting(None, "Model actors; default: fill the cluster.", minimum=1)
    cpus_per_actor: float | None = setting(None, "CPUs of one model actor.", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelActorSettings(ActorSettings):
    """Where the work runs."""

    gpus_per_actor: float | None = setting(None, "GPUs of one model actor.", minimum=0.01)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSettings(ModelActorSettings):
    """Where the work of a job runs that may decode apart from the model."""

    cpus_per_actor: float | None = setting(
        None, "CPUs of one model actor; below 1 for split placement only.", minimum=0.01
    )
    placement: str = setting(
        "auto", "Decode beside the model, or in tasks.", choices=("auto", "fused", "split")
    )
