"""Every page of the book, opened from the built folder in a browser without a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

_TOC = (Path(__file__).resolve().parents[2] / "_toc.yml").read_text(encoding="utf-8")
DOCUMENTS = [f"{name}.html" for name in re.findall(r"^\s*-?\s*(?:root|file):\s*(\S+)\s*$", _TOC, re.MULTILINE)]
CHAPTERS = [name for name in DOCUMENTS if name.startswith("chapters/")]
EVERY_PAGE = [*DOCUMENTS, "search.html", "genindex.html"]
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

on_every_page = pytest.mark.parametrize("document", EVERY_PAGE)
in_both_modes = pytest.mark.parametrize("mode", ["light", "dark"])


def test_the_table_of_contents_names_a_landing_page_a_chapter_and_a_lab():
    assert DOCUMENTS[0] == "index.html"
    assert CHAPTERS
    assert any(name.startswith("labs/") for name in DOCUMENTS)


@on_every_page
def test_a_page_opens_without_network_fault_or_console_error(look, document):
    assert look(document).faults == []


@on_every_page
@in_both_modes
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_violation_of_wcag_2_2_aa(look, document, mode, width):
    from axe_playwright_python.sync_playwright import Axe

    seen = look(document, mode, width)
    found = Axe().run(seen.page, options={"runOnly": WCAG, "resultTypes": ["violations"]}).response["violations"]
    assert [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found] == []


@on_every_page
def test_a_page_does_not_scroll_sideways_on_a_phone(visit, document):
    page = visit(document, width=360).page
    page.evaluate("document.querySelectorAll('.bd-article details').forEach(d => { d.open = true; })")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@on_every_page
def test_every_formula_is_set_and_no_source_is_left(look, document):
    page = look(document).page
    assert page.evaluate("[...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container'))") == []
    assert page.evaluate("document.querySelectorAll('mjx-merror').length") == 0


def test_some_page_has_a_formula_to_set(look):
    counts = [look(name).page.evaluate("document.querySelectorAll('mjx-container').length") for name in CHAPTERS]
    assert sum(counts) > 0


@on_every_page
def test_every_picture_is_loaded_and_described(look, document):
    page = look(document).page
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    undescribed = "[...document.querySelectorAll('.bd-article img')].filter(i => !i.alt || /[0-9a-f]{32}/.test(i.alt))"
    assert page.evaluate(f"{undescribed}.map(i => i.outerHTML.slice(0, 200))") == []
    unnamed = """[...document.querySelectorAll('.bd-article svg[role=img]')].filter(s =>
        !s.getAttribute('aria-label') && !s.getAttribute('aria-labelledby') && !s.querySelector('title'))"""
    assert page.evaluate(f"{unnamed}.map(s => s.outerHTML.slice(0, 200))") == []


def test_the_chapter_shows_its_figures(look):
    page = look("chapters/rectangles.html").page
    sizes = page.evaluate(
        """[...document.querySelectorAll('.cell_output svg, .cell_output img')]
           .map(f => f.getBoundingClientRect()).map(b => [b.width, b.height])"""
    )
    assert sum(width > 100 and height > 100 for width, height in sizes) >= 2


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_page_keeps_the_colours_the_reader_chose(look, mode):
    page = look("index.html", mode).page
    channels = [int(c) for c in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))]
    assert len(channels) == 3, "the page has no background of its own"
    assert min(channels) > 230 if mode == "light" else max(channels) < 50
