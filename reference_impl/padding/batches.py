"""Which sequences share a batch, and what the padding then costs in slots.

Why: a batch is as wide as its longest row, so the choice of neighbours is the whole cost of padding.
Owns: the choice, from lengths alone. Knows nothing of tokens, tensors, time or models; every batch is a list of indices
into `lengths`. A padded batch is within the budget when `len(batch) * longest <= max_tokens`, a packed row when the sum
of its lengths is. Length 0 is allowed: it costs a place and no token.
Invariants: each index in exactly one batch; no batch is empty; no batch exceeds the budget.
Cost: O(n log n) for each function at most. Ties go to the earlier index, so the same lengths give the same batches.
Source: first-fit decreasing is Johnson, 1973, with the tight bound 11/9 OPT + 6/9 of Dosa, 2007; packing sequences with
it is Krell et al., 2021.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import SupportsIndex

from reference_impl.padding.first_fit import FirstFit
from reference_impl.padding.lengths import Lengths, checked_lengths


def padding_share(lengths: Lengths) -> float:
    """Share of the padded rectangle that holds padding, 0 to 1; 0 where every row is empty, for nothing is padded.

    Raises: ValueError on an empty batch (it has no rectangle) or a length below 0. Cost: O(n).
    """
    checked = checked_lengths(lengths)
    if not checked:
        raise ValueError("no lengths: an empty batch has no padding share")
    slots = len(checked) * max(checked)
    return (slots - sum(checked)) / slots if slots else 0.0


def arrival_batches(lengths: Lengths, max_tokens: SupportsIndex) -> list[list[int]]:
    """The baseline: requests in the order they came, a new padded batch whenever the next would break the budget.

    Raises: ValueError as `make_batches`. Cost: O(n).
    """
    checked, budget = _within_budget(lengths, max_tokens)
    return _cut(range(len(checked)), checked, budget)


def make_batches(lengths: Lengths, max_tokens: SupportsIndex) -> list[list[int]]:
    """Padded batches by first-fit decreasing: `len(batch) * longest <= max_tokens`, longest first; none for no lengths.

    In falling order the first row of a batch is its width, so how many rows fit is fixed when it opens, whatever they
    are: every batch but the last is full, and first fit is a cut of the sorted list. No choice of batches has fewer:
    swap the longest rows into the batch of the longest, and no batch grows wider. It need not have the fewest pads.
    Raises: ValueError on a length below 0 or above max_tokens (with its index), or max_tokens < 1. Cost: O(n log n).
    """
    checked, budget = _within_budget(lengths, max_tokens)
    return _cut(_falling(checked), checked, budget)


def windowed(lengths: Lengths, window: SupportsIndex, max_tokens: SupportsIndex) -> list[list[int]]:
    """`make_batches` inside each window of `window` arrivals: sorting for a server that cannot wait for everyone.

    Raises: ValueError as `make_batches`, or on a window below 1. Cost: O(n log window).
    """
    checked, budget = _within_budget(lengths, max_tokens)
    size = operator.index(window)
    if size < 1:
        raise ValueError(f"window must be at least 1, got {size}")
    batches = []
    for start in range(0, len(checked), size):
        inside = make_batches(checked[start : start + size], budget)
        batches += [[start + index for index in batch] for batch in inside]
    return batches


def bucketed(lengths: Lengths, boundaries: Lengths, max_tokens: SupportsIndex) -> list[list[int]]:
    """Padded batches of neighbours in length, made online: a bucket takes lengths up to its boundary, in arrival order.

    Bucket k holds lengths above `boundaries[k - 1]` and up to `boundaries[k]`; each fills batches of its own, so a row
    is padded by no more than its bucket is wide. Batches come bucket by bucket, and inside one as requests arrived.
    Raises: ValueError as `make_batches`, on boundaries that do not rise, or a length above the last. Cost: O(n log b).
    """
    checked, budget = _within_budget(lengths, max_tokens)
    edges = checked_lengths(boundaries, "boundary")
    if not edges or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"boundaries must be at least one and rise, got {edges}")
    buckets: list[list[int]] = [[] for _ in edges]
    for index, length in enumerate(checked):
        if length > edges[-1]:
            raise ValueError(f"length {length} at index {index} is above the last boundary, {edges[-1]}")
        buckets[bisect_left(edges, length)].append(index)
    return [batch for bucket in buckets for batch in _cut(bucket, checked, budget)]


def pack_rows(lengths: Lengths, max_tokens: SupportsIndex) -> list[list[int]]:
    """Packed rows by first-fit decreasing: the lengths of a row sum to at most max_tokens; none for no lengths.

    Any two rows together hold more than max_tokens, so where there are several, they are fewer than twice as many as
    the tokens alone would fill. They are never more than 11/9 of the fewest possible plus 6/9.
    Raises: ValueError as `make_batches`. Cost: O(n log n).
    """
    checked, budget = _within_budget(lengths, max_tokens)
    bins = FirstFit(len(checked), budget)
    rows: list[list[int]] = []
    for index in _falling(checked):
        place = bins.put(checked[index])
        if place == len(rows):
            rows.append([])
        rows[place].append(index)
    return rows


def _cut(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The order cut where the next row would take the padded batch over the budget."""
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, lengths[index])
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def _falling(lengths: Sequence[int]) -> list[int]:
    # `reverse` keeps the order of equals, where negated or reversed results would not.
    return sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)


def _within_budget(lengths: Lengths, max_tokens: SupportsIndex) -> tuple[list[int], int]:
    budget = operator.index(max_tokens)
    if budget < 1:
        raise ValueError(f"max_tokens must be at least 1, got {budget}")
    checked = checked_lengths(lengths)
    for index, length in enumerate(checked):
        if length > budget:
            raise ValueError(f"length {length} at index {index} is above max_tokens, {budget}")
    return checked, budget
