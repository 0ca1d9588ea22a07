"""Frozen, validated configuration: one set of names for TOML files, flags and the Python API.

Settings stand in groups that jobs share; on the surface they are flat, so that ``batch_size`` in a
TOML file, ``--batch-size`` on the command line and ``batch_size=`` in Python are one thing.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Self, TypeVar

from effnet_batch.errors import ConfigError
from effnet_batch.vocabulary import KIND_IMAGE, KINDS, MEDIA

_MIB = 1 << 20
_Group = TypeVar("_Group")


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declares one setting: its default, one sentence of help, and the values it allows."""
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which backbone, which weights, and what the weights do not say themselves."""

    model: str = setting("efficientnet_b0", "Backbone; `effnet-batch models` lists them.")
    weights: str | None = setting(
        None, "Path, URL, hf://owner/repo, registry name, or random; default: the model's own."
    )
    padding: str | None = setting(
        None,
        "Padding of unknown weights.",
        choices=("symmetric", "same", "same_static"),
    )
    bn_eps: float | None = setting(None, "BatchNorm epsilon of unknown weights.", minimum=0)
    mean: tuple[float, float, float] | None = setting(None, "RGB mean of unknown weights, of 0..1.")
    std: tuple[float, float, float] | None = setting(None, "RGB deviation of unknown weights.")
    interpolation: str | None = setting(
        None, "Resize kernel.", choices=("bilinear", "bicubic", "lanczos", "nearest")
    )
    image_size: int | None = setting(None, "Side of the model's input in pixels.", minimum=32)
    crop_pct: float | None = setting(
        None, "Image size as a share of the resized short side.", minimum=0.1, maximum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What runs the model."""

    device: str = setting("auto", "Where the model runs.", choices=("auto", "cpu", "cuda"))
    engine: str = setting("auto", "What runs it.", choices=("auto", "torch", "openvino"))
    precision: str = setting(
        "auto", "Number format of the forward pass.", choices=("auto", "fp32", "bf16", "fp16")
    )
    batch_size: int | None = setting(
        None, "Images per forward pass; default: automatic.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What is read, and how it is labelled."""

    kind: str | None = setting(
        None, "What the sources are, if their names do not say.", choices=KINDS
    )
    image_column: str | None = setting(None, "Column of image or video bytes in Parquet shards.")
    label_from: str | None = setting(
        None, "Take the label from the parent folder's name.", choices=("parent",)
    )
    limit: int | None = setting(None, "Take only the first N sources.", minimum=1)
    sample: int | None = setting(None, "Take N sources at random.", minimum=1)
    seed: int = setting(0, "Seed of --sample.", minimum=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediumSettings:
    """Which medium is read, where a job does not say it by itself."""

    medium: str = setting(KIND_IMAGE, "What plain sources and members are.", choices=MEDIA)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """Bounds that keep bad input from taking the job down."""

    max_image_bytes: int = setting(256 * _MIB, "Larger encoded images are too_large.", minimum=1)
    max_pixels: int = setting(178_956_970, "Images of more pixels are too_large.", minimum=1)
    timeout_seconds: float = setting(60.0, "Longest decode of one image.", minimum=0.1)
    max_decode_memory_bytes: int = setting(
        4096 * _MIB, "Memory of the process that decodes a suspect image.", minimum=64 * _MIB
    )
    max_failures: float = setting(
        0.05, "Share of failed records above which the exit code is 3.", minimum=0, maximum=1
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
        None, "Requests per second and worker process.", minimum=0.01
    )
    allow_private_hosts: bool = setting(False, "Let http(s) sources name private addresses.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What a row holds and how rows become parts."""

    top_k: int = setting(0, "Also store the K best classes and their scores.", minimum=0)
    logits: bool = setting(False, "Also store the logits of all classes.")
    dtype: str = setting(
        "float32", "Number format of stored vectors.", choices=("float32", "float16")
    )
    rows_per_part: int | None = setting(
        None, "Sources per part; default: automatic, at most 5,000.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where the work runs."""

    address: str | None = setting(None, "Ray cluster; default: RAY_ADDRESS, else this machine.")
    placement: str = setting(
        "auto", "Decode beside the model, or in tasks.", choices=("auto", "fused", "split")
    )
    num_actors: int | None = setting(None, "Model actors; default: fill the cluster.", minimum=1)
    cpus_per_actor: float | None = setting(
        None, "CPUs of one model actor; below 1 for split placement only.", minimum=0.01
    )
    gpus_per_actor: float | None = setting(None, "GPUs of one model actor.", minimum=0.01)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A job's whole configuration: fields are groups of settings. Subclasses name the groups."""

    @classmethod
    def settings(cls) -> dict[str, tuple[str, dataclasses.Field[Any]]]:
        """Returns every setting as name -> (name of its group, field), in order."""
        found: dict[str, tuple[str, dataclasses.Field[Any]]] = {}
        for group in dataclasses.fields(cls):
            for field in dataclasses.fields(typing.get_type_hints(cls)[group.name]):
                assert field.name not in found, f"two groups name a setting {field.name!r}"
                found[field.name] = (group.name, field)
        return found

    @classmethod
    def from_flat(cls, values: dict[str, Any]) -> Self:
        """Builds the configuration from flat names.

        Raises:
            ConfigError: a name is unknown (the nearest known one is given), or a value is of the
                wrong type or outside what its setting allows.
        """
        known = cls.settings()
        groups: dict[str, dict[str, Any]] = {group.name: {} for group in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown setting {name!r}{hint}")
            group, field = known[name]
            hints = typing.get_type_hints(typing.get_type_hints(cls)[group])
            groups[group][name] = _checked(field, hints[name], value)
        hints = typing.get_type_hints(cls)
        return cls(**{name: hints[name](**values) for name, values in groups.items()})

    def group(self, kind: type[_Group]) -> _Group:
        """Returns the group of settings of this kind."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, kind):
                return value
        raise KeyError(kind.__name__)

    def to_flat(self) -> dict[str, Any]:
        """Returns flat names and plain values; `from_flat` takes them back."""
        flat: dict[str, Any] = {}
        for group in dataclasses.fields(self):
            flat.update(dataclasses.asdict(getattr(self, group.name)))
        return flat


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig(JobConfig):
    """Configuration of the embedding job."""

    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    limits: LimitSettings = dataclasses.field(default_factory=LimitSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)
    output: OutputSettings = dataclasses.field(default_factory=OutputSettings)
    cluster: ClusterSettings = dataclasses.field(default_factory=ClusterSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManifestConfig(JobConfig):
    """Configuration of a listing on its own."""

    medium: MediumSettings = dataclasses.field(default_factory=MediumSettings)
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    storage: StorageSettings = dataclasses.field(default_factory=StorageSettings)


def load_toml(path: str) -> dict[str, Any]:
    """Reads a TOML file of flat settings; tables are not used.

    Raises:
        ConfigError: the file is missing, is not TOML, or holds a table.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for name, value in values.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: settings are flat, so write its keys without [{name}]")
    return values


def _checked(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Returns ``value`` as the setting's type, or says what it allows."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"{field.name} cannot be empty")
    kind = next(option for option in options if option is not type(None))
    value = _converted(field.name, kind, value)
    if (choices := field.metadata["choices"]) and value not in choices:
        raise ConfigError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}")
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    if low is not None and value < low:
        raise ConfigError(f"{field.name} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise ConfigError(f"{field.name} must be at most {high}, got {value}")
    return value


def _converted(name: str, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is tuple:
        length = len(typing.get_args(kind))
        if (
            isinstance(value, list | tuple)
            and len(value) == length
            and all(_is_number(item) for item in value)
        ):
            return tuple(float(item) for item in value)
        raise ConfigError(f"{name} must be {length} numbers, got {value!r}")
    if kind is float:
        if _is_number(value):
            return float(value)
    # bool is an int in Python; `top_k = true` is a mistake all the same.
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{name} must be {kind.__name__}, got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
