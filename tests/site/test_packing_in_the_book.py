"""The two switches of "Buckets, sorting, packing" in the built book: by keyboard, they show what the engine batched."""

from __future__ import annotations

import pytest

import labkit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/packing.html"
DRIVES = {CHAPTER: {"p2p-switch": 2}}
_SHOWN = """number => [...document.querySelectorAll('.p2p-switch')[number].querySelectorAll('.p2p-shown > figure')]
    .filter(figure => getComputedStyle(figure).display !== 'none')
    .map(figure => [...figure.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent)))"""


@pytest.mark.parametrize("width", [1280, 360])
def test_the_arrow_keys_walk_through_the_engines_ways_of_batching(visit, width):
    page = visit(CHAPTER, width=width).page
    shown = labkit.evidence("packing")["shown"]
    page.locator(".p2p-switch").nth(0).locator("input").first.focus()
    for name, passes in shown["passes"].items():
        (rows,) = page.evaluate(_SHOWN, 0)
        assert [row[1] for row in rows] == [", ".join(str(i + 1) for i in one) for one in passes], name
        lengths = [[shown["prompts"][i] for i in one] for one in passes]
        slots = [sum(one) if name == "Packed" else len(one) * max(one) for one in lengths]
        assert [row[2] for row in rows] == [f"{taken:,}" for taken in slots]
        assert [row[3] for row in rows] == [f"{taken - sum(one):,}" for taken, one in zip(slots, lengths, strict=True)]
        page.keyboard.press("ArrowDown")


def test_without_boundaries_the_figure_shows_looks_into_other_sequences(visit):
    page = visit(CHAPTER).page
    row = labkit.evidence("packing")["row"]
    page.locator(".p2p-switch").nth(1).locator("input").first.focus()
    for positions, looks in (("positions", "may_look"), ("one_positions", "one_may_look")):
        (rows,) = page.evaluate(_SHOWN, 1)
        assert [cells[1] for cells in rows] == row["words"]
        assert [cells[2] for cells in rows] == [str(place) for place in row[positions]]
        assert [len(cells[3].split()) for cells in rows] == [sum(line) for line in row[looks]]
        page.keyboard.press("ArrowDown")
