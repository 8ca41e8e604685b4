"""What stands for a page where its link is shared: the tags of the page, and the picture that they name."""

from __future__ import annotations

import importlib.util
import struct
from urllib.parse import urlsplit

import pytest
from bs4 import BeautifulSoup

from autograder.release.site_audit import external_requests
from autograder.release.site_pages import pages, patch_page
from autograder.release.site_preview import HEIGHT_PX, PICTURE, WIDTH_PX, draw

ARTICLE = (
    '<article><section id="a"><h1>7. Paging<a class="headerlink" href="#a">#</a></h1><p class="reading-time">About 12 '
    "minutes to read</p><p>A server has <span>8,825</span> of 15,728 slots\nfree.</p><p>More.</p></section></article>"
)


def page(head="", body=ARTICLE):
    return f'<html data-content_root="../"><head>{head}</head><body>{body}</body></html>'


def tags_of(html):
    soup = BeautifulSoup(html, "html.parser")
    return {str(tag.get("property") or tag.get("name")): str(tag["content"]) for tag in soup.select("meta[content]")}


def test_a_page_says_its_title_its_first_sentence_and_a_picture_beside_it():
    tags = tags_of(patch_page(page()))
    assert tags["og:title"] == "7. Paging"
    assert tags["og:description"] == tags["description"] == "A server has 8,825 of 15,728 slots free."
    assert tags["og:image"] == f"../{PICTURE}"
    assert tags["og:image:alt"]
    assert tags["twitter:card"] == "summary_large_image"
    assert "og:url" not in tags


def test_a_page_that_knows_its_address_names_the_whole_one_of_the_picture_and_still_fetches_nothing():
    html = patch_page(page('<link rel="canonical" href="https://a.example/book/chapters/paging.html">'))
    assert tags_of(html)["og:image"] == f"https://a.example/book/{PICTURE}"
    assert tags_of(html)["og:url"] == "https://a.example/book/chapters/paging.html"
    assert external_requests(BeautifulSoup(html, "html.parser")) == []


def test_a_long_first_paragraph_ends_at_a_word():
    long = page(body=f"<article><section><h1>A</h1><p>{'wordy ' * 60}</p></section></article>")
    said = tags_of(patch_page(long))["og:description"]
    assert said.endswith("wordy…")
    assert 150 < len(said) <= 200


def test_a_page_patched_twice_has_every_tag_once():
    twice = BeautifulSoup(patch_page(patch_page(page())), "html.parser")
    names = [str(tag.get("property") or tag.get("name")) for tag in twice.select("meta[content]")]
    assert len(names) == len(set(names))


def test_a_page_without_text_of_its_own_says_what_the_course_is():
    tags = tags_of(patch_page(page("<title>Search</title>", "<p>search</p>")))
    assert tags["og:title"] == "Search"
    assert tags["og:description"] == "Padding to Paging: a course on the memory of LLM serving."


def test_the_picture_has_the_size_that_previews_have(tmp_path):
    data = draw(tmp_path / "preview.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (WIDTH_PX, HEIGHT_PX) == (1200, 630)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jupyter_book") is None, reason="jupyter-book is not installed")
def test_every_page_of_the_book_has_a_preview_of_its_own_and_the_icon_is_there(site):
    titles = []
    for file in pages(site):
        soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        icon = soup.select_one("link[rel=icon]")
        assert (file.parent / icon["href"]).resolve().is_file(), f"{file.name} has no icon"
        tags = tags_of(str(soup))
        assert not urlsplit(tags.get("og:image", "")).netloc
        if file.parent.name == "chapters":
            titles.append(tags["og:title"])
        assert tags["og:description"], f"{file.name} has no description"
        assert (file.parent / tags["og:image"]).resolve().is_file()
    assert len(set(titles)) == len(titles) > 10
