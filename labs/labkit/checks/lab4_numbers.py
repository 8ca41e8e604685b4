"""The public properties of lab 4 on numbers: scores of any size, precision, long and unequal contexts.

Owns: the groups `numerics`, `split_kv` and the two on bandwidth, whose public half is that such shapes are right: speed
is measured where the course is graded. Scores are made exact where they are huge, so that no rounding of theirs counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from labkit.checks.paged import Fill, attend, batch, check_near
from labkit.checks.story import Make, group
from labkit.gpu import where

if TYPE_CHECKING:
    from torch import Tensor


def _ones(query: Tensor) -> Tensor:
    return query * 0 + 1


def _scored(score: Callable[[int, int], float]) -> Fill:
    """Keys of which a query of ones gets `score(token, tokens)` times the numbers in a head, under a scale of 1."""

    def keys(row: int, numbers: Tensor) -> Tensor:
        length = len(numbers)
        scores = numbers.new_tensor([score(token, length) for token in range(length)])
        return scores[:, None, None].expand_as(numbers)

    return keys


def large_scores_do_not_overflow(make: Make) -> None:
    """Scores of 1,280 and -1,280: exp of the first is no float32, their softmax is."""
    given = batch([9], scale=1.0, queries=_ones, keys=_scored(lambda token, _: 40.0 if token in (2, 7) else -40.0))
    check_near(given, attend(make, given))


def scores_far_below_zero_do_not_vanish(make: Make) -> None:
    """Scores that are all -1,280: exp of each is 0, but their softmax is not 0 / 0."""
    given = batch([6, 1], scale=1.0, queries=_ones, keys=_scored(lambda token, _: -40.0))
    check_near(given, attend(make, given))


def a_late_maximum_rescales_what_came_before(make: Make) -> None:
    """Scores that rise from block to block: each new maximum shrinks what was summed before it."""
    rising = _scored(lambda token, length: (token - length) / 64)
    given = batch([18], scale=1.0, queries=_ones, keys=rising)
    check_near(given, attend(make, given))


def float16_is_summed_in_float32(make: Make) -> None:
    """800 values near 100 in float16: their sum is above 65,504, the largest float16, and their mean is not."""
    given = batch(
        [800],
        heads=1,
        kv_heads=1,
        block_size=64,
        dtype="float16",
        queries=lambda query: query * 0,
        values=lambda row, numbers: numbers + 100,
    )
    check_near(given, attend(make, given))


def float16_products_are_summed_in_float32(make: Make) -> None:
    """Products of float16 numbers add up to 131,072 before the scale makes 32 of them: float16 ends at 65,504."""
    given = batch(
        [9],
        dtype="float16",
        scale=2.0**-12,
        queries=lambda query: query * 0 + 64,
        keys=_scored(lambda token, _: 64.0 if token == 4 else 62.0),
    )
    check_near(given, attend(make, given))


def float16_weights_are_summed_in_float32(make: Make) -> None:
    """In float16 too weights are added in float32: a thousand small ones beside a large one count for 0.6 percent."""
    # exp(-12), and a tile of 64 of them, is less than half of the step between float16 numbers behind 1.
    first = _scored(lambda token, _: 12 / 32 if token == 0 else 0.0)
    given = batch(
        [1001],
        heads=1,
        kv_heads=1,
        block_size=32,
        dtype="float16",
        scale=1.0,
        queries=_ones,
        keys=first,
        values=lambda row, numbers: numbers * 0 + 1,
    )
    check_near(given, attend(make, given))


def float32_keeps_its_precision(make: Make) -> None:
    """In float32 the error is at most 1e-5 of the answer (on a GPU a tl.dot needs input_precision="ieee" for it)."""
    given = batch([33, 20], heads=4, head_dim=64, block_size=16)
    check_near(given, attend(make, given))


def long_contexts_are_right(make: Make) -> None:
    """Contexts of several hundred tokens, over more parts than one."""
    given = batch([600, 513], heads=2, kv_heads=1, block_size=16)
    check_near(given, attend(make, given))


def lengths_far_apart_are_right_together(make: Make) -> None:
    """1, 530, 0 and 40 tokens in one batch: parts of the short ones hold nothing, and count for nothing."""
    given = batch([1, 530, 0, 40], heads=2, kv_heads=1, block_size=32)
    check_near(given, attend(make, given))


def the_largest_score_may_stand_anywhere(make: Make) -> None:
    """A score far above the others in the first, a middle or the last part gives the value of its token."""
    for place in (0, 300, 524):
        peak = _scored(lambda token, _, place=place: 40.0 if token == place else 0.0)  # type: ignore[misc]
        given = batch([525], heads=1, kv_heads=1, block_size=16, scale=1.0, queries=_ones, keys=peak)
        check_near(given, attend(make, given))


def each_part_counts_by_its_weight(make: Make) -> None:
    """A part with larger scores counts more: parts are merged by their sums of weights, not averaged."""
    steps = _scored(lambda token, _: 0.0 if token < 256 else 1 / 16)
    given = batch([520], heads=1, kv_heads=1, block_size=16, scale=1.0, queries=_ones, keys=steps)
    check_near(given, attend(make, given))


def a_batch_of_equal_lengths_is_right(make: Make) -> None:
    """Equal lengths in float16 are right. How fast, the grader's GPU measures, and labkit.speed on yours."""
    given = batch([48] * 4, heads=8, kv_heads=2, head_dim=64, block_size=16, dtype="float16")
    check_near(given, attend(make, given))


def a_batch_of_unequal_lengths_is_right(make: Make) -> None:
    """One long context among short ones is right. How fast, the grader's GPU measures, and labkit.speed on yours."""
    given = batch([300, 3, 17, 1], heads=8, kv_heads=2, head_dim=64, block_size=16, dtype="float16")
    check_near(given, attend(make, given))


NUMERICS = group(
    "Scores of any size, and precision",
    large_scores_do_not_overflow,
    scores_far_below_zero_do_not_vanish,
    a_late_maximum_rescales_what_came_before,
    float16_is_summed_in_float32,
    float16_products_are_summed_in_float32,
    float16_weights_are_summed_in_float32,
    float32_keeps_its_precision,
    needs=("paged_attention",),
    where=where,
)
SPLIT_KV = group(
    "Long and unequal contexts",
    long_contexts_are_right,
    lengths_far_apart_are_right_together,
    the_largest_score_may_stand_anywhere,
    each_part_counts_by_its_weight,
    needs=("paged_attention",),
    where=where,
)
BANDWIDTH_EQUAL = group(
    "Speed on equal lengths",
    a_batch_of_equal_lengths_is_right,
    needs=("paged_attention",),
    where=where,
)
BANDWIDTH_UNEQUAL = group(
    "Speed on unequal lengths",
    a_batch_of_unequal_lengths_is_right,
    needs=("paged_attention",),
    where=where,
)
