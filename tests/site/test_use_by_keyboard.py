"""A reader without a mouse: skip link, search, sidebar, colours, regions that scroll; and a reader on paper."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHAPTER = "chapters/rectangles.html"
LAB = "labs/lab3_block_allocator/lab3_block_allocator.html"
_FOCUSED = """() => { const e = document.activeElement; return {
    name: e.getAttribute('aria-label') || e.title || e.textContent.trim(), tag: e.tagName,
    outline: getComputedStyle(e).outlineStyle, boxes: e.getClientRects().length }; }"""


def stops(page, count):
    """What the next `count` presses of Tab come to."""
    found = []
    for _ in range(count):
        page.keyboard.press("Tab")
        found.append(page.evaluate(_FOCUSED))
    return found


def test_the_first_stop_skips_to_the_text(visit):
    page = visit(CHAPTER).page
    assert stops(page, 1)[0]["name"] == "Skip to main content"
    page.keyboard.press("Enter")
    page.wait_for_timeout(100)
    assert page.evaluate("location.hash") == "#main-content"


def test_the_main_controls_are_reached_and_seen_in_focus(visit):
    page = visit(CHAPTER).page
    reached = [stop for stop in stops(page, 40) if stop["boxes"]]
    names = " | ".join(stop["name"] for stop in reached)
    for control in ("Search", "Lab 3", "Toggle primary sidebar", "Download this page", "Colours: light"):
        assert control in names, f"{control} is not reached by keyboard"
    assert [stop["name"] for stop in reached if stop["outline"] == "none" and stop["tag"] != "BODY"] == []


def test_colours_change_by_keyboard_and_say_so(visit):
    page = visit(CHAPTER).page
    page.focus(".theme-switch-button")
    page.keyboard.press("Enter")
    mode = page.evaluate("document.documentElement.dataset.mode")
    assert mode != "light"
    page.wait_for_timeout(100)
    assert page.get_attribute(".theme-switch-button", "aria-label") != "Colours: light. Change"


def test_the_sidebar_opens_and_closes_by_keyboard_on_a_phone(visit):
    page = visit(CHAPTER, width=360).page
    shown = "document.querySelector('.bd-sidebar-primary').getBoundingClientRect().right > 10"
    assert not page.evaluate(shown)
    page.focus("button.primary-toggle")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    assert page.evaluate(shown)
    assert page.get_attribute("button.primary-toggle", "aria-expanded") == "true"
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    assert not page.evaluate(shown)
    assert page.get_attribute("button.primary-toggle", "aria-expanded") == "false"


@pytest.mark.parametrize("document", [CHAPTER, LAB])
def test_whatever_scrolls_is_a_named_stop_of_the_keyboard(visit, document):
    page = visit(document, width=360).page
    scrolling = page.evaluate(
        """[...document.querySelectorAll('.bd-article *')].filter(e =>
             /auto|scroll/.test(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1
               && e.getClientRects().length && !e.querySelector('a[href], button, input, select'))
           .map(e => [e.tabIndex, e.getAttribute('aria-label'), e.outerHTML.slice(0, 120)])"""
    )
    assert scrolling
    assert [html for stop, name, html in scrolling if stop < 0 or not name] == []


def test_search_from_a_file_finds_the_chapter(visit):
    seen = visit("index.html")
    seen.page.keyboard.press("Control+k")
    seen.page.keyboard.type("padding")
    seen.page.keyboard.press("Enter")
    seen.page.wait_for_selector("ul.search li a", timeout=10_000)
    links = seen.page.evaluate("[...document.querySelectorAll('ul.search li a')].map(a => a.href)")
    assert any(CHAPTER in link for link in links)
    assert seen.faults == []


def test_on_paper_only_the_text_is_left_and_folded_parts_are_open(visit):
    page = visit(CHAPTER).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    for chrome in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", "button.copybtn"):
        assert not page.locator(chrome).first.is_visible(), f"{chrome} is printed"
    assert page.locator(".bd-article p").first.is_visible()
    assert page.locator(".bd-article details:not([open]):not(figure details)").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".bd-article details:not([open]):not(figure details)").count() > 0


def test_a_page_read_in_the_dark_is_printed_in_ink_on_white_and_is_dark_again_afterwards(visit):
    page = visit(CHAPTER, "dark").page
    colours = "() => ['body', '.bd-article h2', '.bd-article p'].map(e => getComputedStyle(document.querySelector(e)))"
    lightness = (
        f"({colours})().map((s, i) => s[i ? 'color' : 'backgroundColor'].match(/[0-9]+/g).slice(0, 3).map(Number))"
    )
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    paper, heading, text = page.evaluate(lightness)
    assert min(paper) > 250
    assert max(heading) < 110
    assert max(text) < 110
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.get_attribute("html", "data-theme") == "dark"
