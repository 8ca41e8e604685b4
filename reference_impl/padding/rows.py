"""Rows of one length from rows of many.

Owns: where the padding goes and how wide the rectangle is. Knows nothing of what a token or a pad is: any value will
do.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import SupportsIndex, TypeVar

Token = TypeVar("Token")


def padded_width(longest: int, multiple_of: SupportsIndex = 1) -> int:
    """The width of the rectangle: `longest` tokens, rounded up to a multiple. No token needs no width.

    Hardware likes widths that divide by the tile of its kernels; a few more pads buy that. Raises: ValueError on a
    length below 0 or a multiple below 1. Cost: O(1).
    """
    multiple = operator.index(multiple_of)
    if multiple < 1:
        raise ValueError(f"multiple_of must be at least 1, got {multiple}")
    if longest < 0:
        raise ValueError(f"longest must be at least 0, got {longest}")
    return -(-longest // multiple) * multiple


def pad_rows(
    sequences: Sequence[Sequence[Token]], pad: Token, side: str = "left", multiple_of: SupportsIndex = 1
) -> list[list[Token]]:
    """Every sequence as a row as long as the longest, with `pad` on the given side; order and tokens are kept.

    The common length is rounded up to `multiple_of`. Raises: ValueError on a side other than "left" and "right", no
    sequences, or a multiple below 1. Cost: O(rows * longest).
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    if len(sequences) == 0:
        raise ValueError("no sequences to pad")
    width = padded_width(max(len(sequence) for sequence in sequences), multiple_of)
    rows = []
    for sequence in sequences:
        pads = [pad] * (width - len(sequence))
        rows.append([*pads, *sequence] if side == "left" else [*sequence, *pads])
    return rows
