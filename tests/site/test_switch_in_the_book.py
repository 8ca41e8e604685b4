"""The switch of "Left, right, mask, position" in the built book: by keyboard, it shows the batches of the engine."""

from __future__ import annotations

import pytest

import labkit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/sides.html"
DRIVES = {CHAPTER: {"p2p-switch": 1}}
_SHOWN = """() => [...document.querySelectorAll('.p2p-shown > figure')]
    .filter(figure => getComputedStyle(figure).display !== 'none')
    .map(figure => [...figure.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent)))"""


def as_rows(batch):
    """What the figure's table says of a batch of the evidence."""
    return [
        [chr(65 + row), str(column), token, "yes" if batch["mask"][row][column] else "no, a pad", str(place)]
        for row, tokens in enumerate(batch["rows"])
        for column, (token, place) in enumerate(zip(tokens, batch["positions"][row], strict=True))
    ]


@pytest.mark.parametrize("width", [1280, 360])
def test_the_arrow_keys_walk_through_the_engines_batches_and_one_is_shown_at_a_time(visit, width):
    page = visit(CHAPTER, width=width).page
    page.focus(".p2p-switch input")
    for batch in labkit.evidence("sides")["batches"].values():
        assert page.evaluate(_SHOWN) == [as_rows(batch)]
        page.keyboard.press("ArrowDown")


def test_on_paper_every_batch_is_shown(visit):
    page = visit(CHAPTER).page
    page.emulate_media(media="print")
    assert len(page.evaluate(_SHOWN)) == len(labkit.evidence("sides")["batches"])
