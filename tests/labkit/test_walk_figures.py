"""The figures of a walk: one for the start and one for each block, which show the recorded states and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from labkit.walk_figures import Step, walk_switch

NOTHING = (-math.inf, 0.0, [0.0, 0.0])
FIRST = (1.0, 1.25, [2.0, -0.5])
SECOND = (3.0, 1.5, [0.25, 0.75])
BOTH = (3.0, 1.6692, [0.5207, 0.6823])


def steps(last: Sequence[float] = (3.0, 0.5)) -> list[Step]:
    return [Step(5, (1.0, -0.4, 0.2), NOTHING, FIRST, FIRST), Step(2, last, FIRST, SECOND, BOTH)]


def test_there_is_a_figure_for_the_start_and_one_for_each_block_in_the_order_of_the_walk() -> None:
    switch = walk_switch("How far?", steps(), 3)
    assert list(switch.figures) == ["Before the first block", "Step 1: block 5", "Step 2: block 2"]
    start, first, second = switch.figures.values()
    assert [row[1] for row in start.table.rows] == ["−∞", "0.000", "(0.000, 0.000)"]
    assert first.title == "Step 1: tokens 0 to 2 in block 5"
    assert second.title == "Step 2: tokens 3 to 4 in block 2"


def test_a_step_shows_what_was_kept_what_the_block_adds_and_what_is_kept_now_with_their_factors() -> None:
    second = walk_switch("How far?", steps(), 3).figures["Step 2: block 2"]
    fade = f"{math.exp(1.0 - 3.0):.3g}"
    assert list(second.table.rows) == [
        ("kept so far", "1.000", "1.250", "(2.000, −0.500)", fade),
        ("this block", "3.000", "1.500", "(0.250, 0.750)", "1"),
        ("kept now", "3.000", "1.669", "(0.521, 0.682)", ""),
    ]
    assert f"multiplied by {fade}" in second.description
    for row in second.table.rows:
        assert all(f">{cell}<" in second.svg for cell in row if cell), "the drawing says what the table says"


def test_dead_slots_of_the_last_block_are_named_and_hatched() -> None:
    second = walk_switch("How far?", steps(), 3).figures["Step 2: block 2"]
    assert "1 of its 3 slots hold no token" in second.description
    assert second.svg.count("url(#" + second.name + "-hatch)") == 1
    full = walk_switch("How far?", steps((3.0, 0.5, 0.1)), 3).figures["Step 2: block 2"]
    assert "hold no token" not in full.description
    assert "-hatch)" not in full.svg


def test_a_step_that_does_not_raise_the_largest_score_says_what_the_block_is_multiplied_by() -> None:
    low = Step(2, (0.0,), FIRST, (0.0, 1.0, [1.0, 1.0]), (1.0, 1.6, [2.4, -0.1]))
    figure = walk_switch("How far?", [steps()[0], low], 3).figures["Step 2: block 2"]
    assert f"what this block adds is multiplied by {math.exp(-1.0):.3g}" in figure.description


@pytest.mark.parametrize("scores", [(), (1.0, 2.0, 3.0, 4.0), (math.nan,), (math.inf, 0.0)])
def test_a_block_with_too_few_or_too_many_scores_or_one_that_is_no_number_is_refused_by_name(
    scores: Sequence[float],
) -> None:
    with pytest.raises(ValueError, match="step 1 reads block 2"):
        walk_switch("How far?", steps(scores), 3)


def test_a_partial_block_before_the_last_and_a_walk_of_no_step_are_refused() -> None:
    first, second = steps()
    with pytest.raises(ValueError, match="step 0 reads block 2"):
        walk_switch("How far?", [second, first], 3)
    with pytest.raises(ValueError, match="at least one step"):
        walk_switch("How far?", [], 3)
