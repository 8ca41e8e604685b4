"""The decode steps that are timed: unknown before, and as hard for one seed as for another."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autograder.gpu.timed import TimedCase
from autograder.judge.attention_speed import TOKENS, equal_cases, unequal_cases

SEEDS = range(200)
Draw = Callable[[int], tuple[TimedCase, ...]]


@pytest.mark.parametrize(("draw", "luck_max"), [(equal_cases, 0.11), (unequal_cases, 0.15)])
def test_no_seed_is_much_luckier_than_another(draw: Draw, luck_max: float) -> None:
    """A kernel that gives each sequence one program ends with its longest: what that costs hardly depends on the seed.
    Bands are further apart than this."""
    for case in zip(*(draw(seed) for seed in SEEDS), strict=True):
        even = [sum(one.lengths) / (len(one.lengths) * max(one.lengths)) for one in case]
        assert max(even) / min(even) - 1 < luck_max
        sizes = [len(one.lengths) for one in case]
        assert max(sizes) / min(sizes) - 1 < luck_max


@pytest.mark.parametrize("draw", [equal_cases, unequal_cases])
def test_every_case_reads_far_more_than_a_cache_holds_and_fits_beside_its_replicas(draw: Draw) -> None:
    for case in (case for seed in SEEDS for case in draw(seed)):
        assert 0.8 * TOKENS <= sum(case.lengths) <= 1.2 * TOKENS
        assert min(case.lengths) >= 1


@pytest.mark.parametrize("draw", [equal_cases, unequal_cases])
def test_lengths_are_the_seeds_and_nobody_elses(draw: Draw) -> None:
    assert draw(7) == draw(7)
    drawn = {tuple(case.lengths for case in draw(seed)) for seed in SEEDS}
    assert len(drawn) > 0.9 * len(SEEDS)


def test_equal_lengths_are_equal_and_unequal_ones_very_unequal() -> None:
    for seed in SEEDS:
        assert all(len(set(case.lengths)) == 1 for case in equal_cases(seed))
        for case in unequal_cases(seed):
            assert max(case.lengths) > 4 * sum(case.lengths) / len(case.lengths)
