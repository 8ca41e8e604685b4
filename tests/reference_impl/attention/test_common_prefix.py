"""How much of their beginning the sequences of a batch have in the same blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.attention.common_prefix import common_prefix_tokens, spared_bytes


def found(rows: list[list[int]], contexts: list[int], block_size: int) -> int:
    """As a batch has them: -1 behind the last block of a sequence."""
    tables = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int32)
    for place, row in enumerate(rows):
        tables[place, : len(row)] = row
    return common_prefix_tokens(tables, contexts, block_size)


@pytest.mark.parametrize(
    ("rows", "contexts", "expected"),
    [
        ([], [], 0),
        ([[3, 1, 2]], [12], 0),
        ([[3, 1, 2], [3, 1, 4]], [9, 10], 8),
        ([[3, 1, 2], [3, 1, 4], [5, 1, 2]], [9, 10, 12], 0),
        ([[3, 1, 2], [3, 7, 2]], [12, 12], 4),
        ([[3, 1], [3, 1]], [7, 7], 4),
        ([[3, 1, 2], [3, 1]], [9, 8], 8),
        ([[3], [3, 1]], [3, 8], 0),
    ],
)
def test_whole_blocks_that_every_context_fills_are_counted(
    rows: list[list[int]], contexts: list[int], expected: int
) -> None:
    assert found(rows, contexts, 4) == expected


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=2, max_size=5),
    block_size=st.integers(1, 4),
    data=st.data(),
)
@settings(deadline=None)
def test_it_is_the_longest_run_that_a_loop_finds(rows: list[list[int]], block_size: int, data: st.DataObject) -> None:
    contexts = [data.draw(st.integers(1, len(row) * block_size)) for row in rows]
    run = 0
    while all(
        run < context // block_size and row[run] == rows[0][run] for row, context in zip(rows, contexts, strict=True)
    ):
        run += 1
    assert found(rows, contexts, block_size) == run * block_size


def test_what_is_spared_is_what_all_but_one_would_read_again() -> None:
    assert spared_bytes(64, 4096, 4096) == 63 * 2**24
    assert spared_bytes(1, 4096, 4096) == spared_bytes(0, 4096, 4096) == 0
