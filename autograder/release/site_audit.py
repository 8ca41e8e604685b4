"""What must be true of the built site before anyone sees it, checked on the files alone.

Owns: the three findings that stop a build: a page that fetches from another host, a link or anchor that leads nowhere,
and a path of the building machine in a page. Knows nothing of browsers; `tests/site` opens the same pages in one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

from autograder.release.site_pages import pages, words_of

_LOADS = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "track": ("src",),
    "input": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
"""Attributes whose address a browser fetches when the page opens. `<link>` is judged by its `rel`, below."""

_RELATIONS_NOT_FETCHED = {"canonical", "index", "search", "next", "prev", "author", "license", "help"}
_REMOTE = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
_CSS_FETCH = re.compile(r"(?:url\(\s*['\"]?|@import\s+['\"])\s*((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
_SCRIPT_ADDRESS = re.compile(r"['\"`]((?:https?:)?//[\w.-]+\.[a-z]{2,}[^'\"`\s]*)", re.IGNORECASE)
_NAMESPACES = ("http://www.w3.org/", "https://www.w3.org/")


def audit(html: Path, forbidden: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with the built folder, one line each, naming the page; empty if it may be published.

    Looks for requests to another host at load, links and anchors that lead nowhere, and `forbidden` strings (the paths
    of the building machine). Cost: each page is parsed once.
    """
    problems: list[str] = []
    parsed = {page: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages(html)}
    anchors = {page: _anchors(soup) for page, soup in parsed.items()}
    for page, soup in parsed.items():
        name = page.relative_to(html).as_posix()
        problems += [f"{name}: fetches {address}" for address in external_requests(soup)]
        problems += [f"{name}: {fault}" for fault in _dead_links(page, soup, html, anchors)]
        text = str(soup)
        problems += [f"{name}: shows a path of this machine ({word})" for word in forbidden if word in text]
    for style in sorted(html.rglob("*.css")):
        found = _CSS_FETCH.findall(style.read_text(encoding="utf-8", errors="replace"))
        problems += [f"{style.relative_to(html).as_posix()}: fetches {address}" for address in found]
    return problems


def external_requests(soup: BeautifulSoup) -> list[str]:
    """Addresses on another host that a browser would fetch on opening this page. A plain link is not a fetch."""
    found = []
    for name, attributes in _LOADS.items():
        for tag in soup.find_all(name):
            for attribute in attributes:
                value = str(tag.get(attribute) or "")
                addresses = value.split(",") if attribute == "srcset" else [value]
                found += [address.strip() for address in addresses if _REMOTE.match(address)]
    for link in soup.find_all("link"):
        if not words_of(link, "rel") & _RELATIONS_NOT_FETCHED and _REMOTE.match(str(link.get("href") or "")):
            found.append(str(link["href"]))
    styles = [tag.get_text() for tag in soup.find_all("style")] + [str(tag["style"]) for tag in soup.select("[style]")]
    found += [address for style in styles for address in _CSS_FETCH.findall(style)]
    for script in soup.find_all("script"):
        addresses = _SCRIPT_ADDRESS.findall(script.string or "")
        found += [address for address in addresses if not address.startswith(_NAMESPACES)]
    return found


def _anchors(soup: BeautifulSoup) -> set[str]:
    return {str(tag["id"]) for tag in soup.select("[id]")} | {str(tag["name"]) for tag in soup.select("a[name]")}


def _dead_links(page: Path, soup: BeautifulSoup, html: Path, anchors: dict[Path, set[str]]) -> Iterator[str]:
    """Local links, images and scripts of `page` that name a missing file or anchor, or leave the built folder."""
    for tag in soup.select("[href], [src]"):
        address = str(tag.get("href") or tag.get("src") or "")
        parts = urlsplit(address)
        if parts.scheme or parts.netloc or not address:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.is_relative_to(html.resolve()):
            yield f"{address} leaves the built folder"
        elif not target.exists():
            yield f"{address} leads to no file"
        elif parts.fragment and target in anchors and unquote(parts.fragment) not in anchors[target]:
            yield f"{address} leads to no such place on the page"
