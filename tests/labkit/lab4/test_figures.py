"""The figures of lab 4 show what they are given, in the drawing, in words and as a table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.attention_figures import online_softmax_figure, page_walk_figure, programs_figure


def test_a_walk_reads_its_tokens_in_the_order_of_the_table() -> None:
    figure = page_walk_figure(table=[3, 7, 1], length=10, block_size=4, num_blocks=12)
    assert [tuple(row) for row in figure.table.rows] == [
        ("1", "3", "0 to 3", "0"),
        ("2", "7", "4 to 7", "0"),
        ("3", "1", "8 to 9", "2"),
    ]
    assert "2 of the last block's 4 slots hold no token" in figure.description
    assert figure.svg.count("step ") == 3


def test_entries_behind_the_context_are_not_walked() -> None:
    assert len(page_walk_figure(table=[0, 1, -1, 99], length=4, block_size=2, num_blocks=3).table.rows) == 2


@pytest.mark.parametrize(
    ("table", "length", "said"),
    [
        ([1], 5, "5 tokens do not lie in 1 blocks of 4"),
        ([1, 1], 5, "names a block twice"),
        ([1, 9], 5, "outside of 0 to 7"),
    ],
)
def test_a_table_that_does_not_hold_the_context_is_refused_by_its_values(
    table: list[int], length: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        page_walk_figure(table=table, length=length, block_size=4, num_blocks=8)


@given(scores=st.lists(st.floats(-300, 300), min_size=1, max_size=30), block_size=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_after_the_last_block_top_and_total_are_those_of_all_scores(scores: list[float], block_size: int) -> None:
    rows = online_softmax_figure(scores, block_size).table.rows
    top, total = float(rows[-1][2]), float(rows[-1][4])
    assert top == pytest.approx(max(scores), rel=1e-4, abs=1e-4)
    assert total == pytest.approx(math.fsum(math.exp(score - max(scores)) for score in scores), rel=1e-3)
    assert len(rows) == math.ceil(len(scores) / block_size)


@pytest.mark.parametrize("scores", [[], [float("nan")], [float("inf"), 1.0]])
def test_scores_that_cannot_be_drawn_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="need finite scores"):
        online_softmax_figure(scores, 4)


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    part=st.integers(1, 70),
    processors=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_parts_never_end_later_than_one_part_behind_the_best_way(
    lengths: list[int], part: int, processors: int
) -> None:
    whole, parts = programs_figure(lengths, part, processors).table.rows
    best = -(-sum(lengths) // processors)
    assert int(whole[3]) >= max(best, *lengths)
    assert best <= int(parts[3]) <= best + min(part, max(lengths))
    assert int(parts[1]) == sum(-(-length // part) for length in lengths)


def test_one_long_context_keeps_all_others_waiting_unless_it_is_cut() -> None:
    whole, parts = programs_figure([5, 40, 6, 4, 8, 3, 5, 7], 8, 4).table.rows
    assert (whole[2], whole[3]) == ("40", "40")
    assert (parts[2], parts[3]) == ("8", "23")
    with pytest.raises(ValueError, match="need tokens, parts and processors"):
        programs_figure([0], 8, 4)
