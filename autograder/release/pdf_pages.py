"""The pages of the built site joined into one document for paper.

Owns: which pages make the book and in what order (the landing page's own navigation says it), the ids and links that
must not clash when pages become one, and what a figure or question leaves out on paper. Knows nothing of browsers or
of PDF: `pdf.py` prints what is made here. A page is changed in memory alone; the site stays as it was built.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag
from bs4.element import Stylesheet

from autograder.release.site_pages import words_of
from autograder.release.site_preview import ALT

_NOTEBOOKS = "labs"
"""Pages below this folder are notebooks: they are worked in, not read on paper."""

_NOT_ON_PAPER = (
    "script",
    ".headerlink",
    ".toctree-wrapper",
    ".p2p-live",
    ".p2p-player .p2p-controls",
    ".p2p-player section.p2p-panel:not(:last-child)",
    ".p2p-twin",
    ".p2p-quiz details",
    ".p2p-feedback",
    "figure.p2p:not(.p2p-budget) > details",
    ".p2p-builder [role=group]",
    ".p2p-budget .p2p-controls button",
    "details.above-input",
    "details.hide > summary",
)
"""What only a screen can use, the answers of questions, the code that is folded because it only draws, and the tables
of pictures that stand beside them.

A player leaves its last state and its list of steps, the budget bar its table, a switch each of its figures.
"""

_NOTE = (
    '<p class="book-note">This book is printed from its website. There, figures can be stepped through, every option '
    "of a question says why it is right or wrong, and each chapter can be had as a notebook, with the code of its "
    "plots.</p>"
)
_MOST_LINES_KEPT = 25
"""Code with more lines may go on upon the next sheet; shorter code is not torn."""
_POINTS_AT_IDS = ("for", "aria-labelledby", "aria-describedby", "aria-controls", "headers")
_IN_STYLE = re.compile(r"#([A-Za-z][\w-]*)")


@dataclass(frozen=True)
class Entry:
    """One page of the book: its address in the site, the id it gets in the joined document, the part it stands in."""

    address: str
    id: str
    part: str


def entries(html: Path) -> list[Entry]:
    """The pages that make the book, in reading order, the landing page first.

    Raises: ValueError if the landing page has no navigation to read the order from.
    """
    soup = _parsed(html / "index.html")
    found = [Entry("index.html", "index", "")]
    part = ""
    for tag in soup.select("nav.bd-links p.caption, nav.bd-links a.reference.internal"):
        address = str(tag.get("href") or "")
        if tag.name == "p":
            part = _words(tag)
        elif address.endswith(".html") and not address.startswith(f"{_NOTEBOOKS}/"):
            found.append(Entry(address, address.removesuffix(".html").replace("/", "-"), part))
    if len(found) == 1:
        raise ValueError(f"{html / 'index.html'} names no pages: its navigation is missing")
    return found


def join(html: Path, cover: Path | None = None) -> str:
    """The whole book as one HTML document: cover (with the picture `cover`), contents, every page of `entries`.

    Pictures and style sheets are named by their place on this machine, links between pages by ids of the document.
    Raises: ValueError naming a page without an article. Cost: each page is parsed once.
    """
    book = entries(html)
    ids = {entry.address: entry.id for entry in book}
    landing = _parsed(html / "index.html")
    styles = [_file(html, html, str(link["href"])) for link in landing.select("head link[rel=stylesheet]")]
    articles = [_article(html, entry, ids) for entry in book]
    titles = [_title(article, entry) for article, entry in zip(articles, book, strict=True)]
    _call_it_preface(articles[0])
    titles[0] = "Preface"
    _keep_first_of_equal_styles(articles)
    math = html / "_static" / "mathjax" / "tex-chtml.js"
    setup = next((script for script in landing.find_all("script") if "window.MathJax" in (script.string or "")), "")
    name = _words(landing.select_one("nav.bd-links a")) or "The book"
    return "".join(
        (
            '<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">',
            f"<title>{escape(name)}</title>",
            *(f'<link rel="stylesheet" href="{style}">' for style in styles),
            f"<style>{files('autograder.release').joinpath('pdf.css').read_text(encoding='utf-8')}</style>",
            f"<style>{_running_heads(name, book, titles)}</style>",
            f'{setup}<script defer src="{math.as_uri()}"></script>' if math.is_file() else "",
            '</head><body><main class="bd-content">',
            _cover(landing, name, cover),
            _contents(book, titles),
            *map(str, articles),
            "</main></body></html>",
        )
    )


def _parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def _words(tag: Tag | None) -> str:
    return " ".join(tag.get_text().split()) if tag is not None else ""


def _file(html: Path, folder: Path, address: str) -> str:
    """The address of a file beside a page as one that works from anywhere on this machine."""
    path = (folder / unquote(urlsplit(address).path)).resolve()
    return path.as_uri() if path.is_relative_to(html.resolve()) else address


def _article(html: Path, entry: Entry, ids: dict[str, str]) -> Tag:
    """The article of one page, fit to stand in one document with the others."""
    page = html / entry.address
    article = _parsed(page).select_one("article")
    if article is None:
        raise ValueError(f"{entry.address} has no article")
    for part in article.select(", ".join(_NOT_ON_PAPER)):
        part.decompose()
    for details in article.find_all("details"):
        # Without its summary a browser would write one of its own.
        details["open"], details.name = "", "div" if "hide" in words_of(details, "class") else "details"
    for region in article.select("[tabindex]"):
        del region["tabindex"]
    for code in article.select(".cell_input, div.highlight"):
        if code.get_text().count("\n") > _MOST_LINES_KEPT:
            code["class"] = " ".join([*words_of(code, "class"), "book-long"])
    for picture in article.select("img[src]"):
        picture["src"] = _file(html, page.parent, str(picture["src"]))
    _rename_ids(article, entry.id)
    for link in article.select("a[href]"):
        _relink(link, entry, ids)
    article["id"], article["class"] = entry.id, "bd-article book-page"
    return article


def _rename_ids(article: Tag, page: str) -> None:
    """Ids and all that points at them on the same page get the page's name, so that no two pages clash."""
    own = {str(tag["id"]): f"{page}--{tag['id']}" for tag in article.select("[id]")}
    for tag in article.find_all(True):
        for name, value in list(tag.attrs.items()):
            if name == "id":
                tag["id"] = own[str(value)]
            elif name in _POINTS_AT_IDS:
                names = value if isinstance(value, list) else str(value).split()
                tag[name] = " ".join(own.get(word, word) for word in names)
            elif name == "xlink:href" or (isinstance(value, str) and "url(#" in value):
                tag[name] = _renamed(str(value), own)
        if tag.name == "style" and tag.string:
            # As a style sheet: a plain string in its place is no text of the tag when styles are compared.
            tag.string = Stylesheet(_renamed(tag.string, own))


def _renamed(text: str, own: dict[str, str]) -> str:
    return _IN_STYLE.sub(lambda found: "#" + own.get(found.group(1), found.group(1)), text)


def _relink(link: Tag, entry: Entry, ids: dict[str, str]) -> None:
    """A link to a page of the book leads into the document, one to the web stays; any other is words alone."""
    parts = urlsplit(str(link["href"]))
    if parts.scheme in {"http", "https", "mailto"}:
        return
    there = _resolved(entry.address, unquote(parts.path)) if parts.path else entry.address
    if there not in ids:
        link.unwrap()
        return
    link["href"] = f"#{ids[there]}--{unquote(parts.fragment)}" if parts.fragment else f"#{ids[there]}"


def _resolved(page: str, address: str) -> str:
    """`address`, seen from `page`, from the top of the site."""
    steps: list[str] = []
    for step in (PurePosixPath(page).parent / address).parts:
        if step == ".." and steps:
            steps.pop()
        elif step != "..":
            steps.append(step)
    return "/".join(steps)


def _title(article: Tag, entry: Entry) -> str:
    heading = article.find("h1")
    if not isinstance(heading, Tag):
        raise ValueError(f"{entry.address} has no title")
    return _words(heading)


def _call_it_preface(article: Tag) -> None:
    """The landing page's title is the book's, which stands on the cover."""
    heading = article.find("h1")
    if isinstance(heading, Tag):
        heading.string = "Preface"


def _keep_first_of_equal_styles(articles: list[Tag]) -> None:
    """Each figure brings its style sheet, the same one dozens of times."""
    seen: set[str] = set()
    for style in (style for article in articles for style in article.find_all("style")):
        text = style.get_text()
        if text in seen:
            style.decompose()
        seen.add(text)


def _running_heads(name: str, book: list[Entry], titles: list[str]) -> str:
    """A named page for each page of the book, with its title at the head of every sheet."""
    rules = []
    for entry, title in zip(book, titles, strict=True):
        rules.append(f"#{entry.id} {{ page: {entry.id}; }}")
        heads = f"@top-left {{ content: {_quoted(name)}; }} @top-right {{ content: {_quoted(title)}; }}"
        rules.append(f"@page {entry.id} {{ {heads} }}")
    return "\n".join(rules)


def _quoted(text: str) -> str:
    escaped = "".join(f"\\{ord(letter):x} " if letter in '"\\<\n' else letter for letter in text)
    return f'"{escaped}"'


def _cover(landing: BeautifulSoup, name: str, picture: Path | None) -> str:
    drawn = f'<img src="{picture.as_uri()}" alt="{ALT}">' if picture is not None else ""
    lead = _words(landing.select_one("article h1 ~ p"))
    return (
        f'<section class="book-cover"><h1>{escape(name)}</h1>{drawn}<p class="book-lead">{escape(lead)}</p>'
        f'<p class="book-small">{escape(_authors(landing))}</p></section>'
    )


def _authors(landing: BeautifulSoup) -> str:
    return " ".join(_words(tag) for tag in landing.select(".bd-footer-content__inner p"))


def _contents(book: list[Entry], titles: list[str]) -> str:
    """The contents; `pdf.py` fills in the numbers once it knows them."""
    rows, part = [], ""
    for entry, title in zip(book, titles, strict=True):
        if entry.part != part:
            part = entry.part
            rows.append(f'<p class="book-part">{escape(part)}</p>')
        number = f'<span data-page-of="{entry.id}">000</span>'
        rows.append(f'<p class="book-entry"><a href="#{entry.id}">{escape(title)}</a>{number}</p>')
    return f'<nav class="book-contents" id="contents"><h1>Contents</h1>{"".join(rows)}{_NOTE}</nav>'
