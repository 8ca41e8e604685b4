"""The pages to look things up: what they point at exists, and what the chapters use stands in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[2] / "chapters"
TOC = (BOOK.parent / "_toc.yml").read_text(encoding="utf-8")
CHAPTERS = re.findall(r"^ *- file: chapters/(\w+)$", TOC, re.MULTILINE)
NOT_OF_THE_TEXT = {"start", "measured", "lab3", "lab4"}
"""Pages without papers and without beliefs of their own to correct."""
_CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.MULTILINE | re.DOTALL)
_DETAIL = re.compile(r"(?:(?:sections?|figures?|tables?|algorithm|volume) |(?<=\s)\((?!\d)).*")


def read(page: str) -> str:
    return (BOOK / f"{page}.md").read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A chapter's words as the reader sees them: no code, no marks of emphasis, one line."""
    text = _CELL.sub("", read(page).split("---\n", 2)[2])
    return " ".join(re.sub(r"[*`]", "", text).split()).casefold()


def anchors() -> set[str]:
    return {anchor for page in CHAPTERS for anchor in re.findall(r"^\((\S+)\)=$", read(page), re.MULTILINE)}


def terms() -> dict[str, str]:
    """Term -> its explanation."""
    inside = read("back/glossary").split("```{glossary}")[1].split("```")[0]
    return dict(re.findall(r"^(\S.*)\n  (.+)$", inside.split(":sorted:")[1], re.MULTILINE))


def cited(page: str) -> list[tuple[str, str]]:
    """The papers under "Sources" of a chapter: title as it is short there, and which parts of it."""
    found = re.search(r"^\*\*Sources\.\*\*(.*?)(?:\n\n|\Z)", read(page), re.MULTILINE | re.DOTALL)
    if found is None:
        return []
    papers = []
    for title, after in re.findall(r"\*([^*]+)\*([^*]*)", " ".join(found[1].split())):
        own = re.split(r"[.;] (?=[A-ZÅ*])|\.$|; ", after)[0].rstrip(". ")
        detail = _DETAIL.search(own)
        papers.append((title, detail[0] if detail else ""))
    return papers


def entries() -> dict[str, str]:
    """Title -> its paragraph in the bibliography."""
    paragraphs = re.findall(r"^\(paper-\w+\)=\n(.*?)(?:\n\n|\Z)", read("back/bibliography"), re.MULTILINE | re.DOTALL)
    return {re.findall(r"\*([^*]+)\*", paragraph.partition(".** ")[2])[0]: paragraph for paragraph in paragraphs}


def entry_of(title: str) -> str:
    """The paragraph of the one paper that a chapter calls `title`."""
    known = entries()
    begins = [full for full in known if re.match(re.escape(title) + r"(?!\w|\()", full, re.IGNORECASE)]
    holds = [full for full in known if re.search(rf"(?<!\w){re.escape(title)}(?!\w)", full, re.IGNORECASE)]
    (full,) = begins or holds or [""]
    assert full, f"{title!r} is not in the bibliography"
    return known[full]


@pytest.mark.parametrize("page", ["glossary", "notation", "misconceptions"])
def test_every_place_that_a_page_points_at_exists(page: str) -> None:
    pointed = set(re.findall(r"\{ref\}`(?:[^<`]+<)?([\w-]+)>?`", read(f"back/{page}")))
    assert len(pointed) > 20
    assert pointed <= anchors(), sorted(pointed - anchors())


def test_every_misconception_points_at_the_place_that_corrects_it_and_stands_there_once() -> None:
    lines = re.findall(r"^- (.*)$", read("back/misconceptions"), re.MULTILINE)
    assert len(lines) == len(set(lines))
    for line in lines:
        assert re.fullmatch(r"[^{}]+[.\"] \{ref\}`[\w-]+`", line), line


def test_every_chapter_corrects_a_belief_and_explains_a_term() -> None:
    for page in set(CHAPTERS) - NOT_OF_THE_TEXT:
        for back in ("misconceptions", "glossary"):
            assert f"`{page}-" in read(f"back/{back}"), f"{back}: nothing of {page}"


def test_every_term_of_the_glossary_is_used_on_the_page_that_it_points_at() -> None:
    explained = terms()
    assert len(explained) > 60
    texts = {page: prose(page) for page in CHAPTERS}
    unused = [
        f"{term}: {anchor}"
        for term, sentence in explained.items()
        for anchor in re.findall(r"\{ref\}`([^`]+)`", sentence)
        for word in re.split(r", | and ", term.casefold())
        if not re.search(rf"(?<!\w){re.escape(word)}(?:s|es)?(?!\w)", texts[anchor.partition("-")[0]])
    ]
    assert unused == []


def test_terms_stand_in_the_order_of_the_alphabet_and_once() -> None:
    listed = list(terms())
    assert listed == sorted(listed, key=str.casefold)
    assert len(listed) == len({term.casefold() for term in listed})
    inside = read("back/glossary").split(":sorted:")[1].split("```")[0]
    assert len(re.findall(r"^\S.*$", inside, re.MULTILINE)) == len(listed), "a term without an explanation"


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_paper_of_a_page_is_in_the_bibliography_with_the_page_and_the_parts_used(page: str) -> None:
    papers = cited(page)
    assert papers or page in NOT_OF_THE_TEXT, f"{page} names no sources"
    for title, parts in papers:
        entry = entry_of(title)
        used = re.search(rf"\]\(\.\./{page}\.md\)(.*?)(?=; \[|\.?$)", entry.replace("\n", " "))
        assert used is not None, f"{title}: {page} is not said to use it"
        assert parts in used[1], f"{title}: {page} uses {parts!r}, the bibliography says {used[1]!r}"


def test_no_page_is_said_to_use_what_it_does_not_name() -> None:
    used = {(title, page) for title, entry in entries().items() for page in re.findall(r"\]\(\.\./(\w+)\.md\)", entry)}
    named = {
        (next(title for title, entry in entries().items() if entry == entry_of(short)), page)
        for page in CHAPTERS
        for short, _ in cited(page)
    }
    assert used == named
    assert {title for title, _ in used} == set(entries()), "a paper that no page uses"
