"""The switch: every figure is in the page, one is shown, and what cannot be told apart is refused."""

from __future__ import annotations

import re

import pytest

from labkit.figures import Figure, Table
from labkit.padding_figures import padded_batch_figure
from labkit.switch import Switch

ROWS = [["<pad>", "I", "see"], ["we", "all", "know"]]
MASK = [[False, True, True], [True, True, True]]
PLACES = [[0, 0, 1], [0, 1, 2]]
LOOKS = [[True, False, False], [False, True, False], [False, True, True]]


def drawn(title: str) -> Figure:
    return Figure(title, "A square.", (10, 10), "<rect/>", Table(("a",), [("1",)]))


def test_all_figures_are_in_the_page_and_the_first_is_chosen() -> None:
    switch = Switch("Which?", {"one": drawn("One"), "two & more": drawn("Two")})
    page = switch._repr_html_()
    assert page.count('type="radio"') == 2
    assert page.count(" checked>") == 1
    assert "two &amp; more" in page
    for figure in switch.figures.values():
        assert f'id="{figure.name}"' in page
        assert f"#{figure.name}" in page.split("</style>")[1], "a rule shows it"
    assert len(set(re.findall(r'<input[^>]* id="([^"]+)"', page))) == 2


def test_as_text_every_figure_is_told() -> None:
    text = str(Switch("Which?", {"one": drawn("One"), "two": drawn("Two")}))
    assert text.startswith("Which?")
    assert "one: One" in text
    assert "two: Two" in text


def test_one_figure_or_two_that_share_an_id_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two figures, got 1"):
        Switch("Which?", {"one": drawn("One")})
    with pytest.raises(ValueError, match="are one drawing"):
        Switch("Which?", {"one": drawn("One"), "two": drawn("One")})


def test_a_padded_batch_says_which_rows_end_in_a_pad() -> None:
    figure = padded_batch_figure("Left", ROWS, MASK, PLACES, LOOKS, 0)
    assert "Every row ends in a real token." in figure.description
    assert ("A", "0", "<pad>", "no, a pad", "0") in figure.table.rows
    turned = padded_batch_figure("Right", ROWS, [row[::-1] for row in MASK], PLACES, LOOKS, 0)
    assert "the rows A end in a pad" in turned.description


@pytest.mark.parametrize(
    ("mask", "places", "looks", "named"),
    [(MASK[:1], PLACES, LOOKS, "mask"), (MASK, [[0], [1]], LOOKS, "positions"), (MASK, PLACES, LOOKS[:2], "may_look")],
)
def test_a_part_of_another_shape_is_refused_by_name(mask: list, places: list, looks: list, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        padded_batch_figure("Left", ROWS, mask, places, looks, 0)
