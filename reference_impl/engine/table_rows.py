"""Block tables as rows of one array that is kept from step to step.

Owns: the row of each request, and the check that memory gave it a block for every token. Knows nothing of plans,
batches or devices.

A step needs every table as an array. To check lists of Python's numbers and make an array of them was a fifth of what
the host did for a step of 256 decodes, and from one step to the next a table stays, or is a block longer. So the blocks
that a request had are kept beside its row; memory is asked for them each time, what is the same is compared, which is
cheaper, and only what is new is checked and converted. Nothing is taken on trust: a request that was preempted,
copied a block or ended and came back has another table, and its row is written anew.

    rows    [places, columns] int32; a request has a place; behind its last block stands -1
    seen    request -> its place and the blocks that stand there

Cost: O(blocks) comparisons of a pointer a request, O(new blocks) of Python, and a copy of the rows that were asked for.
Invariants: no two requests have one place; a row holds the blocks seen and -1 behind them; a place of nobody's is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.kv_memory import PlacedMemory

_NO_BLOCK = -1
_SPARE = 64
"""Requests beyond twice those of a step whose rows are kept, as they may be in the next."""


@dataclass(slots=True)
class _Seen:
    place: int
    blocks: list[int]


class TableRows:
    """The tables of `memory`, by request. One caller at a time."""

    def __init__(self, memory: PlacedMemory) -> None:
        self.memory = memory
        self._rows: NDArray[np.int32] = np.empty((0, 0), dtype=np.int32)
        self._seen: dict[int, _Seen] = {}
        self._free: list[int] = []

    def of(self, requests: Sequence[int], num_tokens: Sequence[int]) -> NDArray[np.int32]:
        """[len(requests), blocks of the longest] int32: the blocks of each one's first tokens, and -1 behind them.

        The caller's own copy. Raises: ValueError naming the request if its table has no block for one of its tokens, or
        a block that memory does not have; KeyError on a request that memory does not know. Then the rows are as true as
        before.
        """
        if len(self._seen) > 2 * len(requests) + _SPARE:
            self._forget_all_but(frozenset(requests))
        block_table, size, seen = self.memory.block_table, self.memory.block_size, self._seen
        counts = [blocks_for(tokens, size) for tokens in num_tokens]
        places: list[int] = []
        for request, count in zip(requests, counts, strict=True):
            blocks = block_table(request)
            if len(blocks) != count:
                if len(blocks) < count:
                    last = num_tokens[len(places)] - 1
                    raise ValueError(f"request {request}: {len(blocks)} blocks of {size} have no slot for token {last}")
                blocks = blocks[:count]
            row = seen.get(request)
            if row is None or row.blocks != blocks:
                row = self._learn(request, blocks)
            places.append(row.place)
        return self._rows[np.array(places, dtype=np.intp), : max(counts, default=0)]

    def _learn(self, request: int, blocks: list[int]) -> _Seen:
        """A table that is new or has changed."""
        row = self._seen.get(request)
        known = 0
        if row is not None and blocks[: len(row.blocks)] == row.blocks:
            known = len(row.blocks)
        count = self.memory.num_blocks
        if min(blocks) < 0 or max(blocks) >= count:
            wrong = next(block for block in blocks if not 0 <= block < count)
            raise ValueError(f"request {request} was given block {wrong}; there are 0 to {count - 1}")
        self._make_room(len(blocks), row is None)
        if row is None:
            row = self._seen[request] = _Seen(self._free.pop(), [])
        here = self._rows[row.place]
        here[known : len(blocks)] = blocks[known:]
        here[len(blocks) :] = _NO_BLOCK
        # A copy: a memory that gives out its own list, and lets it grow, would be compared with itself.
        row.blocks = list(blocks)
        return row

    def _make_room(self, columns: int, for_another: bool) -> None:
        """At least so many columns, and a free place if one is needed."""
        places, width = self._rows.shape
        more = max(_SPARE, places) if for_another and not self._free else 0
        if columns > width or more:
            wider = np.full((places + more, max(width, 2 * columns if columns > width else 0)), _NO_BLOCK, np.int32)
            wider[:places, :width] = self._rows
            self._rows = wider
            self._free += range(places, places + more)

    def _forget_all_but(self, requests: frozenset[int]) -> None:
        for request in self._seen.keys() - requests:
            self._free.append(self._seen.pop(request).place)

    def check_invariants(self) -> None:
        """Raises: AssertionError naming the request or the place. Cost: O(rows * columns)."""
        owners = {row.place: request for request, row in self._seen.items()}
        assert len(owners) == len(self._seen), "two requests have one place"
        assert sorted([*owners, *self._free]) == list(range(len(self._rows))), "a place is lost, or free and somebody's"
        for request, row in self._seen.items():
            here = self._rows[row.place].tolist()
            assert here == row.blocks + [_NO_BLOCK] * (len(here) - len(row.blocks)), f"request {request}: {here}"
