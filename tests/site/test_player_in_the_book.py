"""The player in the built book: stepped by keyboard and by mouse, it shows what the engine's log says."""

from __future__ import annotations

import pytest

import labkit
from tests.labkit.player_page import read_state, visible_part

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(
    scope="module",
    params=["start", "contiguous", "paging", "paradox", "sharing", "prefixes", "scheduling", "preemption"],
)
def chapter(request):
    """A chapter that steps through the log `story` of its evidence."""
    return request.param


@pytest.fixture(scope="module")
def events(chapter):
    return labkit.evidence(chapter)["story"]["events"]


def test_after_n_presses_of_a_key_the_page_shows_the_state_after_n_calls(visit, chapter, events):
    page = visit(f"chapters/{chapter}.html").page
    states = [visible_part(event["state"]) for event in events if "state" in event]
    page.focus(".p2p-player")
    page.keyboard.press("Home")
    for call, state in enumerate(states):
        assert read_state(page) == state, call
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert read_state(page) == states[-2]


def test_the_next_failure_is_the_refusal_that_the_page_speaks_of(visit, chapter, events):
    page = visit(f"chapters/{chapter}.html", width=360).page
    page.click(".p2p-player button[data-do=failure]")
    refused = next(event for event in events if event["kind"] == "refused")
    assert page.get_attribute(".p2p-player", "data-step") == str(refused["call"])
    shown = page.inner_text(".p2p-player .p2p-panel:not([hidden])")
    assert refused["sentence"] in shown
    assert f"At step {refused['call']}" in page.inner_text("main")
