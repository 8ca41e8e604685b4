"""The player shows the log: the same states, in a page that loads nothing and can be used by everybody."""

from __future__ import annotations

import re
from typing import Any

import pytest

from labkit import player
from labkit.event_log import Event
from labkit.recorder import record
from reference_impl.memory import BlockAllocator as Reference
from tests.labkit.lab3.mistakes import never_copies
from tests.labkit.player_page import Open, read_state, visible_part

PROGRAM: list[tuple[Any, ...]] = [
    *[("allocate", 1, 6), ("allocate", 2, 4), ("fork", 1, 3), ("append", 3), ("append", 1, 4)],
    *[("free", 2), ("allocate", 4, 12), ("append", 3, 9), ("free", 1), ("append", 3, 9)],
]


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return record(Reference(8, 4), 8, 4, PROGRAM)


def states(events: list[Event]) -> list[dict[str, Any]]:
    return [event["state"] for event in events if "state" in event]


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(ValueError, match="events is empty"):
        player.show([])


def test_an_event_of_another_schema_is_refused_by_place_and_field() -> None:
    with pytest.raises(ValueError, match="event 0 has no told, sentence, seq, blocks"):
        player.show([{"call": 0, "kind": "create"}])


def test_a_call_without_its_state_is_refused(events: list[Event]) -> None:
    with pytest.raises(ValueError, match="last event of call 0 has no state with num_blocks"):
        player.show([{**events[0], "state": {}}])


def test_a_log_too_long_for_a_page_is_refused() -> None:
    long = record(Reference(4, 4), 4, 4, [("allocate", 1, 1), ("free", 1)] * 100)
    with pytest.raises(ValueError, match="201 calls; a player shows at most 200"):
        player.show(long)


def test_nothing_is_loaded_from_anywhere(events: list[Event]) -> None:
    assert not re.search(r"https?:|url\(|@import|src=|href=", player.show(events)._repr_html_())


def test_what_a_log_says_cannot_become_markup(events: list[Event]) -> None:
    evil = [{**event, "sentence": "<img src=x>", "told": "</script><b>"} for event in events]
    html = player.show(evil, title="<i>t</i>")._repr_html_()
    assert "<img" not in html
    assert "<b></" not in html
    assert "<i>t" not in html
    assert html.count("</script>") == 1


def test_showing_a_player_twice_gives_two_ids(events: list[Event]) -> None:
    figure = player.show(events)
    first, second = (re.search(r'id="(p2p-player-\d+)"', figure._repr_html_()) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.group(1) != second.group(1)


# The rest drives the page in a browser.


@pytest.mark.browser
def test_after_n_steps_the_page_shows_the_state_of_the_log_after_n_calls(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events))
    for state in states(events):
        assert read_state(page) == visible_part(state)
        if page.locator("button[data-do=next]").is_enabled():
            page.click("button[data-do=next]")
    assert page.locator("button[data-do=next]").is_disabled()
    assert page.errors == []


@pytest.mark.browser
def test_every_button_goes_where_it_says(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events))
    root = page.locator(".p2p-player")
    refused = next(event["call"] for event in events if event["kind"] == "refused")
    last = len(PROGRAM)
    walk = [("next", 1), ("next", 2), ("back", 1), ("last", last), ("first", 0), ("failure", refused)]
    for name, expected in walk:
        page.click(f"button[data-do={name}]")
        assert root.get_attribute("data-step") == str(expected)
    assert page.locator("button[data-do=failure]").is_disabled(), "there is no further failure"


@pytest.mark.browser
def test_the_arrow_keys_step_and_move_nothing_else(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events), player.show(events, "Another"))
    page.locator(".p2p-player").first.focus()
    for key, expected in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", len(PROGRAM)), ("Home", 0)]:
        page.keyboard.press(key)
        assert page.locator(".p2p-player").first.get_attribute("data-step") == str(expected)
    assert page.locator(".p2p-player").nth(1).get_attribute("data-step") == "0"


@pytest.mark.browser
def test_play_walks_to_the_end_and_stops(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events[:3]))
    page.clock.install()
    page.click("button[data-do=play]")
    assert page.inner_text("button[data-do=play]") == "Pause"
    page.clock.run_for(4000)
    assert page.get_attribute(".p2p-player", "data-step") == "1"
    assert page.inner_text("button[data-do=play]") == "Play"


@pytest.mark.browser
def test_the_sentence_of_a_step_is_announced(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events))
    for _ in range(4):
        page.click("button[data-do=next]")
    said = page.inner_text(".p2p-live[role=status]")
    assert said.startswith("Step 4 of 10: append(3, 1)")
    assert "it is copied to block" in said


@pytest.mark.browser
def test_a_lost_token_is_found_by_next_failure(opened: Open, model_solution: Any) -> None:
    log = record(
        never_copies(model_solution)(8, 4), 8, 4, [("allocate", 1, 6), ("fork", 1, 2), ("append", 2), ("append", 1)]
    )
    page = opened(player.show(log))
    page.click("button[data-do=failure]")
    assert page.get_attribute(".p2p-player", "data-step") == "4"
    assert "Fault: Token 6 of sequence 2 is lost" in page.inner_text(".p2p-panel:not([hidden])")


@pytest.mark.browser
def test_without_javascript_the_last_state_and_all_sentences_are_there(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events), java_script_enabled=False)
    shown = page.locator(".p2p-panel:visible")
    assert shown.count() == 1
    assert "Step 10 of 10" in shown.inner_text()
    assert page.locator(".p2p-steps li:visible").count() == len(PROGRAM) + 1
    assert page.locator("button:visible").count() == 0


@pytest.mark.browser
def test_print_shows_the_state_without_the_buttons(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events))
    page.emulate_media(media="print")
    assert page.locator("button:visible").count() == 0
    assert page.locator(".p2p-panel:visible .p2p-map").is_visible()


@pytest.mark.browser
def test_a_narrow_screen_needs_no_sideways_scrolling_and_has_buttons_for_thumbs(opened: Open) -> None:
    wide = record(Reference(64, 2), 64, 2, [("allocate", 12345678, 120), ("fork", 12345678, 2)])
    page = opened(player.show(wide), viewport={"width": 360, "height": 740})
    page.click("button[data-do=last]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for box in page.locator("button").evaluate_all("all => all.map(b => b.getBoundingClientRect().toJSON())"):
        assert min(box["width"], box["height"]) >= 44


@pytest.mark.browser
@pytest.mark.parametrize(
    ("attributes", "scheme"),
    [
        ('lang="en"', "light"),
        ('lang="en"', "dark"),
        ('lang="en" data-theme="dark"', "light"),
        ('lang="en" data-theme="light"', "dark"),
    ],
)
def test_axe_finds_nothing_in_either_theme(opened: Open, events: list[Event], attributes: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = opened(player.show(events), player.show(events, "Again"), html_attributes=attributes, color_scheme=scheme)
    page.locator("button[data-do=failure]").first.click()
    dark = attributes.endswith('"dark"') or (scheme == "dark" and "data-theme" not in attributes)
    background = page.locator(".p2p-player").first.evaluate("root => getComputedStyle(root).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    found = axe.Axe().run(page, context=".p2p-player").response["violations"]
    assert [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in found] == []
