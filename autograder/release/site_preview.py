"""The picture and the words that stand for a page where its link is shared.

Owns: the drawing (a padded rectangle whose tokens move into pages), the size that such previews have, and the `<meta>`
tags that name it. Knows nothing of how pages are built. The picture is drawn at every build and never lies in git.

Services want a whole address of the picture, which is only known if the course is built for one: with `html.baseurl`
in `_config.yml` every page names its own address, and the picture's is made from that. Else it is relative.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from bs4 import BeautifulSoup, Tag

COURSE, SUBTITLE = "Padding to Paging", "A course on the memory of LLM serving"
PICTURE = "_static/preview.png"
"""Where the picture lies in the built site."""
WIDTH_PX, HEIGHT_PX = 1200, 630
ALT = "A padded rectangle of tokens, and the same tokens in blocks of equal size"

_LENGTHS = (8, 3, 6, 2)
"""Tokens of the four requests that are drawn."""
_PLACES = ((5, 0), (2,), (7, 3), (4,))
"""The blocks that each request holds, in logical order, of the eight that are drawn: where they lie does not matter."""
_BLOCK = 4
_DARK: dict[str, Any] = {
    "paper": "#12324a",
    "ink": "#ffffff",
    "soft": "#b9c9d6",
    "requests": ("#63b3e6", "#f0a04b", "#7ddc95", "#d3a6f0"),
}
_LIGHT: dict[str, Any] = {
    "paper": "none",
    "ink": "#1b1f24",
    "soft": "#757c85",
    "requests": ("#2b7fb8", "#d9822b", "#2e8b57", "#8e5bb5"),
}
_MOST_LETTERS = 200


def draw(file: Path, *, words: bool = True) -> Path:
    """Draw the picture into `file`, whose suffix names the format (png, svg); returns `file`.

    With `words` it has the size of a preview and bears the course's title; without, it is the drawing on no background,
    for paper.
    """
    from matplotlib.figure import Figure

    style = _DARK if words else _LIGHT
    top, bottom = (0, HEIGHT_PX) if words else (260, 550)
    # 100 units to the inch, and 100 dots: one unit is one pixel.
    figure = Figure(figsize=(WIDTH_PX / 100, (bottom - top) / 100), dpi=100, facecolor=style["paper"])
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH_PX), ylim=(bottom, top))
    axes.axis("off")
    _rectangle(axes, style)
    arrow = {"arrowstyle": "-|>,head_width=0.6,head_length=0.9", "linewidth": 4, "color": style["soft"]}
    axes.annotate("", xy=(630, 405), xytext=(520, 405), arrowprops=arrow)
    _blocks(axes, style)
    if words:
        axes.text(80, 130, COURSE, color=style["ink"], fontsize=54, fontweight="bold", va="center")
        axes.text(80, 205, SUBTITLE, color=style["soft"], fontsize=26, va="center")
    figure.savefig(file, facecolor=style["paper"])
    return file


def _square(axes: Any, x: float, y: float, side: float, **look: Any) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = "round,pad=0,rounding_size=5"
    axes.add_patch(FancyBboxPatch((x, y), side, side, boxstyle=shape, **{"linewidth": 1.5, **look}))


def _rectangle(axes: Any, style: dict[str, Any]) -> None:
    """A row a request, as wide as the longest: tokens in its colour, padding hatched."""
    for row, (length, colour) in enumerate(zip(_LENGTHS, style["requests"], strict=True)):
        for column in range(max(_LENGTHS)):
            place = (80 + 51 * column, 303 + 51 * row, 44)
            if column < length:
                _square(axes, *place, facecolor=colour, edgecolor=colour)
            else:
                _square(axes, *place, facecolor="none", edgecolor=style["soft"], hatch="///", alpha=0.6)


def _blocks(axes: Any, style: dict[str, Any]) -> None:
    """Eight blocks of four slots; those that nobody holds are dashed."""
    owners = {
        block: (colour, min(_BLOCK, length - _BLOCK * logical))
        for length, colour, places in zip(_LENGTHS, style["requests"], _PLACES, strict=True)
        for logical, block in enumerate(places)
    }
    for block in range(8):
        x, y = 668 + 116 * (block % 4), 297 + 116 * (block // 4)
        colour, filled = owners.get(block, (style["soft"], 0))
        _square(axes, x, y, 102, facecolor="none", edgecolor=colour, linestyle="-" if filled else "--", linewidth=2.5)
        for slot in range(_BLOCK if filled else 0):
            inside = colour if slot < filled else "none"
            place = (x + 10 + 43 * (slot % 2), y + 10 + 43 * (slot // 2), 39)
            _square(axes, *place, facecolor=inside, edgecolor=colour)


def add_tags(soup: BeautifulSoup) -> None:
    """Say in the head of a built page what a preview of its link shows; twice does no more than once."""
    head = soup.head
    if head is None or head.find("meta", attrs={"property": "og:title"}) is not None:
        return
    here = head.select_one("link[rel=canonical]")
    address = str(here["href"]) if here is not None else ""
    top = str(soup.html.get("data-content_root") or "./") if soup.html is not None else "./"
    said = _description(soup)
    picture = urljoin(address, f"{top}{PICTURE}") if address else f"{top}{PICTURE}"
    named = {
        "og:type": "article",
        "og:site_name": COURSE,
        "og:title": _title(soup),
        "og:description": said,
        "og:url": address,
        "og:image": picture,
        "og:image:type": "image/png",
        "og:image:width": str(WIDTH_PX),
        "og:image:height": str(HEIGHT_PX),
        "og:image:alt": ALT,
    }
    for name, content in named.items():
        if content:
            head.append(soup.new_tag("meta", attrs={"property": name, "content": content}))
    for name, content in {"description": said, "twitter:card": "summary_large_image"}.items():
        if content and head.find("meta", attrs={"name": name}) is None:
            head.append(soup.new_tag("meta", attrs={"name": name, "content": content}))


def _description(soup: BeautifulSoup) -> str:
    """The first paragraph of the page's own text, cut at a word; of a page without text, what the course is."""
    for paragraph in soup.select("article section > p:not(.reading-time)"):
        text = _words(paragraph)
        if text:
            return (
                text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"
            )
    return f"{COURSE}: {SUBTITLE[0].lower()}{SUBTITLE[1:]}."


def _title(soup: BeautifulSoup) -> str:
    heading = soup.select_one("article h1") or soup.title
    if heading is None:
        return COURSE
    return " ".join("".join(text for text in heading.find_all(string=True) if text.find_parent("a") is None).split())


def _words(tag: Tag) -> str:
    return " ".join(tag.get_text().split())
