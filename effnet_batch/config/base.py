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
from typing import Any, ClassVar, Self, TypeVar

from effnet_batch.errors import ConfigError

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


def settings_of(group: type[Any], medium: str) -> dict[str, str]:
    """Returns the medium by the name of every setting of a group, for `JobConfig.OF_ONE_MEDIUM`."""
    return {field.name: medium for field in dataclasses.fields(group)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobConfig:
    """A job's whole configuration: fields are groups of settings. Subclasses name the groups."""

    NUMBER_GROUPS: ClassVar[tuple[str, ...]] = ()
    """Groups that the output's numbers depend on."""
    OF_ONE_MEDIUM: ClassVar[dict[str, str]] = {}
    """Settings that say nothing of the other medium than this one."""

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

    @classmethod
    def merged(cls, config: Self | None, values: dict[str, Any]) -> Self:
        """Returns a configuration (the default one if None) with flat values laid over it.

        Raises:
            ConfigError: as `from_flat`.
        """
        return cls.from_flat({**(config.to_flat() if config else {}), **values})

    def group(self, kind: type[_Group]) -> _Group:
        """Returns the group of settings of this kind."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, kind):
                return value
        raise KeyError(kind.__name__)

    def check_medium(self, medium: str) -> None:
        """Refuses settings that say nothing of what is read.

        Raises:
            ConfigError: one is not its default; names them.
        """
        values: dict[str, Any] = self.to_flat()
        idle = [
            name
            for name, (_, field) in self.settings().items()
            if self.OF_ONE_MEDIUM.get(name, medium) != medium and values[name] != field.default
        ]
        if idle:
            raise ConfigError(
                f"{', '.join(idle)} say nothing of {medium}s, which are read here; leave them out, "
                "or say with --medium that the input holds something else"
            )

    def to_flat(self) -> dict[str, Any]:
        """Returns flat names and plain values; `from_flat` takes them back."""
        flat: dict[str, Any] = {}
        for group in dataclasses.fields(self):
            flat.update(dataclasses.asdict(getattr(self, group.name)))
        return flat


def load_toml(path: str, job: str | None = None) -> dict[str, Any]:
    """Reads a TOML file of flat settings; tables are not used.

    Args:
        path: of the file.
        job: whose settings they shall be. A file may name its ``job``, so that no other one takes
            it; that name is returned only where ``job`` is None.

    Raises:
        ConfigError: the file is missing, is not TOML, holds a table, or is of another job.
    """
    try:
        values = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for name, value in values.items():
        if isinstance(value, dict):
            raise ConfigError(f"{path}: settings are flat, so write its keys without [{name}]")
    if job is not None and (named := values.pop("job", job)) != job:
        raise ConfigError(f"{path} holds settings of {named}, not of {job}")
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
    if typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is str:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{name} must be a list of texts, got {value!r}")
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
