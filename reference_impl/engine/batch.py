"""From a plan to one flat batch, on the host: which tokens, where they stand, where their keys and values go.

Owns: the order of a batch, and what is checked before anything is computed. Knows nothing of models or devices.

    batch      requests with one token to compute, then the others, in the plan's order within each; then pads
    makers     requests all of whose tokens are computed after this step: each makes a token
    sources    a token that the device chose and the host has not seen yet is taken on the device, by its place there

A scheduler or an allocator may be a student's: a slot that does not exist, or one that two requests would write, is
found here and named, before it becomes a wrong answer.
Cost: O(tokens + blocks in the tables) of Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference_impl.attention.metadata import BatchLayout, BatchRow, lay_out
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.kv_memory import PlacedMemory
from reference_impl.sched.plan import Plan

PAD_TOKEN = 0
"""What a pad computes; any token does, nobody looks at it."""
KNOWN = -1
"""The source of a token whose id the host has."""

TokensOf = Mapping[int, Sequence[int]]
"""Request -> the ids of its tokens, those that it made included."""


@dataclass(frozen=True)
class Batch:
    """token_ids, positions: [tokens] int64, pads included. logit_rows: [makers] int64, where the last token of each is.

    sources: [tokens] int64, `KNOWN` or a place among the tokens that the device chose last; None if all are known.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    layout: BatchLayout
    makers: tuple[int, ...]
    logit_rows: NDArray[np.int64]
    sources: NDArray[np.int64] | None

    @property
    def num_pads(self) -> int:
        return len(self.token_ids) - sum(self.layout.query_tokens)


def build_batch(
    plan: Plan, tokens_of: TokensOf, memory: PlacedMemory, awaited: Mapping[int, int] | None = None
) -> Batch:
    """The flat batch of a plan. awaited: request -> the source of its last token, whose id `tokens_of` guesses.

    Raises: ValueError naming the request if the plan asks for tokens that do not exist, or memory gave a scheduled
    token no slot of its own; KeyError on a request that is unknown to either.
    """
    scheduled, computed = plan.scheduled, plan.computed
    # Stable: a kernel for decodes wants them in one piece, everything else stays in the plan's order.
    order = sorted(scheduled, key=lambda request: scheduled[request] != 1)
    ids: list[int] = []
    positions: list[int] = []
    rows: list[BatchRow] = []
    makers: list[int] = []
    last: list[int] = []
    unseen: list[tuple[int, int]] = []
    for request in order:
        tokens = tokens_of[request]
        start, stop = computed[request], computed[request] + scheduled[request]
        if not 0 <= start < stop <= len(tokens):
            raise ValueError(f"request {request} has {len(tokens)} tokens; the plan computes {start} to {stop - 1}")
        ids += tokens[start:stop]
        positions += range(start, stop)
        rows.append(BatchRow(_table(memory, request, stop), stop - start, stop))
        if stop == len(tokens):
            makers.append(request)
            last.append(len(ids) - 1)
            if awaited and request in awaited:
                unseen.append((len(ids) - 1, awaited[request]))
    num_pads = _num_pads(plan, len(ids))
    layout = lay_out(rows, memory.block_size, num_pads=num_pads)
    _check_writers(layout, order, memory.block_size)
    return Batch(
        token_ids=np.array(ids + [PAD_TOKEN] * num_pads, dtype=np.int64),
        positions=np.array(positions + [0] * num_pads, dtype=np.int64),
        layout=layout,
        makers=tuple(makers),
        logit_rows=np.array(last, dtype=np.int64),
        sources=_sources(unseen, len(ids) + num_pads) if unseen else None,
    )


def _sources(unseen: list[tuple[int, int]], num_tokens: int) -> NDArray[np.int64]:
    sources = np.full(num_tokens, KNOWN, dtype=np.int64)
    places, found = zip(*unseen, strict=True)
    sources[list(places)] = found
    return sources


def _table(memory: PlacedMemory, request: int, num_tokens: int) -> Sequence[int]:
    """The blocks of the first `num_tokens` tokens, all of which must be there."""
    size, count = memory.block_size, memory.num_blocks
    table = memory.block_table(request)[: blocks_for(num_tokens, size)]
    if len(table) * size < num_tokens:
        said = f"{len(table)} blocks of {size} have no slot for token {num_tokens - 1}"
        raise ValueError(f"request {request}: {said}")
    if min(table) < 0 or max(table) >= count:
        wrong = next(block for block in table if not 0 <= block < count)
        raise ValueError(f"request {request} was given block {wrong}; there are 0 to {count - 1}")
    return table


def _num_pads(plan: Plan, tokens: int) -> int:
    """A padded batch computes its whole rectangle."""
    if plan.rectangle is None:
        return 0
    area = plan.rectangle.rows * plan.rectangle.new_tokens
    if area < tokens:
        raise ValueError(f"{plan.rectangle} holds {area} tokens, {tokens} are scheduled")
    return area - tokens


def _check_writers(layout: BatchLayout, order: Sequence[int], block_size: int) -> None:
    """No two tokens of a step are written into one slot."""
    writers = np.repeat(order, layout.query_tokens)
    slots = layout.slot_mapping[: len(writers)]
    by_slot = np.argsort(slots, kind="stable")
    twice = np.flatnonzero(np.diff(slots[by_slot]) == 0)
    if len(twice):
        first, second = by_slot[twice[0]], by_slot[twice[0] + 1]
        block = int(slots[first]) // block_size
        raise ValueError(f"requests {writers[first]} and {writers[second]} both write into block {block}")
