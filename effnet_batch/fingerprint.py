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
            FingerprintError: names every field that differs.
        """
        mine = self.to_dict()
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
