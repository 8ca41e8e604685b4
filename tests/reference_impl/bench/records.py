"""Records that are wrong in one place, for the tests of what reads them."""

from __future__ import annotations

import copy
from typing import Any


def changed(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of `record` with `value` at the end of `path`, or without that field where the value is None."""
    broken = copy.deepcopy(record)
    where: Any = broken
    for step in path[:-1]:
        where = where[step]
    if value is None:
        del where[path[-1]]
    else:
        where[path[-1]] = value
    return broken
