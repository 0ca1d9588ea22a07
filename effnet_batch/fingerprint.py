"""What determines the numbers of an output, and its short name."""

import dataclasses
import hashlib
import json
from typing import Any, Final

from effnet_batch.errors import FingerprintError

RECIPE_VERSION: Final = 1
"""Raised when a change of our own code moves the numbers."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Everything that the numbers depend on. Library versions do not count."""

    fields: dict[str, Any]
    """JSON values."""

    @property
    def digest(self) -> str:
        """16 hex digits that stand in every row."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def check_same(self, stored: dict[str, Any], output: str) -> None:
        """Refuses to mix rows of two fingerprints in one output.

        Raises:
            FingerprintError: names every value that differs, however deep.
        """
        mine, stored = _flat(self.to_dict()), _flat(stored)
        differing = [
            f"  {name}: output has {stored.get(name)!r}, this run {mine.get(name)!r}"
            for name in sorted(mine.keys() | stored.keys())
            if mine.get(name) != stored.get(name)
        ]
        if differing:
            raise FingerprintError(
                f"{output} holds rows of other numbers than this run would write:\n"
                + "\n".join(differing)
                + "\nuse another output, or the settings it was begun with (see its run.json)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns what `check_same` takes as ``stored``, just as it is read back from a file."""
        values = {**self.fields, "recipe_version": RECIPE_VERSION}
        return dict(json.loads(json.dumps(values)))  # a tuple is a list then


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Returns the single values of JSON by their place, such as ``checkpoints[0].faces.margin``."""
    if isinstance(value, dict):
        inner = {f"{name}.{key}" if name else str(key): each for key, each in value.items()}
    elif isinstance(value, list):
        inner = {f"{name}[{place}]": each for place, each in enumerate(value)}
    else:
        return {name: value}
    return {key: leaf for place, each in inner.items() for key, leaf in _flat(each, place).items()}
