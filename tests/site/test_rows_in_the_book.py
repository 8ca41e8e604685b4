"""The switch of "An engine that adds up" in the built book: by keyboard, every row shows the engine's own replay."""

from __future__ import annotations

import numpy as np
import pytest

import labkit

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/engine.html"
DRIVES = {CHAPTER: {"p2p-switch": 1}}
_SHOWN = """() => [...document.querySelectorAll('.p2p-shown > figure')]
    .filter(figure => getComputedStyle(figure).display !== 'none')
    .map(figure => [...figure.querySelectorAll('tbody tr')].map(
        row => [...row.cells].map(cell => cell.textContent.replace('\\u00a0', ' '))))"""


@pytest.mark.parametrize("width", [1280, 360])
def test_the_arrow_keys_walk_through_the_rows_and_one_is_shown_at_a_time(visit, width):
    page = visit(CHAPTER, width=width).page
    page.focus(".p2p-switch input")
    rows = labkit.evidence("engine")["rows"]
    window = int(min(row["seconds"] for row in rows))
    at = np.linspace(0, window, 13)
    for row in rows:
        (shown,) = page.evaluate(_SHOWN)
        series = row["series"]
        held, running = (np.interp(at, series["time_s"], series[name]) for name in ("held", "running"))
        assert [(cells[1], cells[-1]) for cells in shown] == [
            (f"{100 * share:.0f} %", f"{count:.0f}") for share, count in zip(held, running, strict=True)
        ], row["name"]
        page.keyboard.press("ArrowDown")


def test_on_paper_every_row_is_shown(visit):
    page = visit(CHAPTER).page
    page.emulate_media(media="print")
    assert len(page.evaluate(_SHOWN)) == 9
