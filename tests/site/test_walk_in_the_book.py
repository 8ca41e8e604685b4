"""The walk of "Attention over pages" in the built book: by keyboard, it shows what the engine kept after each block."""

from __future__ import annotations

import pytest

import labkit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/attention.html"
DRIVES = {CHAPTER: {"p2p-switch": 1}}
_SHOWN = """() => [...document.querySelectorAll('.p2p-shown > figure')]
    .filter(figure => getComputedStyle(figure).display !== 'none')
    .map(figure => [...figure.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.textContent)))"""


def as_text(number):
    return f"{number:.3f}".replace("-", "−")


@pytest.mark.parametrize("width", [1280, 360])
def test_the_arrow_keys_walk_from_block_to_block_and_show_the_engines_states(visit, width):
    page = visit(CHAPTER, width=width).page
    page.focus(".p2p-switch input")
    assert page.evaluate(_SHOWN) == [[["m", "−∞"], ["l", "0.000"], ["o", "(0.000, 0.000)"]]]
    for step in labkit.evidence("attention")["walk"]["steps"]:
        page.keyboard.press("ArrowDown")
        (shown,) = page.evaluate(_SHOWN)
        vector = f"({', '.join(map(as_text, step['o']))})"
        assert shown[-1] == ["kept now", as_text(step["m"]), as_text(step["l"]), vector, ""]


def test_on_paper_every_step_is_shown(visit):
    page = visit(CHAPTER).page
    page.emulate_media(media="print")
    assert len(page.evaluate(_SHOWN)) == 1 + len(labkit.evidence("attention")["walk"]["steps"])
