"""What every figure is: vector graphics, a description, and the same content as a table.

Owns: the frame round a drawing and its colours (`figures.css`: light, dark, print). Knows nothing of what is drawn.
Colours are custom properties, so a figure follows the page's theme; no meaning is carried by colour alone.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

STYLE = "<style>" + files("labkit").joinpath("figures.css").read_text(encoding="utf-8") + "</style>"
"""Comes with each output: a notebook may show any of them first."""


@dataclass(frozen=True)
class Table:
    """A header and rows of text: the twin of a drawing, or a table of its own with a caption."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __str__(self) -> str:
        widths = [max(len(row[column]) for row in (self.header, *self.rows)) for column in range(len(self.header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.header, *self.rows)
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f'{STYLE}<div class="p2p">{self.html(self.caption)}</div>'

    def html(self, caption: str) -> str:
        """The table as HTML; the first column names its row."""
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.header)
        body = "".join(
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        return (
            f'<div class="p2p-scroll" tabindex="0" role="region" aria-label="{html.escape(caption, quote=True)}">'
            f"<table><caption hidden>{html.escape(caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Figure:
    """A drawing with its title, its description in a sentence or two, and its table. `str` gives the text twin."""

    title: str
    description: str
    view_box: tuple[float, float]
    shapes: str
    table: Table
    note: str = ""

    @property
    def name(self) -> str:
        """An id for the page, made from the drawing itself."""
        return "figure-" + hashlib.sha256((self.title + self.shapes).encode()).hexdigest()[:8]

    @property
    def svg(self) -> str:
        """The drawing alone, one `<svg>` element; ids inside begin with `name`."""
        width, height = self.view_box
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'aria-labelledby="{self.name}-title {self.name}-desc">'
            f'<title id="{self.name}-title">{html.escape(self.title)}</title>'
            f'<desc id="{self.name}-desc">{html.escape(self.description)}</desc>'
            f"{self.shapes.replace('@ID@', self.name)}</svg>"
        )

    @property
    def text(self) -> str:
        """The same as words: title, description, note, table."""
        return "\n".join(part for part in (self.title, self.description, self.note, str(self.table)) if part)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        caption = f"<strong>{html.escape(self.title)}.</strong> {html.escape(self.description)}"
        note = f" {html.escape(self.note)}" if self.note else ""
        return (
            f'{STYLE}<figure class="p2p p2p-figure" id="{self.name}">{self.svg}<figcaption>{caption}{note}</figcaption>'
            f"<details><summary>The figure as a table</summary>{self.table.html(self.title)}</details></figure>"
        )
