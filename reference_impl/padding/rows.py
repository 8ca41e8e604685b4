"""Rows of one length from rows of many.

Owns: where the padding goes. Knows nothing of what a token or a pad is: any value will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Token = TypeVar("Token")


def pad_rows(sequences: Sequence[Sequence[Token]], pad: Token, side: str = "left") -> list[list[Token]]:
    """Every sequence as a row as long as the longest, with `pad` on the given side; order and tokens are kept.

    Raises: ValueError on a side other than "left" and "right", or no sequences. Cost: O(rows * longest).
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    if not sequences:
        raise ValueError("no sequences to pad")
    width = max(len(sequence) for sequence in sequences)
    rows = []
    for sequence in sequences:
        pads = [pad] * (width - len(sequence))
        rows.append([*pads, *sequence] if side == "left" else [*sequence, *pads])
    return rows
