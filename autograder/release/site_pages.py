"""A built page, made fit to publish: the template's faults mended, dead scripts out, a notebook to download.

Owns: the patches to Jupyter Book's HTML and what is kept of MathJax. Knows nothing of how pages were built: `site.py`
calls it and `site_audit.py` judges the result. Each patch may run twice on the same page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString

from autograder.release.site_preview import add_tags

_DONE = "course-site"
"""Name of the `<meta>` that says a page has been patched; a rewritten page lacks it."""

_KEEP_MATHJAX = ("tex-chtml.js", "output/chtml/fonts/woff-v2/", "input/tex/extensions/", "a11y/", "sre/", "ui/")
"""What a page can ask of MathJax: the bundle that pages link, its fonts, and what the bundle loads on demand."""

_WORDS_A_MINUTE, _LINE_S, _FIGURE_S = 200, 5, 40
"""How fast one reads: prose, a visible line of code, a figure or a question. The page "Start here" says the same."""

_GAP = re.compile(r"(?<=\d)[ \n](?=(?:%|[mµn]?s|[kKMGT]?i?B(?:/s)?|[GT]FLOPs?(?:/s)?)(?![\w/]))")
"""The space between a number and its unit."""

_AS_IT_IS = ["pre", "code", "script", "style", "svg", "output"]
"""Text that keeps its spaces: code, drawings, and what a figure's script writes anew."""

_GLUE_ROLE = re.compile(r"\{glue(?::text)?\}`([^`:]+)(?::([^`]+))?`")


def patch_site(html: Path) -> int:
    """Mend every page of the built folder `html`, drop the parts of MathJax no page can reach; returns pages mended."""
    mended = 0
    for page in pages(html):
        text = page.read_text(encoding="utf-8")
        if f'name="{_DONE}"' in text:
            continue
        has_notebook = _notebook_beside(html, page).is_file()
        is_chapter = has_notebook and page.relative_to(html).parts[0] == "chapters"
        page.write_text(patch_page(text, has_notebook=has_notebook, is_chapter=is_chapter), encoding="utf-8")
        mended += 1
    _prune_mathjax(html / "_static" / "mathjax")
    return mended


def pages(html: Path) -> Iterator[Path]:
    """The pages of the built folder, without fragments that live under `_static`."""
    return (page for page in sorted(html.rglob("*.html")) if "_static" not in page.relative_to(html).parts)


def patch_page(text: str, *, has_notebook: bool = False, is_chapter: bool = False) -> str:
    """One page's HTML with the template's faults mended. `has_notebook`: an .ipynb lies beside its text source;
    `is_chapter`: it says how long it takes to read."""
    soup = BeautifulSoup(text, "html.parser")
    _drop_what_fetches(soup)
    _mend_head(soup)
    _name_controls(soup)
    _mend_landmarks(soup)
    _keep_together(soup)
    if has_notebook:
        _offer_notebook(soup)
    if is_chapter:
        _say_reading_time(soup)
    add_tags(soup)
    return str(soup)


def _drop_what_fetches(soup: BeautifulSoup) -> None:
    """Thebe runs cells on a remote host, which this course never asks for; its scripts come with Jupyter Book."""
    for script in soup.find_all("script"):
        address = str(script.get("src") or "")
        inline = script.string or ""
        thebe = "sphinx-thebe" in address or script.get("type") == "text/x-thebe-config"
        if thebe or "THEBE_JS_URL" in inline or inline.strip().startswith("kernelName"):
            script.decompose()
    for link in soup.find_all("link"):
        # A font preload is refused from file:// (its origin is opaque) and the fonts load without it.
        if "sphinx-thebe" in str(link.get("href")) or (link.get("as") == "font" and "preload" in words_of(link, "rel")):
            link.decompose()


def _mend_head(soup: BeautifulSoup) -> None:
    for script in soup.find_all("script"):
        # On a first visit no mode is stored. The theme then reports an error and takes "auto": take it at once.
        if script.string and 'getItem("mode") || ""' in script.string:
            script.string = script.string.replace('getItem("mode") || ""', 'getItem("mode") || "auto"')
    for extra in soup.find_all("meta", attrs={"name": "viewport"})[1:]:
        extra.decompose()
    if soup.head is not None and soup.head.find("meta", attrs={"name": _DONE}) is None:
        soup.head.append(soup.new_tag("meta", attrs={"name": _DONE, "content": "patched"}))


def _name_controls(soup: BeautifulSoup) -> None:
    """Give a name to each control that has only an icon, and hide decorations from screen readers."""
    for button in soup.select("button.sidebar-toggle"):
        button["aria-label"] = str(button.get("title") or "Toggle the sidebar")
    for box in soup.select("input.sidebar-toggle"):
        side = "primary" if "primary" in str(box.get("id")) else "secondary"
        box["aria-label"] = f"Show the {side} sidebar"
    for summary in soup.select(".bd-sidenav summary"):
        entry = summary.find_parent("li")
        link = entry.find("a") if entry is not None else None
        section = " ".join(link.get_text().split()) if link is not None else "this section"
        summary["aria-label"] = f"Pages of {section}"
    for summary in soup.select("summary[aria-label='Toggle hidden content']"):
        # The visible words name it better, and WCAG 2.5.3 wants them in the name.
        del summary["aria-label"]
    for icon in soup.select("i[class*='fa-'], span[class*='fa-']"):
        icon["aria-hidden"] = "true"
    for link in soup.select("a.headerlink"):
        heading = link.parent
        texts = heading.find_all(string=True) if heading is not None else []
        words = " ".join("".join(text for text in texts if text.parent is not link).split())
        link["aria-label"] = f"Link to {words or 'this place'}"[:120]


def _mend_landmarks(soup: BeautifulSoup) -> None:
    """One main region, each other region named, nothing outside a region, no empty heading or landmark."""
    for sidebar in soup.select("div.bd-sidebar-primary"):
        sidebar["role"], sidebar["aria-label"] = "region", "Course navigation"
    for sidebar in soup.select("div.bd-sidebar-secondary"):
        sidebar["role"], sidebar["aria-label"] = "region", "On this page"
    for nav in soup.select("nav.page-toc"):
        nav["aria-label"] = "Contents of this page"
    for nav in soup.select("#jb-print-toc nav"):
        nav["aria-label"] = "Contents, for print"
    for place in soup.select(".prev-next-area"):
        place["role"], place["aria-label"] = "navigation", "Previous and next page"
    for form in soup.select("form.bd-search"):
        form["role"] = "search"
    for empty in soup.select("header.bd-header, footer.bd-footer"):
        if not empty.get_text(strip=True) and empty.find(True) is None:
            empty["hidden"] = ""
    for heading in soup.find_all(re.compile("^h[1-6]$")):
        if not heading.get_text(strip=True) and heading.find("img") is None:
            heading.decompose()


def _keep_together(soup: BeautifulSoup) -> None:
    """No line begins with the unit of a number or the comma of a formula. Code stays as it was typed."""
    texts = [text for article in soup.select("article") for text in article.find_all(string=True)]
    for text in texts:
        if type(text) is not NavigableString or text.find_parent(_AS_IT_IS):
            continue
        before = text.previous_sibling
        glued = before.get_text()[-1:] if isinstance(before, Tag) and "pasted-text" in words_of(before, "class") else ""
        kept = _GAP.sub("\N{NO-BREAK SPACE}", glued + text)[len(glued) :]
        if kept != text:
            text.replace_with(kept)
    for formula in soup.select("article span.math"):
        after, around = formula.next_sibling, formula.parent
        if not isinstance(after, NavigableString) or around is None or "together" in words_of(around, "class"):
            continue
        mark = re.match(r"[,.;:?!)]+", after)
        if mark is None:
            continue
        after.replace_with(after[mark.end() :])
        both = formula.wrap(soup.new_tag("span", attrs={"class": "together"}))
        both.append(mark.group())


def _offer_notebook(soup: BeautifulSoup) -> None:
    """A chapter is written as text; readers want the notebook."""
    for link in soup.select("a.btn-download-source-button[href$='.md']"):
        link["href"] = re.sub(r"\.md$", ".ipynb", str(link["href"]))
        link["title"] = "Download notebook"
        label = link.select_one(".btn__text-container")
        if label is not None:
            label.string = ".ipynb"


def _say_reading_time(soup: BeautifulSoup) -> None:
    """The reading time of a chapter under its title, once."""
    title = soup.select_one("article h1")
    if title is None or soup.select_one("p.reading-time") is not None:
        return
    said = soup.new_tag("p", attrs={"class": "reading-time"})
    said.string = f"About {reading_minutes(soup)} minutes to read"
    title.insert_after(said)


def reading_minutes(soup: BeautifulSoup) -> int:
    """Minutes to read the article of a page: its words, the lines of code that it shows, its figures and questions.

    What is folded takes no time, and neither do exercises, which are work. Cost: the page is parsed once more.
    """
    article = BeautifulSoup(str(soup.select_one("article") or ""), "html.parser")
    figures = len(article.select(".cell_output .output.text_html, .cell_output img"))
    for part in article.select(
        "details, script, style, .cell_output .output.text_html, #exercises, .headerlink, .toggle"
    ):
        part.decompose()
    lines = 0
    for code in article.select(".cell_input"):
        lines += sum(bool(line.strip()) for line in code.get_text().splitlines())
        code.decompose()
    words = len(article.get_text(" ").split())
    return max(1, round(words / _WORDS_A_MINUTE + (lines * _LINE_S + figures * _FIGURE_S) / 60))


def write_notebooks(executed: Path, html: Path) -> list[Path]:
    """Put a notebook of each executed text chapter beside its source in `_sources/`, for the download button.

    `executed`: the folder where myst-nb leaves the run notebooks. Outputs are removed, so that the reader's own run
    fills them; the numbers in the prose, which are roles only the book understands, are written in.
    """
    written = []
    for source in sorted((html / "_sources").rglob("*.md")):
        ran = executed / source.relative_to(html / "_sources").with_suffix(".ipynb")
        if ran.is_file():
            glued_file = ran.with_suffix(".glue.json")
            glued = json.loads(glued_file.read_text(encoding="utf-8")) if glued_file.is_file() else {}
            target = source.with_suffix(".ipynb")
            notebook = plain_notebook(json.loads(ran.read_text(encoding="utf-8")), glued)
            target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            written.append(target)
    return written


def plain_notebook(notebook: dict[str, Any], glued: dict[str, Any]) -> dict[str, Any]:
    """`notebook` without outputs, each `glue` role in its text replaced by the value in `glued` (myst-nb's record)."""
    values = {name: _glued_text(record) for name, record in glued.items()}

    def value_of(role: re.Match[str]) -> str:
        value = values.get(role.group(1).strip())
        if value is None:
            return role.group(0)
        try:
            return format(float(value), role.group(2)) if role.group(2) else value
        except ValueError:
            return value

    cells = []
    for cell in notebook["cells"]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        if cell["cell_type"] == "code":
            cells.append({**cell, "outputs": [], "execution_count": None})
        else:
            cells.append({**cell, "source": _GLUE_ROLE.sub(value_of, source)})
    metadata = {key: value for key, value in notebook["metadata"].items() if key in {"kernelspec", "language_info"}}
    return {**notebook, "cells": cells, "metadata": metadata}


def _glued_text(record: dict[str, Any]) -> str | None:
    text = record.get("data", {}).get("text/plain")
    if text is None:
        return None
    return str(text)[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", str(text)) else str(text)


def _prune_mathjax(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.relative_to(folder).as_posix().startswith(_KEEP_MATHJAX):
            file.unlink()
    for empty in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(empty.iterdir()):
            empty.rmdir()


def _notebook_beside(html: Path, page: Path) -> Path:
    return html / "_sources" / page.relative_to(html).with_suffix(".ipynb")


def words_of(tag: Tag, attribute: str) -> set[str]:
    """The words of an attribute such as `class` or `rel`; empty where the tag lacks it."""
    value = tag.get(attribute)
    return set(value if isinstance(value, list) else str(value or "").split())
