"""What stops a site from being published, and what is mended in a page before."""

from __future__ import annotations

import json

import pytest
from bs4 import BeautifulSoup

from autograder.release.site_audit import audit, external_requests
from autograder.release.site_pages import patch_page, patch_site, plain_notebook, reading_minutes, write_notebooks


def requests_of(html):
    return external_requests(BeautifulSoup(html, "html.parser"))


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://a.example/x.js"></script>',
        '<script src="//a.example/x.js"></script>',
        '<link rel="stylesheet" href="https://a.example/x.css">',
        '<link rel="preload" as="font" href="https://a.example/x.woff2">',
        '<img src="https://a.example/x.png">',
        '<img src="x.png" srcset="y.png 1x, https://a.example/x.png 2x">',
        '<iframe src="https://a.example/"></iframe>',
        '<object data="https://a.example/x.svg"></object>',
        '<video poster="https://a.example/x.png"></video>',
        '<svg><image xlink:href="https://a.example/x.png"/></svg>',
        "<style>@import 'https://a.example/x.css';</style>",
        '<p style="background: url(https://a.example/x.png)">text</p>',
        '<script>fetch("https://a.example/x.json")</script>',
        "<script>import('//a.example/x.js')</script>",
    ],
)
def test_whatever_a_browser_would_fetch_from_another_host_is_found(html):
    assert len(requests_of(html)) == 1


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://a.example/paper">a link is no fetch</a>',
        '<link rel="canonical" href="https://a.example/">',
        '<script src="../_static/x.js"></script>',
        '<img src="data:image/png;base64,//8=">',
        '<script>document.createElementNS("http://www.w3.org/2000/svg", "g")</script>',
        "<script>// a comment about https://a.example\nlet x = 1;</script>",
    ],
)
def test_what_stays_in_the_folder_is_let_through(html):
    assert requests_of(html) == []


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_a_dead_link_a_dead_anchor_and_a_way_out_are_named_with_their_page(tmp_path):
    write(tmp_path, "chapters/one.html", '<h2 id="here">x</h2><a href="two.html#there">a</a><a href="three.html">b</a>')
    write(tmp_path, "chapters/two.html", '<a href="one.html#here">a</a><a href="../../secret.txt">b</a>')
    assert audit(tmp_path) == [
        "chapters/one.html: two.html#there leads to no such place on the page",
        "chapters/one.html: three.html leads to no file",
        "chapters/two.html: ../../secret.txt leaves the built folder",
    ]


def test_a_style_sheet_that_imports_from_a_host_is_named(tmp_path):
    write(tmp_path, "_static/x.css", "@font-face { src: url('https://fonts.example/f.woff2') }")
    assert audit(tmp_path) == ["_static/x.css: fetches https://fonts.example/f.woff2"]


def test_a_path_of_the_building_machine_is_found(tmp_path):
    write(tmp_path, "index.html", "<pre>File /home/someone/course/lab.py</pre>")
    assert audit(tmp_path, forbidden=("/home/someone/course",)) == [
        "index.html: shows a path of this machine (/home/someone/course)"
    ]


PAGE = """<html><head><meta name="viewport" content="a"><meta name="viewport" content="b">
<link rel="preload" as="font" href="f.woff2"><link href="_static/sphinx-thebe.css" rel="stylesheet">
<script>const THEBE_JS_URL = "https://unpkg.com/thebe@0.8.2/lib/index.js"</script><script src="keep.js"></script></head>
<body>
<button class="sidebar-toggle primary-toggle" title="Toggle primary sidebar"><span class="fa-solid"></span></button>
<ul class="bd-sidenav"><li><a href="x.html">Lab 3</a><details><summary><i class="fa-x"></i></summary></details>
</li></ul>
<h2>Blocks<a class="headerlink" href="#blocks">#</a></h2><h3> </h3><svg viewBox="0 0 1 1"><path d="M0 0"/></svg>
<a class="btn-download-source-button" href="_sources/c.md"><span class="btn__text-container">.md</span></a>
</body></html>"""


def test_a_patched_page_asks_no_host_and_names_its_controls():
    soup = BeautifulSoup(patch_page(PAGE), "html.parser")
    assert external_requests(soup) == []
    assert [script.get("src") for script in soup.find_all("script")] == ["keep.js"]
    assert len(soup.find_all("meta", attrs={"name": "viewport"})) == 1
    assert soup.find("link") is None
    assert soup.button["aria-label"] == "Toggle primary sidebar"
    assert soup.summary["aria-label"] == "Pages of Lab 3"
    assert soup.select_one("a.headerlink")["aria-label"] == "Link to Blocks"
    assert soup.find("h3") is None


ARTICLE = """<html><body><article>
<p>Of 56 % and <span class="pasted-text">12</span> GiB, <span class="pasted-text">3</span>
ms each, 8 blocks; size <span class="math">\\(B\\)</span>, or <span class="math">\\(n\\)</span> of 4 seats.</p>
<pre>print("56 %")</pre><output>8 GiB</output></article></body></html>"""


def test_a_number_keeps_its_unit_and_a_formula_its_comma():
    mended = BeautifulSoup(patch_page(ARTICLE), "html.parser")
    words = mended.p.get_text()
    assert all(f"{number}\u00a0{unit}" in words for number, unit in (("56", "%"), ("12", "GiB"), ("3", "ms")))
    assert "8 blocks" in words
    assert "4 seats" in words
    assert mended.pre.get_text() == 'print("56 %")'
    assert mended.output.get_text() == "8 GiB", "a script writes it anew"
    assert [kept.get_text() for kept in mended.select(".together")] == ["\\(B\\),"]


def test_a_first_visit_has_a_mode_that_the_theme_knows():
    script = '<script>document.documentElement.dataset.mode = localStorage.getItem("mode") || "";</script>'
    mended = patch_page(f"<html><head>{script}</head><body></body></html>")
    assert 'localStorage.getItem("mode") || "auto"' in mended


@pytest.mark.parametrize("page", [PAGE, ARTICLE])
def test_patching_twice_changes_nothing(page):
    once = patch_page(page, has_notebook=True)
    assert patch_page(once, has_notebook=True).split() == once.split()


def test_a_page_is_mended_once_until_it_is_written_anew(tmp_path):
    write(tmp_path, "index.html", PAGE)
    assert [patch_site(tmp_path), patch_site(tmp_path)] == [1, 0]
    write(tmp_path, "index.html", PAGE)
    assert patch_site(tmp_path) == 1


EXECUTED = {
    "cells": [
        {
            "cell_type": "markdown",
            "metadata": {},
            "source": ["{glue:text}`pads` pads, {glue:text}`share:.1f` %, {glue}`who`"],
        },
        {
            "cell_type": "code",
            "metadata": {},
            "execution_count": 3,
            "outputs": [{"output_type": "stream"}],
            "source": "1",
        },
    ],
    "metadata": {"kernelspec": {"name": "python3"}, "source_map": [1]},
    "nbformat": 4,
    "nbformat_minor": 5,
}
GLUED = {"pads": {"data": {"text/plain": "'3'"}}, "share": {"data": {"text/plain": "21.43"}}}


def test_a_downloaded_notebook_has_numbers_in_its_prose_and_no_outputs():
    prose, code = plain_notebook(EXECUTED, GLUED)["cells"]
    assert prose["source"] == "3 pads, 21.4 %, {glue}`who`"
    assert (code["outputs"], code["execution_count"]) == ([], None)


def test_the_download_button_of_a_text_chapter_gives_a_notebook(tmp_path):
    html, executed = tmp_path / "html", tmp_path / "executed"
    write(html, "_sources/c.md", "text")
    write(html, "_sources/plain.md", "a page without cells")
    write(executed, "c.ipynb", json.dumps(EXECUTED))
    write(html, "c.html", PAGE)
    write(html, "plain.html", PAGE)
    assert [path.name for path in write_notebooks(executed, html)] == ["c.ipynb"]
    patch_site(html)
    assert 'href="_sources/c.ipynb"' in (html / "c.html").read_text()
    assert 'href="_sources/c.md"' in (html / "plain.html").read_text()


def article(words=0, lines=0, figures=0, more=""):
    code = "\n".join(["x = 1"] * lines)
    return (
        f"<article><h1>Title</h1><p>{'word ' * words}</p>"
        f'<div class="cell"><div class="cell_input"><pre>{code}</pre></div></div>'
        + '<div class="cell_output"><div class="output text_html"><p>seen, not read</p></div></div>' * figures
        + f"{more}</article>"
    )


def minutes(**parts):
    return reading_minutes(BeautifulSoup(article(**parts), "html.parser"))


def test_reading_time_counts_words_shown_code_and_figures():
    assert minutes(words=2_000) == 10
    assert minutes(words=2_000, lines=60) == 15
    assert minutes(words=2_000, lines=60, figures=3) == 17
    assert minutes() == 1


@pytest.mark.parametrize(
    "hidden",
    [
        f"<details><summary>Answer</summary><p>{'word ' * 2_000}</p></details>",
        f'<details class="hide"><div class="cell_input"><pre>{"x = 1" * 2_000}</pre></div></details>',
        f'<section id="exercises"><p>{"word " * 2_000}</p></section>',
        f"<script>{'word ' * 2_000}</script>",
    ],
    ids=["folded answer", "folded code", "exercises", "script"],
)
def test_reading_time_leaves_out_what_is_folded_and_what_is_work(hidden):
    assert minutes(words=200, more=hidden) == 1


def test_a_chapter_says_its_reading_time_once_below_its_title_and_other_pages_do_not():
    page = f"<html><head></head><body>{article(words=2_000)}</body></html>"
    once = patch_page(page, is_chapter=True)
    soup = BeautifulSoup(patch_page(once, is_chapter=True), "html.parser")
    (said,) = soup.select(".reading-time")
    assert said.get_text() == "About 10 minutes to read"
    assert said.find_previous_sibling("h1") is not None
    assert "reading-time" not in patch_page(page)
