"""The batch builder of "Rectangles are expensive" in the built book: by keyboard, it says what Python computes."""

from __future__ import annotations

import pytest

import labkit
from labkit.batch_builder import BatchBuilder

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/rectangles.html"
DRIVES = {CHAPTER: {"p2p-builder": 1}}


def test_it_holds_the_first_requests_of_the_workload_and_says_what_each_choice_costs(visit):
    seen = visit(CHAPTER)
    page, figure = seen.page, seen.page.locator(".p2p-builder")
    boxes, said = figure.locator("input"), figure.locator("output")
    builder = BatchBuilder(labkit.workload("azure_conv").prompt_tokens[: boxes.count()].tolist(), 8)
    assert said.inner_text() == builder.sentence(builder.first)
    presets = figure.locator("button")
    presets.nth(1).focus()
    page.keyboard.press("Enter")
    assert said.inner_text() == builder.sentence(builder.alike)
    presets.nth(2).focus()
    page.keyboard.press("Enter")
    picked = []
    for number in (3, 8, 0, 5):
        boxes.nth(number).focus()
        page.keyboard.press("Space")
        picked.append(number)
        assert said.inner_text() == builder.sentence(picked)
    assert seen.faults == []
