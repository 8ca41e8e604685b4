"""Every page of the book, opened from the built folder in a browser without a network."""

from __future__ import annotations

import re

import pytest

from autograder.release.site_pages import pages
from tests.site.conftest import open_page
from tests.site.pages import CHAPTERS, DOCUMENTS, EVERY_PAGE

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WIDTHS = (1280, 360)


@pytest.fixture(scope="module", params=EVERY_PAGE)
def document(request):
    """Each page in turn: for the module, so that all tests of one page run before those of the next."""
    return request.param


@pytest.fixture(scope="module")
def opened(site, browser, document):
    """The page as it opened, by width; every test of the page looks at these two and leaves them as they were."""
    both = {width: open_page(site, browser, document, "light", width) for width in WIDTHS}
    yield both
    for seen in both.values():
        seen.page.context.close()


def show_in(page, mode):
    """The colours of a mode, as the theme's own switch sets them."""
    page.emulate_media(color_scheme=mode)
    page.evaluate("mode => Object.assign(document.documentElement.dataset, { mode, theme: mode })", mode)
    page.wait_for_timeout(300)


def test_these_tests_look_at_every_page_that_was_built(site):
    assert {page.relative_to(site).as_posix() for page in pages(site)} == set(EVERY_PAGE)
    assert DOCUMENTS[0] == "index.html"
    assert CHAPTERS
    assert any(name.startswith("labs/") for name in DOCUMENTS)


def test_a_page_opens_without_network_fault_or_console_error(opened):
    assert [seen.faults for seen in opened.values()] == [[], []]


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_violation_of_wcag_2_2_aa(opened, mode, width):
    from axe_playwright_python.sync_playwright import Axe

    page = opened[width].page
    show_in(page, mode)
    found = Axe().run(page, options={"runOnly": WCAG, "resultTypes": ["violations"]}).response["violations"]
    show_in(page, "light")
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found] == []


def test_a_page_does_not_scroll_sideways_on_a_phone_whatever_is_unfolded(opened):
    page = opened[360].page
    page.evaluate(
        """() => { for (const d of document.querySelectorAll('.bd-article details:not([open])')) {
            d.open = true; d.dataset.opened = ''; } }"""
    )
    page.wait_for_timeout(200)
    width = page.evaluate("document.documentElement.scrollWidth")
    page.evaluate(
        "document.querySelectorAll('[data-opened]').forEach(d => { d.open = false; delete d.dataset.opened })"
    )
    assert width <= 360


def test_every_formula_is_set_and_no_source_is_left(opened):
    page = opened[1280].page
    assert page.evaluate("[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container'))") == []
    assert page.evaluate("document.querySelectorAll('mjx-merror').length") == 0


def test_some_page_has_a_formula_to_set(site):
    assert any('class="math' in (site / name).read_text(encoding="utf-8") for name in CHAPTERS)


def test_every_picture_is_loaded_and_described(opened):
    page = opened[1280].page
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    undescribed = "[...document.querySelectorAll('.bd-article img')].filter(i => !i.alt || /[0-9a-f]{32}/.test(i.alt))"
    assert page.evaluate(f"{undescribed}.map(i => i.outerHTML.slice(0, 200))") == []
    unnamed = """[...document.querySelectorAll('.bd-article svg:not([aria-hidden=true])')].filter(s =>
        !s.closest('button, [aria-hidden=true]') && !(s.getAttribute('role') === 'img' && (
            s.getAttribute('aria-label') || s.getAttribute('aria-labelledby') || s.querySelector('title'))))"""
    assert page.evaluate(f"{unnamed}.map(s => s.outerHTML.slice(0, 200))") == []
    # Read, not seen: a figure may stand in a fold.
    silent = """[...document.querySelectorAll('.bd-article figure')].filter(
        f => !f.querySelector('figcaption')?.textContent)"""
    assert page.evaluate(f"{silent}.map(f => f.outerHTML.slice(0, 200))") == []


def test_every_page_has_the_icon_of_the_project_from_its_own_folder(site, document):
    links = re.findall(r"<link[^>]*>", (site / document).read_text(encoding="utf-8"))
    (icon,) = (re.search(r'href="([^"]+)"', link)[1] for link in links if re.search(r'rel="[^"]*\bicon\b', link))
    assert (site / document).parent.joinpath(icon).resolve() == (site / "_static" / "favicon.svg").resolve()
    assert (site / "_static" / "favicon.svg").read_text(encoding="utf-8").lstrip().startswith("<svg")


def test_the_chapter_shows_its_figures(visit):
    page = visit("chapters/rectangles.html").page
    sizes = page.evaluate(
        """[...document.querySelectorAll('.cell_output svg, .cell_output img')]
           .map(f => f.getBoundingClientRect()).map(b => [b.width, b.height])"""
    )
    assert sum(width > 100 and height > 100 for width, height in sizes) >= 2


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_page_keeps_the_colours_the_reader_chose(visit, mode):
    page = visit("index.html", mode).page
    channels = [int(c) for c in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))]
    assert len(channels) == 3, "the page has no background of its own"
    assert min(channels) > 230 if mode == "light" else max(channels) < 50
