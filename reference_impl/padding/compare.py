"""The same requests prefilled under one token budget, batched in every way this package knows.

Owns: which ways are compared and on what terms. Knows nothing of how a way chooses (`batches.py`) or what a batch costs
(`account.py`). Every way runs the same prompts, so slots and FLOPs needed are equal in all of them and what differs is
waste; a way with fewer batches also reads the weights less often.
Invariant: the table's accounts agree on what was needed. Cost: O(n log n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import SupportsIndex

from reference_impl.padding.account import Account, ModelShape, packed_prefill, padded_prefill
from reference_impl.padding.batches import arrival_batches, bucketed, make_batches, pack_rows, windowed
from reference_impl.padding.lengths import Lengths, checked_lengths


@dataclass(frozen=True)
class Way:
    """One way of batching: how many forward passes it took, and the account of all of them."""

    name: str
    batches: int
    account: Account


def padding_table(
    lengths: Lengths, max_tokens: SupportsIndex, shape: ModelShape, boundaries: Lengths, window: SupportsIndex
) -> list[Way]:
    """Arrival order, buckets, sorted windows, first-fit decreasing, packed to a fixed width, packed: in this order.

    `max_tokens` bounds the slots of every forward pass. "packed to width" runs rows of exactly `max_tokens`, as a
    captured graph would; "packed" stops at the last token. Share of padding: `account.slots_lost`.
    Raises: ValueError on no lengths, and as the functions of `batches.py` do. Cost: O(n log n).
    """
    tokens = checked_lengths(lengths)
    if not tokens:
        raise ValueError("no lengths to compare ways of batching on")

    def way(name: str, batches: list[list[int]], cost: Callable[[list[int]], Account]) -> Way:
        accounts = (cost([tokens[index] for index in batch]) for batch in batches)
        return Way(name, len(batches), sum(accounts, start=Account()))

    def padded(batch: list[int]) -> Account:
        return padded_prefill(batch, shape)

    rows = pack_rows(tokens, max_tokens)
    return [
        way("arrival order", arrival_batches(tokens, max_tokens), padded),
        way("bucketed", bucketed(tokens, boundaries, max_tokens), padded),
        way("sorted windows", windowed(tokens, window, max_tokens), padded),
        way("first-fit decreasing", make_batches(tokens, max_tokens), padded),
        way("packed to width", rows, lambda row: packed_prefill(row, shape, width=max_tokens)),
        way("packed", rows, lambda row: packed_prefill(row, shape)),
    ]
