"""The players in the built book: stepped by keyboard and by mouse, they show what the engine's logs say."""

from __future__ import annotations

import pytest

import labkit
from tests.labkit.player_page import read_state, visible_part

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STORIES = ("start", "contiguous", "paging", "paradox", "sharing", "prefixes", "scheduling", "preemption")
"""Chapters that step through the log `story` of their evidence."""
LOGS = [*((chapter, 0, "story") for chapter in STORIES), ("contiguous", 1, "buddies")]
"""(chapter, which of its players, the name of the log)."""
DRIVES = {
    f"chapters/{chapter}.html": {"p2p-player": sum(other == chapter for other, _, _ in LOGS)} for chapter in STORIES
}


@pytest.mark.parametrize(("chapter", "number", "log"), LOGS)
def test_after_n_presses_of_a_key_the_page_shows_the_state_after_n_calls(visit, chapter, number, log):
    page = visit(f"chapters/{chapter}.html").page
    events = labkit.evidence(chapter)[log]["events"]
    states = [visible_part(event["state"]) for event in events if "state" in event]
    page.locator(".p2p-player").nth(number).focus()
    page.keyboard.press("Home")
    for call, state in enumerate(states):
        assert read_state(page, number) == state, call
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert read_state(page, number) == states[-2]


@pytest.mark.parametrize("chapter", STORIES)
def test_the_next_failure_is_the_refusal_that_the_page_speaks_of(visit, chapter):
    page = visit(f"chapters/{chapter}.html", width=360).page
    page.locator(".p2p-player button[data-do=failure]").first.click()
    refused = next(event for event in labkit.evidence(chapter)["story"]["events"] if event["kind"] == "refused")
    assert page.get_attribute(".p2p-player", "data-step") == str(refused["call"])
    shown = page.locator(".p2p-player .p2p-panel:not([hidden])").first.inner_text()
    assert refused["sentence"] in shown
    assert f"At step {refused['call']}" in page.inner_text("main")
