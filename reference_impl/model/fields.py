"""Numbers and words out of a mapping that somebody else wrote.

Owns: the check of each value as it is taken, and the line that names file, field and value when it is not what it must
be. Knows nothing of what the fields mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from reference_impl.model.errors import ModelError


class Fields:
    """A mapping read from `where`, a file's name for messages. `None` counts as absent, as it does in JSON configs.

    Every method takes the default for a field that may be absent. Raises: ModelError naming the field otherwise.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def whole(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, f"a whole number of at least {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.wrong(name, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def word(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def part(self, name: str) -> Fields | None:
        """A mapping inside this one, or None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return Fields(value, f"{self.where}: {name}")

    def wrong(self, name: str, must_be: str) -> ModelError:
        """The error for a field that is there and not what it must be."""
        return ModelError(f"{self.where}: {name} must be {must_be}, got {self.values.get(name)!r}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self.where}: {name} is missing")
        return value
