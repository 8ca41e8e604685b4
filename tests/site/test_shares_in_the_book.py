"""The switch of "The kernel on a GPU" in the built book: by keyboard, its last way is the engine's own work list."""

from __future__ import annotations

import pytest

import labkit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/kernel.html"
DRIVES = {CHAPTER: {"p2p-switch": 1}}
_SHOWN = """() => [...document.querySelectorAll('.p2p-shown > figure')]
    .filter(figure => getComputedStyle(figure).display !== 'none')
    .map(figure => [...figure.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent)))"""


@pytest.mark.parametrize("width", [1280, 360])
def test_the_arrow_keys_walk_from_way_to_way_and_end_at_the_engines_shares(visit, width):
    page = visit(CHAPTER, width=width).page
    batch = labkit.evidence("kernel")["batch"]
    page.focus(".p2p-switch input")
    totals = []
    for _ in range(4):
        (shown,) = page.evaluate(_SHOWN)
        totals.append(sum(int(tokens.replace(",", "")) for _, _, tokens in shown))
        page.keyboard.press("ArrowDown")
    tokens = sum(batch["lengths"])
    assert totals == [4 * tokens, tokens, tokens, tokens], "only the first way asks for a token more than once"
    assert shown == [
        [str(place), str(len(pieces)), f"{sum(n for _, n in pieces):,}"] for place, pieces in enumerate(batch["shares"])
    ]


def test_on_paper_every_way_is_shown(visit):
    page = visit(CHAPTER).page
    page.emulate_media(media="print")
    assert len(page.evaluate(_SHOWN)) == 4
