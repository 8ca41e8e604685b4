"""Distributions in bounded memory: within one per cent of the exact ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.sim.histogram import RELATIVE_ERROR, Histogram

SHARES = (0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
values = st.one_of(st.just(0.0), st.floats(1e-7, 1e7))


def filled(numbers: list[float]) -> Histogram:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    return histogram


@given(st.lists(values, min_size=1, max_size=200), st.sampled_from(SHARES))
def test_every_quantile_is_within_one_per_cent_of_numpy(numbers: list[float], share: float) -> None:
    exact = float(np.percentile(numbers, 100 * share, method="inverted_cdf"))
    # The rounding of `share * count` may fall on either side of a whole number.
    beside = float(np.percentile(numbers, 100 * min(1.0, share + 1e-9), method="inverted_cdf"))
    found = filled(numbers).quantile(share)
    assert any(abs(found - near) <= RELATIVE_ERROR * near * (1 + 1e-9) for near in (exact, beside))


@pytest.mark.parametrize("draw", ["exponential", "lognormal", "uniform"])
def test_on_a_hundred_thousand_draws_too(draw: str) -> None:
    numbers = getattr(np.random.default_rng(5), draw)(size=100_000).tolist()
    histogram = filled(numbers)
    for share in SHARES[1:]:
        exact = float(np.quantile(numbers, share, method="inverted_cdf"))
        assert histogram.quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR)


@given(st.lists(values, min_size=1, max_size=50))
def test_count_mean_and_ends_are_exact(numbers: list[float]) -> None:
    histogram = filled(numbers)
    assert histogram.count == len(numbers)
    assert histogram.mean == pytest.approx(sum(numbers) / len(numbers))
    assert (histogram.minimum, histogram.maximum) == (min(numbers), max(numbers))
    assert sum(count for _, count in histogram.buckets()) == len(numbers)


def test_counting_a_value_many_times_is_adding_it_as_often() -> None:
    once = Histogram()
    once.add(0.25, 1_000)
    assert once.buckets() == filled([0.25] * 1_000).buckets()
    assert once.total == 250


def test_it_stays_small_however_much_it_counts() -> None:
    histogram = filled(np.geomspace(1e-6, 3e7, 50_000).tolist())
    assert len(histogram.buckets()) < 1_700


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite numbers from 0"):
        Histogram().add(value)


def test_of_nothing_there_is_no_figure() -> None:
    with pytest.raises(ValueError, match="no quantile"):
        Histogram().quantile(0.5)
    with pytest.raises(ValueError, match="no mean"):
        _ = Histogram().mean
    with pytest.raises(ValueError, match="from 0 to 1"):
        filled([1.0]).quantile(99)
