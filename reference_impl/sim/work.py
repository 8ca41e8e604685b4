"""What one step computes and moves, counted in tokens.

Owns: the counts of one step and how they follow from a plan. Knows nothing of models, devices or seconds.
A request of `c` computed tokens that computes `n` more has `n` tokens, `n * c + n * (n + 1) / 2` pairs of query and
key, and reads the keys and values of `c + n` tokens. A padded batch does all of that for every row of its rectangle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reference_impl.sched.plan import Plan, Rectangle


@dataclass(frozen=True, slots=True)
class StepWork:
    """Work of one step, or of several added up.

    rows: requests that compute. tokens: tokens computed, pads included. pairs: (query, key) pairs, causal.
    kv_read: tokens whose keys and values are read. copied_tokens: tokens copied on the device to make room or to
    unshare. swapped_tokens: tokens moved between device and host; swap_copies: blocks in which they move.
    """

    steps: int = 1
    rows: int = 0
    tokens: int = 0
    pairs: int = 0
    kv_read: int = 0
    copied_tokens: int = 0
    swapped_tokens: int = 0
    swap_copies: int = 0

    def __add__(self, other: StepWork) -> StepWork:
        # Field by field: a simulator adds a hundred thousand of them, and the general way takes ten times as long.
        return StepWork(
            self.steps + other.steps,
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.kv_read + other.kv_read,
            self.copied_tokens + other.copied_tokens,
            self.swapped_tokens + other.swapped_tokens,
            self.swap_copies + other.swap_copies,
        )


def work_of(plan: Plan, block_tokens: int = 1) -> StepWork:
    """The work of a plan whose blocks hold `block_tokens`.

    Cost: two sums over the scheduled requests when all of them decode, a loop over them otherwise.
    """
    swaps = 0
    if plan.swapped_out or plan.swapped_in:
        swaps = sum(map(len, plan.swapped_out.values())) + sum(map(len, plan.swapped_in.values()))
    copied = len(plan.copies) * block_tokens
    if plan.rectangle is not None:
        rows, tokens, pairs, kv_read = _rectangle(plan.rectangle)
    else:
        rows, tokens, pairs, kv_read = _scheduled(plan.scheduled, plan.computed)
    return StepWork(1, rows, tokens, pairs, kv_read, copied, swaps * block_tokens, swaps)


def _scheduled(scheduled: Mapping[int, int], computed: Mapping[int, int]) -> tuple[int, int, int, int]:
    rows, tokens = len(scheduled), sum(scheduled.values())
    context = sum(computed.values()) if len(computed) == rows else sum(computed[request] for request in scheduled)
    if tokens == rows:
        # One token each: as many pairs as keys.
        return rows, tokens, context + rows, context + rows
    pairs = sum(new * computed[request] + new * (new + 1) // 2 for request, new in scheduled.items())
    return rows, tokens, pairs, context + tokens


def _rectangle(padded: Rectangle) -> tuple[int, int, int, int]:
    new, context = padded.new_tokens, padded.context_tokens
    pairs = padded.rows * (new * context + new * (new + 1) // 2)
    return padded.rows, padded.rows * new, pairs, padded.rows * (context + new)
