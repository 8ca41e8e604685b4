"""Lengths and sizes as a caller gives them, made plain integers or refused by name.

Owns: the checks that the modules of this package share. A NumPy integer would pass most arithmetic here and then wrap
around in a count of FLOPs, so what comes out is always `int`. Cost: O(n).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex

Lengths = Sequence[SupportsIndex]


def checked_lengths(lengths: Lengths, what: str = "length") -> list[int]:
    """The lengths as integers, none below 0.

    Raises: TypeError on one that is no integer, ValueError on one below 0; both name `what` it is and its index.
    """
    checked = []
    for index, length in enumerate(lengths):
        try:
            number = operator.index(length)
        except TypeError:
            raise TypeError(f"{what} {length!r} at index {index} is not an integer") from None
        if number < 0:
            raise ValueError(f"{what} {number} at index {index} is below 0")
        checked.append(number)
    return checked


def checked_size(what: str, size: SupportsIndex) -> int:
    """The size as an integer of 1 or more. Raises: TypeError if it is no integer, ValueError below 1; both name it."""
    try:
        number = operator.index(size)
    except TypeError:
        raise TypeError(f"{what} {size!r} is not an integer") from None
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}")
    return number
