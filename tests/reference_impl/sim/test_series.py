"""Means over time: exact as a whole, bounded in bins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.sim.series import Series

pieces = st.lists(st.tuples(st.floats(0, 100), st.floats(1e-6, 1e3)), min_size=1, max_size=60)


@given(pieces)
def test_the_mean_is_that_of_all_time_covered(held: list[tuple[float, float]]) -> None:
    series = Series(["x"], most_bins=8)
    for value, seconds in held:
        series.hold([value], seconds)
    whole = sum(seconds for _, seconds in held)
    assert series.duration_s == pytest.approx(whole)
    assert series.means()["x"] == pytest.approx(sum(value * seconds for value, seconds in held) / whole)


@given(pieces)
def test_bins_are_few_in_order_and_keep_the_whole_area(held: list[tuple[float, float]]) -> None:
    series = Series(["x"], most_bins=8)
    for value, seconds in held:
        series.hold([value], seconds)
    columns = series.columns()
    assert len(columns["time_s"]) <= 8
    assert columns["time_s"] == sorted(columns["time_s"])
    low, high = min(value for value, _ in held), max(value for value, _ in held)
    assert all(low - 1e-6 <= mean <= high + 1e-6 for mean in columns["x"])
    assert series.duration_s <= 8 * series.bin_s * (1 + 1e-9)


def test_one_bin_after_another_by_hand() -> None:
    series = Series(["used", "waiting"], most_bins=4)
    series.hold([1.0, 0], 0.001)
    series.hold([3.0, 4], 0.002)
    columns = series.columns()
    assert columns["used"] == pytest.approx([1.0, 3.0, 3.0])
    assert columns["waiting"] == pytest.approx([0.0, 4.0, 4.0])
    series.hold([0.0, 0], 0.005)
    # Eight milliseconds in at most four bins: two milliseconds each, the first of which joins 1 and 3.
    columns = series.columns()
    assert columns["time_s"] == pytest.approx([0.001, 0.003, 0.005, 0.007])
    assert columns["used"] == pytest.approx([2.0, 1.5, 0.0, 0.0])


def test_no_time_changes_nothing() -> None:
    series = Series(["x"])
    series.hold([5.0], 0.0)
    assert series.means() == {"x": 0.0}
    assert series.columns() == {"time_s": [], "x": []}


def test_values_must_be_as_many_as_names() -> None:
    with pytest.raises(ValueError, match="1 values for 2"):
        Series(["a", "b"]).hold([1.0], 1.0)
    with pytest.raises(ValueError, match="most_bins"):
        Series(["a"], most_bins=3)
