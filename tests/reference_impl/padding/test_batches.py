"""Batches chosen by length: what every choice keeps, and how close to the best it comes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.padding import arrival_batches, bucketed, make_batches, pack_rows, padding_share, windowed
from reference_impl.padding.first_fit import FirstFit

BUDGET = 24
EDGES = (3, 8, BUDGET)
length_lists = st.lists(st.integers(0, BUDGET), max_size=30)
few_lengths = st.lists(st.integers(0, BUDGET), min_size=1, max_size=7)
WAYS: dict[str, Callable[[Any, Any], list[list[int]]]] = {
    "arrival": arrival_batches,
    "first-fit decreasing": make_batches,
    "windowed": lambda lengths, budget: windowed(lengths, 5, budget),
    "bucketed": lambda lengths, budget: bucketed(lengths, EDGES, budget),
}
EVERY_WAY = {**WAYS, "packed": pack_rows}


def slots(batch: list[int], lengths: list[int]) -> int:
    return len(batch) * max(lengths[index] for index in batch)


def fewest(lengths: list[int], fits: Callable[[list[int]], bool]) -> int:
    """The fewest batches that hold all lengths, by trying every choice for the first index that is left."""
    best: dict[frozenset[int], int] = {frozenset(): 0}

    def of(left: frozenset[int]) -> int:
        if left not in best:
            first, *others = sorted(left)
            mates = (mates for size in range(len(others) + 1) for mates in combinations(others, size))
            best[left] = 1 + min(of(left - {first, *more}) for more in mates if fits([first, *more]))
        return best[left]

    return of(frozenset(range(len(lengths))))


# What every way keeps.


@pytest.mark.parametrize("way", EVERY_WAY)
@given(lengths=length_lists)
def test_each_index_is_in_exactly_one_batch_and_no_batch_is_empty(way: str, lengths: list[int]) -> None:
    batches = EVERY_WAY[way](lengths, BUDGET)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@pytest.mark.parametrize("way", WAYS)
@given(lengths=length_lists)
def test_no_padded_batch_is_over_the_budget(way: str, lengths: list[int]) -> None:
    assert all(slots(batch, lengths) <= BUDGET for batch in WAYS[way](lengths, BUDGET))


@given(length_lists)
def test_no_packed_row_is_over_the_budget(lengths: list[int]) -> None:
    assert all(sum(lengths[index] for index in row) <= BUDGET for row in pack_rows(lengths, BUDGET))


@pytest.mark.parametrize("way", EVERY_WAY)
def test_no_lengths_make_no_batches_and_empty_rows_share_one(way: str) -> None:
    assert EVERY_WAY[way]([], BUDGET) == []
    assert EVERY_WAY[way]([0, 0, 0], BUDGET) == [[0, 1, 2]]
    assert EVERY_WAY[way](np.array([BUDGET]), np.int64(BUDGET)) == [[0]]


# First-fit decreasing into rectangles.


def test_a_batch_of_the_longest_takes_as_many_rows_as_its_width_allows(lab: SimpleNamespace) -> None:
    assert lab.make_batches([3, 9, 4, 10, 1], 20) == [[3, 1], [2, 0, 4]]
    assert lab.make_batches([5, 5, 5], 10) == [[0, 1], [2]], "equal lengths stay in order"


@given(length_lists)
def test_first_fit_decreasing_is_what_asking_every_open_batch_gives(lab: SimpleNamespace, lengths: list[int]) -> None:
    asked: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        for batch in asked:
            if slots([*batch, index], lengths) <= BUDGET:
                batch.append(index)
                break
        else:
            asked.append([index])
    assert lab.make_batches(lengths, BUDGET) == asked


@given(few_lengths)
def test_no_choice_of_padded_batches_has_fewer(lab: SimpleNamespace, lengths: list[int]) -> None:
    assert len(lab.make_batches(lengths, BUDGET)) == fewest(lengths, lambda batch: slots(batch, lengths) <= BUDGET)


def test_the_fewest_batches_may_have_more_pads_than_more_batches() -> None:
    lengths = [10, 1, 1]
    assert make_batches(lengths, 20) == [[0, 1], [2]]
    assert slots([0, 1], lengths) + slots([2], lengths) > slots([0], lengths) + slots([1, 2], lengths)


# Packing.


@given(length_lists)
def test_packing_is_what_asking_every_open_row_gives(lengths: list[int]) -> None:
    asked: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        for row in asked:
            if sum(lengths[other] for other in row) + lengths[index] <= BUDGET:
                row.append(index)
                break
        else:
            asked.append([index])
    assert pack_rows(lengths, BUDGET) == asked


@given(length_lists)
def test_packing_takes_fewer_than_twice_the_rows_that_the_tokens_alone_would_fill(lengths: list[int]) -> None:
    rows = pack_rows(lengths, BUDGET)
    if len(rows) > 1:
        assert len(rows) < 2 * Fraction(sum(lengths), BUDGET)
        assert all(sum(lengths[index] for index in (*one, *other)) > BUDGET for one, other in combinations(rows, 2)), (
            "any two rows hold more than one row could"
        )


@given(few_lengths)
def test_packing_is_within_the_proven_bound_of_the_fewest_rows(lengths: list[int]) -> None:
    best = fewest(lengths, lambda row: sum(lengths[index] for index in row) <= BUDGET)
    assert best <= len(pack_rows(lengths, BUDGET)) <= Fraction(11, 9) * best + Fraction(6, 9)


def test_a_bin_without_the_room_is_refused_and_nothing_changes() -> None:
    bins = FirstFit(2, 10)
    assert [bins.put(7), bins.put(7)] == [0, 1]
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=f"an item of {wrong} does not fit: the most room in a bin is 3"):
            bins.put(wrong)
    assert [bins.put(3), bins.put(3)] == [0, 1]


def test_thirty_thousand_rows_are_opened_without_asking_every_one() -> None:
    lengths = [1000 + index % 900 for index in range(30_000)]  # no two fit together, so every row stays open
    start = time.process_time()
    rows = pack_rows(lengths, 1999)
    assert time.process_time() - start < 5, "asking every open row takes 450 million questions"
    assert len(rows) == 30_000


# Arrival order, windows and buckets.


@given(length_lists)
def test_arrival_order_is_kept_and_a_batch_closes_only_when_the_next_does_not_fit(lengths: list[int]) -> None:
    batches = arrival_batches(lengths, BUDGET)
    assert [index for batch in batches for index in batch] == list(range(len(lengths)))
    for batch, after in pairwise(batches):
        assert slots([*batch, after[0]], lengths) > BUDGET


@given(length_lists, st.integers(1, 40))
def test_a_window_batches_its_own_arrivals_and_one_window_over_all_is_a_whole_sort(
    lengths: list[int], window: int
) -> None:
    batches = windowed(lengths, window, BUDGET)
    assert all(len({index // window for index in batch}) == 1 for batch in batches)
    if window >= len(lengths):
        assert batches == make_batches(lengths, BUDGET)


@given(length_lists)
def test_a_bucket_holds_neighbours_in_length_in_the_order_they_came(lengths: list[int]) -> None:
    buckets = []
    for batch in bucketed(lengths, EDGES, BUDGET):
        assert batch == sorted(batch)
        (bucket,) = {next(k for k, edge in enumerate(EDGES) if lengths[index] <= edge) for index in batch}
        buckets.append(bucket)
    assert buckets == sorted(buckets)


# Padding share.


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_the_padding_share_is_the_pads_over_the_places_of_the_rectangle(
    lab: SimpleNamespace, lengths: list[int]
) -> None:
    places = [place < length for length in lengths for place in range(max(lengths))]
    assert lab.padding_share(lengths) == pytest.approx(places.count(False) / len(places) if places else 0.0)


def test_equal_rows_and_empty_rows_hold_no_padding_and_no_batch_has_no_share(lab: SimpleNamespace) -> None:
    assert lab.padding_share([7, 7]) == 0.0
    assert lab.padding_share([0, 0]) == 0.0
    assert lab.padding_share([3, 0]) == 0.5
    with pytest.raises(ValueError, match="empty batch"):
        lab.padding_share([])
    assert math.copysign(1, padding_share([0])) == 1


# Refusals.


@pytest.mark.parametrize("way", EVERY_WAY)
@pytest.mark.parametrize(
    ("lengths", "budget", "message"),
    [
        ([1, 30, 2], BUDGET, "length 30 at index 1 is above max_tokens, 24"),
        ([1, -2], BUDGET, "length -2 at index 1 is below 0"),
        ([], 0, "max_tokens must be at least 1, got 0"),
    ],
)
def test_lengths_and_budgets_that_cannot_be_are_refused_by_name(
    way: str, lengths: list[int], budget: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EVERY_WAY[way](lengths, budget)


def test_a_length_that_is_no_integer_is_named_with_its_index(lab: SimpleNamespace) -> None:
    for function in (lambda lengths: lab.make_batches(lengths, 10), lab.padding_share):
        with pytest.raises(TypeError, match=r"length 2\.5 at index 1 is not an integer"):
            function([1, 2.5])


def test_windows_and_boundaries_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        windowed([1], 0, 10)
    for wrong in ([], [4, 4], [5, 2]):
        with pytest.raises(ValueError, match="boundaries must be at least one and rise"):
            bucketed([1], wrong, 10)
    with pytest.raises(ValueError, match="length 7 at index 1 is above the last boundary, 6"):
        bucketed([1, 7], [6], 10)
    with pytest.raises(ValueError, match="boundary -1 at index 0 is below 0"):
        bucketed([1], [-1], 10)
