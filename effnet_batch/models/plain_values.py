"""Frozen dataclasses from JSON values that a stranger wrote: every name and type is checked."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from effnet_batch.errors import WeightsError

T = TypeVar("T")


def from_plain(cls: type[T], values: object, where: str) -> T:
    """Builds a dataclass from the JSON object that ``dataclasses.asdict`` would make of it.

    Args:
        cls: a dataclass of numbers, texts, flags, tuples, plain dicts and such dataclasses.
        values: what ``json.loads`` returned.
        where: named in errors.

    Raises:
        WeightsError: a name is unknown or missing, or a value has another type or is out of range.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{where} is {_kind(values)}, expected an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise WeightsError(f"{where} has an unknown field {name!r}{hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise WeightsError(f"{where} lacks {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    checked = {
        name: _checked(value, hints[name], f"{where}.{name}") for name, value in values.items()
    }
    try:
        return cls(**checked)
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error


def _checked(value: object, hint: Any, where: str) -> Any:
    """Returns the value as its annotation wants it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not types.NoneType)
        return _checked(value, hint, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    if origin is tuple:
        is_open = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (is_open or len(value) == len(arguments)):
            raise WeightsError(f"{where} is {_kind(value)}, expected a list of {hint}")
        return tuple(
            _checked(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value)
        )
    if origin is dict:
        hint = dict
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(typing.cast(float, value)):
        return float(typing.cast(float, value))
    if hint is float or not isinstance(value, hint) or (hint is int and not is_number):
        expected = "a finite number" if hint is float else hint.__name__
        raise WeightsError(f"{where} is {_kind(value)} {value!r:.80}, expected {expected}")
    return value


def _kind(value: object) -> str:
    return type(value).__name__
