"""Figures of packing: what they say is what came in, and what does not fit is refused by name."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from labkit.packing_figures import packed_passes_figure, packed_row_figure, passes_figure

LENGTHS = [5, 2, 4]
WORDS = ["a", "b", "c"]
BOUNDARIES = [0, 2, 3]
TRIANGLES = [[True, False, False], [True, True, False], [False, False, True]]
ONE_TRIANGLE = [[True, False, False], [True, True, False], [True, True, True]]


def test_a_padded_pass_is_as_wide_as_its_longest_and_a_packed_one_as_its_sum() -> None:
    padded = passes_figure("Padded", [[0, 1], [2]], LENGTHS, 10)
    assert padded.table.rows == [("1", "1, 2", "10", "3"), ("2", "3", "4", "0")]
    assert "take 14 slots for 11 tokens: 21.4 % padding" in padded.description
    packed = packed_passes_figure("Packed", [[0, 1], [2]], LENGTHS, 10)
    assert packed.table.rows == [("1", "1, 2", "7", "0"), ("2", "3", "4", "0")]
    assert "take 11 slots for 11 tokens: 0.0 % padding" in packed.description


def test_a_pass_is_drawn_to_the_scale_of_the_budget() -> None:
    root = ET.fromstring(passes_figure("Padded", [[0, 1]], LENGTHS, 10).svg)
    widths = [float(box.get("width", "0")) for box in root.iter("{http://www.w3.org/2000/svg}rect")]
    budget, first, second, pads = widths[-4:]
    assert [first, second, pads] == pytest.approx([budget * 0.5, budget * 0.2, budget * 0.3], abs=0.1)


def test_a_pass_over_the_budget_and_an_empty_one_are_refused() -> None:
    with pytest.raises(ValueError, match="pass 0 takes 10 slots of a budget of 9"):
        passes_figure("Padded", [[0, 1]], LENGTHS, 9)
    assert packed_passes_figure("Packed", [[0, 1]], LENGTHS, 9).table.rows
    with pytest.raises(ValueError, match="pass 1 takes 0 slots"):
        packed_passes_figure("Packed", [[0], []], LENGTHS, 9)


def test_a_packed_row_says_how_many_looks_cross_a_boundary() -> None:
    kept = packed_row_figure("Kept", WORDS, BOUNDARIES, [0, 1, 0], TRIANGLES)
    assert "4 looks are allowed. None of them goes into another sequence" in kept.description
    assert kept.table.rows == [("A0", "a", "0", "A0"), ("A1", "b", "1", "A0 A1"), ("B0", "c", "0", "B0")]
    leaking = packed_row_figure("Leaking", WORDS, BOUNDARIES, [0, 1, 2], ONE_TRIANGLE)
    assert "6 looks are allowed. 2 of them, hatched, go into another sequence" in leaking.description
    assert leaking.table.rows[-1] == ("B0", "c", "2", "A0 A1 B0")
    once = [*TRIANGLES[:2], [False, True, True]]
    assert "1 of them, hatched, goes into" in packed_row_figure("Once", WORDS, BOUNDARIES, [0, 1, 0], once).description


def test_an_empty_sequence_has_a_boundary_and_no_token() -> None:
    figure = packed_row_figure("Empty", WORDS, [0, 2, 2, 3], [0, 1, 0], TRIANGLES)
    assert [row[0] for row in figure.table.rows] == ["A0", "A1", "C0"]
    ET.fromstring(figure.svg)


@pytest.mark.parametrize(
    ("boundaries", "positions", "looks", "named"),
    [
        ([0, 2], [0, 1, 0], TRIANGLES, "boundaries"),
        ([1, 2, 3], [0, 1, 0], TRIANGLES, "boundaries"),
        ([0, 3, 2, 3], [0, 1, 0], TRIANGLES, "boundaries"),
        (BOUNDARIES, [0, 1], TRIANGLES, "positions"),
        (BOUNDARIES, [0, 1, 0], TRIANGLES[:2], "may_look"),
    ],
)
def test_parts_that_do_not_fit_the_words_are_refused_by_name(
    boundaries: list[int], positions: list[int], looks: list[list[bool]], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        packed_row_figure("Wrong", WORDS, boundaries, positions, looks)
