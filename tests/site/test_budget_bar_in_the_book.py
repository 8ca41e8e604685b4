"""The budget bar of the chapter on arithmetic, moved by keyboard in the built page."""

from __future__ import annotations

import re

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/arithmetic.html"
DRIVES = {CHAPTER: {"p2p-budget": 1}}


def test_the_most_that_it_names_fits_and_one_more_request_does_not(visit):
    seen = visit(CHAPTER)
    page, figure = seen.page, seen.page.locator(".p2p-budget")
    said = figure.locator("output").inner_text()
    most = int(re.search(r"At most ([\d,]+) fit", said)[1].replace(",", ""))
    now = int(figure.locator("[name=requests]").input_value())
    figure.locator("[name=requests]").focus()
    for _ in range(most - now):
        page.keyboard.press("ArrowRight")
    assert f"× {most:,} requests" in figure.locator("output").inner_text()
    assert "It fits." in figure.locator("output").inner_text()
    figure.locator("button").focus()
    page.keyboard.press("Enter")
    assert "Too much for" in figure.locator("output").inner_text()
    assert "over" in figure.get_attribute("class")
    figure.locator("[name=bits]").focus()
    page.keyboard.press("ArrowDown")
    assert "It fits." in figure.locator("output").inner_text(), "half the bytes"
    assert seen.faults == []
