"""The book as PDF: what is joined for paper, what is left out of it, and the whole book as Chromium prints it."""

from __future__ import annotations

import importlib.util
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from bs4 import BeautifulSoup

from autograder.cli import main
from autograder.release import pdf
from autograder.release.pdf_pages import entries, join
from autograder.release.site import SiteError
from labkit.player import Player
from labkit.quizzes import quiz
from tests.labkit.engine_story import engine_story

prints = pytest.mark.skipif(
    not shutil.which("chromium") or not all(map(importlib.util.find_spec, ("playwright", "pypdf"))),
    reason="chromium, playwright or pypdf is not installed",
)
NAVIGATION = """<nav class="bd-links"><a class="reference internal" href="#">A book</a>
<p class="caption">Chapters</p><a class="reference internal" href="chapters/one.html">1. One</a>
<a class="reference internal" href="chapters/two.html">2. Two</a>
<p class="caption">Labs</p><a class="reference internal" href="labs/lab/lab.html">The notebook</a></nav>"""


def page(title, body, navigation=""):
    section = f'<section id="here"><h1>{title}<a class="headerlink" href="#here">#</a></h1>{body}</section>'
    return f"<html><head></head><body>{navigation}<article class='bd-article'>{section}</article></body></html>"


@pytest.fixture
def built(tmp_path):
    """A built site of a landing page, two chapters and a notebook; `write(name, title, body)` replaces a page."""

    def write(name, title, body):
        file = tmp_path / "html" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(title, body, NAVIGATION if name == "index.html" else ""), encoding="utf-8")

    write("index.html", "A book", "<p>What it is about.</p>")
    write("chapters/one.html", "1. One", "<h2>First things</h2><p>Text of one.</p>")
    write("chapters/two.html", "2. Two", "<p>Text of two.</p>")
    write("labs/lab/lab.html", "The notebook", "<p>To be worked in.</p>")
    return tmp_path / "html", write


def print_book(html, file):
    """In a thread of its own: the browser of other tests may be open in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(pdf.print_book, html, file, progress=lambda line: None).result()


def joined(html):
    return BeautifulSoup(join(html), "html.parser")


def test_the_order_is_that_of_the_navigation_and_notebooks_stay_out(built):
    assert [(entry.id, entry.part) for entry in entries(built[0])] == [
        ("index", ""),
        ("chapters-one", "Chapters"),
        ("chapters-two", "Chapters"),
    ]


def test_ids_that_pages_share_stay_apart_and_links_between_pages_lead_into_the_document(built):
    html, write = built
    write(
        "chapters/one.html",
        "1. One",
        '<p><a href="two.html#here">a</a><a href="#here">b</a><a href="two.html">c</a></p>',
    )
    soup = joined(html)
    ids = [tag["id"] for tag in soup.select("[id]")]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in soup.select("#chapters-one p a")]
    assert links == ["#chapters-two--here", "#chapters-one--here", "#chapters-two"]
    assert {href[1:] for href in links} <= set(ids)


def test_a_link_to_what_is_not_in_the_book_is_words_and_one_to_the_web_is_kept(built):
    html, write = built
    body = '<p><a href="../labs/lab/lab.html">the notebook</a>, <a href="https://a.example/paper">a paper</a></p>'
    write("chapters/one.html", "1. One", body)
    said = joined(html).select_one("#chapters-one p")
    assert said.get_text() == "the notebook, a paper"
    assert [link["href"] for link in said.find_all("a")] == ["https://a.example/paper"]


def test_a_drawing_still_points_at_its_own_parts(built):
    html, write = built
    drawing = (
        '<style>#fig > b { color: red }</style><figure class="p2p" id="fig"><svg aria-labelledby="t"><title id="t">x'
        '</title><clipPath id="c"/><use xlink:href="#c"/><path clip-path="url(#c)" fill="#ccc"/></svg></figure>'
    )
    write("chapters/one.html", "1. One", drawing)
    text = join(html)
    for part in (
        "#chapters-one--fig > b",
        'aria-labelledby="chapters-one--t"',
        'xlink:href="#chapters-one--c"',
        'clip-path="url(#chapters-one--c)"',
        'fill="#ccc"',
    ):
        assert part in text


def test_a_style_that_many_figures_bring_is_kept_once_and_no_other_is_lost(built):
    html, write = built
    first, second = "<style>.a > b { margin: 0 }</style>", "<style>.c > d { margin: 0 }</style>"
    write("chapters/one.html", "1. One", first + second)
    write("chapters/two.html", "2. Two", second + first)
    text = join(html)
    assert text.count(".a > b") == text.count(".c > d") == 1


def test_a_question_is_printed_with_its_options_and_without_its_answer(built):
    html, write = built
    asked = quiz("How many?", {"two": "Because of this.", "three": "Not that."}, "two")
    write("chapters/one.html", "1. One", asked._repr_html_())
    text = joined(html).select_one("#chapters-one form").get_text(" ")
    assert all(word in text for word in ("How many?", "two", "three"))
    assert not any(word in text for word in ("Because of this", "Not that", "Show the answer", "Yes."))


def test_a_player_is_printed_as_its_last_state_and_all_its_steps(built):
    html, write = built
    player = Player(engine_story(), "A memory")
    write("chapters/one.html", "1. One", player._repr_html_())
    figure = joined(html).select_one("#chapters-one .p2p-player")
    assert len(figure.select(".p2p-panel:not([hidden])")) == len(figure.select(".p2p-panel")) == 1
    assert len(figure.select("details[open] > ol > li")) == len(player)
    assert not figure.select("button, script")


def test_folded_answers_are_open_and_code_that_only_draws_stays_out(built):
    html, write = built
    body = (
        '<details class="sd-dropdown"><summary>Answer to 1</summary><p>It is so.</p></details>'
        '<details class="admonition hide above-input"><summary>Show</summary><pre>plot()</pre></details>'
        '<details class="admonition hide below-input"><summary>Show</summary><pre>42</pre></details>'
    )
    write("chapters/one.html", "1. One", body)
    chapter = joined(html).select_one("#chapters-one")
    assert [details.get("open") for details in chapter.find_all("details")] == [""]
    assert "It is so." in chapter.get_text()
    assert "42" in chapter.get_text()
    assert "plot()" not in chapter.get_text()
    assert "Show" not in chapter.get_text()


@prints
@pytest.mark.browser
def test_a_small_book_has_an_outline_numbers_in_its_contents_and_titles_on_its_sheets(built, tmp_path):
    from pypdf import PdfReader

    html, write = built
    write("chapters/one.html", "1. One", '<p>Text of one.</p><p style="break-before: page">More of it.</p>')
    book = print_book(html, tmp_path / "out" / "book.pdf")
    assert book.starts == {"index": 3, "chapters-one": 4, "chapters-two": 6}
    reader = PdfReader(book.file)
    assert [entry.title for entry in reader.outline if not isinstance(entry, list)] == [
        "A book",
        "Contents",
        "Preface",
        "1. One",
        "2. Two",
    ]
    sheets = [sheet.extract_text() for sheet in reader.pages]
    assert len(sheets) == book.num_pages == 6
    contents = sheets[1].split()
    assert [contents[contents.index(word) + 1] for word in ("Preface", "One", "Two")] == ["3", "4", "6"]
    assert "1. One" in sheets[4]
    assert "More of it." in sheets[4]


@prints
@pytest.mark.browser
def test_a_page_that_asks_another_host_while_it_is_printed_is_refused_and_the_old_file_stays(built, tmp_path):
    html, write = built
    old = tmp_path / "book.pdf"
    old.write_bytes(b"the old book")
    write("chapters/two.html", "2. Two", '<p><img src="https://a.example/x.png" alt="x"></p>')
    with pytest.raises(SiteError, match=r"asks another host: https://a\.example/x\.png"):
        print_book(html, old)
    assert old.read_bytes() == b"the old book"


def test_without_chromium_one_line_says_how_it_is_installed(built, monkeypatch, capsys):
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    assert main(["pdf", "--site", str(built[0])]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "apt-get install chromium" in line


@prints
def test_a_folder_without_a_built_site_says_what_to_do(tmp_path):
    with pytest.raises(SiteError, match="course site"):
        pdf.print_book(tmp_path, tmp_path / "book.pdf")


@prints
@pytest.mark.browser
@pytest.mark.slow
def test_the_whole_book_is_printed_each_chapter_with_its_title_figures_and_sections(site, tmp_path):
    from pypdf import PdfReader

    book = print_book(site, tmp_path / "book.pdf")
    reader = PdfReader(book.file)
    outline = list(_titles(reader.outline))
    pages = entries(site)
    chapters = [entry for entry in pages if entry.part == "Chapters"]
    assert book.num_pages > 3 * len(chapters) > 0
    assert sorted(book.starts.values()) == list(book.starts.values())
    for entry in pages[1:]:
        heading = BeautifulSoup((site / entry.address).read_text(encoding="utf-8"), "html.parser").select_one(
            "article h1"
        )
        title = "".join(heading.find_all(string=True)).removesuffix("#").strip()
        assert title in outline
        assert title.split(". ")[-1] in reader.pages[book.starts[entry.id] - 1].extract_text().replace("\n", " ")
    # By the drawing itself, which is quicker than its text: head and number alone take 1,900 bytes.
    empty = [n for n, sheet in enumerate(reader.pages, 1) if len(sheet.get_contents().get_data()) < 3_000]
    assert empty == [], "sheets with nothing but their title"
    web = [str(link["/A"]["/URI"]) for link in _links(reader) if "/URI" in link.get("/A", {})]
    assert [address for address in web if not address.startswith("http")] == [], (
        "links that lead to no place in the book"
    )
    assert len(_links(reader)) - len(web) > 10 * len(chapters)


def _links(reader):
    return [mark.get_object() for sheet in reader.pages for mark in sheet.get("/Annots") or []]


def _titles(outline):
    for entry in outline:
        if isinstance(entry, list):
            yield from _titles(entry)
        else:
            yield " ".join(entry.title.split())
