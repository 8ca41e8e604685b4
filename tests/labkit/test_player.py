"""The player on logs of the engine: what is published, who waits and what lies on the host, as the log has it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from labkit import player
from labkit.event_log import KINDS, Event, check_log
from tests.labkit.engine_story import engine_story
from tests.labkit.player_page import Open, read_state, visible_part


@pytest.fixture(scope="module")
def events() -> list[Event]:
    return engine_story()


def states(events: list[Event]) -> list[dict[str, Any]]:
    return [event["state"] for event in events if "state" in event]


def test_the_story_is_a_log_without_faults_in_which_every_kind_but_a_failure_happens(events: list[Event]) -> None:
    check_log(events)
    assert [event["fault"] for event in events if event.get("fault")] == []
    assert Counter(event["kind"] for event in events).keys() == KINDS.keys() - {"failed"}


def test_a_log_that_knows_of_no_cache_queue_or_host_shows_none(events: list[Event]) -> None:
    more = ("published", "num_idle", "waiting", "preempted", "host", "num_host_blocks")
    plain = [
        {**event, "state": {name: value for name, value in event["state"].items() if name not in more}}
        if "state" in event
        else event
        for event in events
    ]
    html = player.show(plain)._repr_html_().partition("</style>")[2]
    for words in ("Dotted edge", "content kept", "Waiting", "Host"):
        assert words not in html
    assert "Dotted edge" in player.show(events)._repr_html_()


READ_MORE = """root => {
  const panel = root.querySelector('.p2p-panel:not([hidden])');
  const numbers = text => (text.match(/\\d+/g) || []).map(Number);
  const rows = [...panel.querySelectorAll('.p2p-twin tr[data-row]')].map(r => [...r.cells].map(c => c.textContent));
  const blocks = [...panel.querySelectorAll('li[data-block]')];
  const host = {};
  for (const row of panel.querySelectorAll('tr[data-host]')) host[row.dataset.host] = numbers(row.cells[1].textContent);
  const line = panel.querySelector('.p2p-waiting').textContent;
  const names = line.split(':')[1].split(',').map(name => name.trim()).filter(name => name !== 'nobody');
  return {
    idle: blocks.filter(b => b.classList.contains('idle')).map(b => Number(b.dataset.block)),
    published: blocks.filter(b => /published|content kept/.test(b.lastElementChild.textContent)).map(b =>
      Number(b.dataset.block)),
    touched: blocks.filter(b => b.classList.contains('now')).map(b => Number(b.dataset.block)),
    waiting: names.map(name => parseInt(name)), preempted: names.filter(n => n.includes('preempted')).map(n =>
      parseInt(n)),
    host, rows, host_words: numbers(panel.querySelector('.p2p-host').textContent.split('in use')[0]),
  };
}"""


@pytest.mark.browser
def test_after_n_steps_the_page_shows_the_state_of_the_engine_after_n_calls(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events))
    for call, state in enumerate(states(events)):
        assert read_state(page) == visible_part(state), call
        more = page.locator(".p2p-player").evaluate(READ_MORE)
        idle = [block for block in state["published"] if state["ref_counts"][block] == 0]
        assert len(idle) == state["num_idle"], "the log agrees with itself"
        assert (more["idle"], more["published"]) == (idle, state["published"]), call
        assert more["touched"] == sorted({b for event in events if event["call"] == call for b in event["blocks"]})
        assert (more["waiting"], more["preempted"]) == (state["waiting"], state["preempted"]), call
        assert more["host"] == state["host"], call
        assert more["host_words"] == [sum(map(len, state["host"].values())), state["num_host_blocks"]]
        if call < len(player.show(events)) - 1:
            page.click("button[data-do=next]")
    assert page.locator("button[data-do=next]").is_disabled()
    assert page.errors == []


@pytest.mark.browser
def test_what_is_announced_are_the_words_of_the_step_one_after_the_other(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events))
    for _ in range(3):
        page.click("button[data-do=next]")
        lines = page.locator(".p2p-panel:visible .p2p-words > p").all_inner_texts()
        assert len(lines) == 3
        assert page.text_content(".p2p-live") == " ".join(lines), "no number runs into the next: 'block 3.7 of 11 free'"


@pytest.mark.browser
def test_a_figure_with_the_id_of_an_older_one_plays_all_the_same(opened: Open, events: list[Event]) -> None:
    """A notebook that was restarted numbers its figures from one again, and older outputs stay in the page."""
    shown = player.show(events, "The newer one")._repr_html_()
    older = SimpleNamespace(_repr_html_=lambda: shown.replace("The newer one", "The older one"))
    page = opened(older, SimpleNamespace(_repr_html_=lambda: shown))
    both = page.locator(".p2p-player")
    assert both.nth(0).get_attribute("id") == both.nth(1).get_attribute("id")
    both.nth(1).locator("button[data-do=next]").click()
    assert [both.nth(number).get_attribute("data-step") for number in range(2)] == ["0", "1"]
    for number, name in enumerate(("The older one", "The newer one")):
        assert page.get_by_role("group", name=name).count() == 1, number


@pytest.mark.browser
def test_the_table_beside_the_map_says_the_same(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events))
    for state in states(events):
        rows = page.locator(".p2p-player").evaluate(READ_MORE)["rows"]
        assert [int(row[0]) for row in rows] == list(range(state["num_blocks"]))
        assert [int(row[2]) for row in rows] == state["ref_counts"]
        assert [row[3] for row in rows] == [f"{filled} of {state['block_size']}" for filled in state["filled"]]
        for block, row in enumerate(rows):
            held = [seq for seq, table in state["tables"].items() if block in table]
            assert row[4] == (", ".join(held) or "-")
            words = ["shared" if len(held) > 1 else "held"] if held else ["free"]
            words += [] if block not in state["published"] else ["published"] if held else ["content kept"]
            assert row[1] == ", ".join(words)
        if page.locator("button[data-do=next]").is_enabled():
            page.click("button[data-do=next]")


@pytest.mark.browser
def test_the_table_is_what_a_screen_reader_meets_and_it_stays_open_from_step_to_step(
    opened: Open, events: list[Event]
) -> None:
    page = opened(player.show(events), player.show(events, "Another"))
    first = page.locator(".p2p-player").first
    assert first.locator(".p2p-panel:visible .p2p-map").get_attribute("aria-hidden") == "true"
    first.locator(".p2p-panel:visible .p2p-twin summary").press("Enter")
    page.wait_for_function("[...document.querySelectorAll('.p2p-twin[open]')].length > 1")
    first.locator("button[data-do=next]").click()
    assert first.locator(".p2p-panel:visible .p2p-twin table").is_visible()
    assert not page.locator(".p2p-player").nth(1).locator(".p2p-panel:visible .p2p-twin table").is_visible()


def swipe(page: Any, dx: int, dy: int = 0, where: str = ".p2p-panel:not([hidden]) .p2p-map", number: int = 0) -> None:
    """One finger, down in the middle of `where` and up at (dx, dy) from there."""
    box = page.locator(".p2p-player").nth(number).locator(where).first
    box.scroll_into_view_if_needed()
    rect = box.evaluate("e => e.getBoundingClientRect().toJSON()")
    x, y = rect["x"] + rect["width"] / 2, max(1, rect["y"]) + min(rect["height"], 60) / 2
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        ("touchMove", [{"x": x + dx / 2, "y": y + dy / 2}]),
        ("touchMove", [{"x": x + dx, "y": y + dy}]),
        ("touchEnd", []),
    ):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.detach()


@pytest.mark.browser
def test_a_finger_turns_to_the_next_step_and_back_and_may_still_scroll(opened: Open, events: list[Event]) -> None:
    page = opened(
        player.show(events), player.show(events, "Another"), has_touch=True, viewport={"width": 360, "height": 740}
    )
    root = page.locator(".p2p-player").first
    for dx, dy, expected in [(-120, 5, 1), (-120, 0, 2), (120, 0, 1), (-20, 0, 1), (-90, 80, 1), (0, -120, 1)]:
        swipe(page, dx, dy)
        assert root.get_attribute("data-step") == str(expected), (dx, dy)
    page.evaluate("scrollTo(0, 0)")
    root.locator("button[data-do=next]").tap()
    assert root.get_attribute("data-step") == "2"
    assert page.locator(".p2p-player").nth(1).get_attribute("data-step") == "0"


@pytest.mark.browser
def test_the_space_bar_plays_f_finds_the_failure_and_neither_takes_the_keys_of_a_button(
    opened: Open, events: list[Event]
) -> None:
    page = opened(player.show(events))
    root = page.locator(".p2p-player")
    refused = next(event["call"] for event in events if event["kind"] == "refused")
    root.focus()
    page.keyboard.press("f")
    assert root.get_attribute("data-step") == str(refused)
    page.keyboard.press("Space")
    assert page.inner_text("button[data-do=play]") == "Pause"
    page.keyboard.press("Space")
    assert page.inner_text("button[data-do=play]") == "Play"
    page.locator("button[data-do=first]").press("Space")
    assert root.get_attribute("data-step") == "0"
    assert page.inner_text("button[data-do=play]") == "Play"


@pytest.mark.browser
@pytest.mark.parametrize(("motion", "first_after_ms"), [("reduce", 4000), ("no-preference", 1800)])
def test_for_a_reader_who_asked_for_less_motion_it_plays_slower_and_nothing_fades(
    opened: Open, events: list[Event], motion: str, first_after_ms: int
) -> None:
    page = opened(player.show(events), reduced_motion=motion)
    # Stopped, because a slow machine's own time would count as well.
    page.clock.install(time=0)
    page.clock.pause_at(10_000)
    page.click("button[data-do=play]")
    page.clock.run_for(first_after_ms - 100)
    assert page.get_attribute(".p2p-player", "data-step") == "0"
    page.clock.run_for(200)
    assert page.get_attribute(".p2p-player", "data-step") == "1"
    fades = page.locator(".p2p-map > li").first.evaluate("e => getComputedStyle(e).transitionDuration")
    assert (fades == "0s") == (motion == "reduce")


@pytest.mark.browser
def test_print_is_a_still_of_the_last_state_wherever_the_reader_was(opened: Open, events: list[Event]) -> None:
    page = opened(player.show(events), html_attributes='lang="en" data-theme="dark"')
    for _ in range(3):
        page.click("button[data-do=next]")
    page.emulate_media(media="print")
    shown = page.locator(".p2p-panel:visible")
    assert shown.count() == 1
    assert f"Step {len(states(events)) - 1} of" in shown.inner_text()
    assert page.locator("button:visible").count() == 0
    background = page.locator(".p2p-player").evaluate("root => getComputedStyle(root).backgroundColor")
    assert background == "rgb(255, 255, 255)", "ink is for the words"
    assert len(page.pdf(format="A4")) > 5000
    page.emulate_media(media="screen")
    assert "Step 3 of" in page.locator(".p2p-panel:visible").inner_text(), "the reader is where they were"


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 1280])
def test_the_engines_player_fits_any_screen(opened: Open, events: list[Event], width: int) -> None:
    page = opened(player.show(events), viewport={"width": width, "height": 740})
    page.locator(".p2p-panel:visible .p2p-twin summary").click()
    for _ in states(events):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = "all => all.filter(e => e.offsetParent && e.scrollWidth > e.clientWidth).map(e => e.textContent)"
        assert page.locator(".p2p-scroll").evaluate_all(wide) == [], "who has no mouse could not see the rest"
        if page.locator("button[data-do=next]").is_enabled():
            page.click("button[data-do=next]")
    for box in page.locator("button, summary:visible").evaluate_all(
        "all => all.map(b => b.getBoundingClientRect().toJSON())"
    ):
        assert min(box["width"], box["height"]) >= 44


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_nothing_in_a_step_of_the_engine(opened: Open, events: list[Event], scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = opened(player.show(events), color_scheme=scheme, viewport={"width": width, "height": 740})
    page.click("button[data-do=failure]")
    page.locator(".p2p-panel:visible .p2p-twin summary").click()
    found = axe.Axe().run(page, context=".p2p-player").response["violations"]
    assert [(violation["id"], [node["html"] for node in violation["nodes"]]) for violation in found] == []
