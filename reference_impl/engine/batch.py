"""From a plan to one flat batch, on the host: which tokens, where they stand, where their keys and values go.

Owns: the order of a batch, and what is checked before anything is computed. Knows nothing of models or devices.

    batch      requests with one token to compute, then the others, in the plan's order within each; then pads
    makers     requests all of whose tokens are computed after this step: each makes a token
    sources    a token that the device chose and the host has not seen yet is taken on the device, by its place there

A scheduler or an allocator may be a student's: a slot that does not exist, or one that two requests would write, is
found here and named, before it becomes a wrong answer.
Cost: O(requests + tokens) of Python, and what the tables cost (`table_rows.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import add

import numpy as np
from numpy.typing import NDArray

from reference_impl.attention.metadata import BatchLayout, lay_out
from reference_impl.engine.table_rows import TableRows
from reference_impl.sched.plan import Plan

PAD_TOKEN = 0
"""What a pad computes; any token does, nobody looks at it."""
KNOWN = -1
"""The source of a token whose id the host has."""
AWAITED = -1
"""What a graph reads in place of a token id that only the device knows."""

TokensOf = Mapping[int, Sequence[int]]
"""Request -> the ids of its tokens, those that it made included."""


@dataclass(frozen=True)
class Batch:
    """token_ids: [tokens] int64, pads included. logit_rows: [makers] int64, where the last token of each is.

    sources: [tokens] int64, `KNOWN` or a place among the tokens that the device chose last; None if all are known.
    """

    token_ids: NDArray[np.int64]
    layout: BatchLayout
    makers: tuple[int, ...]
    logit_rows: NDArray[np.int64]
    sources: NDArray[np.int64] | None


def build_batch(plan: Plan, tokens_of: TokensOf, tables: TableRows, awaited: Mapping[int, int] | None = None) -> Batch:
    """The flat batch of a plan. awaited: request -> the source of its last token, whose id `tokens_of` guesses.

    Raises: ValueError naming the request if the plan asks for tokens that do not exist, or memory gave a scheduled
    token no slot of its own; KeyError on a request that is unknown to either.
    """
    order = _order(plan.scheduled)
    counts = list(map(plan.scheduled.__getitem__, order))
    starts = list(map(plan.computed.__getitem__, order))
    stops = list(map(add, starts, counts))
    tokens = list(map(tokens_of.__getitem__, order))
    ends = list(map(len, tokens))
    for request, start, stop, end in zip(order, starts, stops, ends, strict=True):
        if not 0 <= start < stop <= end:
            raise ValueError(f"request {request} has {end} tokens; the plan computes {start} to {stop - 1}")
    num_pads = _num_pads(plan, sum(counts))
    layout = lay_out(tables.of(order, stops), counts, stops, tables.memory.block_size, num_pads=num_pads)
    _check_writers(layout, order, tables.memory.block_size)
    makers, logit_rows = _makers(order, stops, ends, layout.cu_seqlens)
    return Batch(
        token_ids=_token_ids(tokens, starts, stops, layout.num_decodes, num_pads),
        layout=layout,
        makers=makers,
        logit_rows=logit_rows,
        sources=_sources(makers, logit_rows, awaited, sum(counts) + num_pads) if awaited else None,
    )


def _order(scheduled: Mapping[int, int]) -> list[int]:
    """A kernel for decodes wants them in one piece, everything else stays in the plan's order."""
    several = [request for request, count in scheduled.items() if count != 1]
    return [request for request, count in scheduled.items() if count == 1] + several if several else list(scheduled)


def _makers(
    order: Sequence[int], stops: Sequence[int], ends: Sequence[int], cu_seqlens: NDArray[np.int32]
) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """The requests that make a token, and where the last token of each is in the batch."""
    last_rows = cu_seqlens[1:].astype(np.int64) - 1
    if stops == ends:
        return tuple(order), last_rows
    making = [place for place, (stop, end) in enumerate(zip(stops, ends, strict=True)) if stop == end]
    return tuple([order[place] for place in making]), last_rows[making]


def _token_ids(
    tokens: Sequence[Sequence[int]], starts: Sequence[int], stops: Sequence[int], singles: int, num_pads: int
) -> NDArray[np.int64]:
    """The ids from each start to before each stop, end to end; the first `singles` have one of them each."""
    ids = [known[start] for known, start in zip(tokens[:singles], starts[:singles], strict=True)]
    for known, start, stop in zip(tokens[singles:], starts[singles:], stops[singles:], strict=True):
        ids += known[start:stop]
    return np.array(ids + [PAD_TOKEN] * num_pads, dtype=np.int64)


def _sources(
    makers: Sequence[int], logit_rows: NDArray[np.int64], awaited: Mapping[int, int], num_tokens: int
) -> NDArray[np.int64] | None:
    """The source of each token; None if all are known."""
    places = [awaited.get(request, KNOWN) for request in makers]
    if not places or max(places) == KNOWN:
        return None
    sources = np.full(num_tokens, KNOWN, dtype=np.int64)
    sources[logit_rows] = places
    return sources


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
    slots = layout.slot_mapping[: sum(layout.query_tokens)]
    ordered = np.sort(slots)
    if not (ordered[1:] == ordered[:-1]).any():
        return
    writers = np.repeat(order, layout.query_tokens)
    by_slot = np.argsort(slots, kind="stable")
    twice = np.flatnonzero(np.diff(slots[by_slot]) == 0)
    first, second = by_slot[twice[0]], by_slot[twice[0] + 1]
    block = int(slots[first]) // block_size
    raise ValueError(f"requests {writers[first]} and {writers[second]} both write into block {block}")
