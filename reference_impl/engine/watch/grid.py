"""The blocks of a pool as rows of cells, and what the glyphs mean.

Owns: glyphs and colours. Knows nothing of layout (`view.py`). Colour only repeats what a glyph says. A cell is
three columns: who holds the block, how full it is, and a gap.

    A█ held by the one request with letter A, full      ○█ held by nobody, its content would be found again
    A▄ the same, half of its slots are written          ·  free
    2█ held by two requests                             ?█ counted as held, and in no table

In a pool that is folded a cell is a run of neighbours, and its bar says how many of them are held.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text

from reference_impl.engine.watch.letters import LETTERS
from reference_impl.engine.watch.state import Cell, Kind

CELL_COLUMNS = 3
MIXED, LOST, MANY = "*", "?", "+"
"""Several requests in one cell of several blocks; see `Kind.LOST`; more than nine requests hold a block."""
_COLORS = ("dodger_blue2", "dark_orange", "green3", "magenta3", "dark_cyan", "red3", "medium_purple", "dark_goldenrod")
"""Of middling lightness, to be read on a dark ground and on a light one."""
_ORDER = (Kind.HELD, Kind.SHARED, Kind.IDLE, Kind.FREE, Kind.LOST)


@dataclass(frozen=True)
class Glyphs:
    """bars: nine, from nothing to all."""

    bars: str
    free: str
    idle: str
    rule: str
    more: str


UNICODE = Glyphs(" ▁▂▃▄▅▆▇█", "·", "○", "─", "…")
ASCII = Glyphs(" .,:;=+%#", ".", "o", "-", "...")


def grid(
    cells: Sequence[Cell],
    per_row: int,
    labels: Sequence[str],
    letters: Mapping[str, str],
    glyphs: Glyphs,
    marked: Sequence[int] = (),
) -> list[Text]:
    """Rows of `per_row` cells, each behind its label; the cells of the `marked` blocks are reversed."""
    marked = sorted(marked)
    lines = []
    for label, first in zip(labels, range(0, len(cells), per_row), strict=True):
        line = Text().append(label, "dim")
        for cell in cells[first : first + per_row]:
            glyph, style = drawn(cell, letters, glyphs)
            place = bisect_left(marked, cell.first)
            if place < len(marked) and marked[place] < cell.first + cell.num_blocks:
                style += Style(reverse=True, dim=False)
            line.append(glyph, style).append(" ")
        lines.append(line)
    return lines


def drawn(cell: Cell, letters: Mapping[str, str], glyphs: Glyphs) -> tuple[str, Style]:
    """Two characters and their style."""
    bar = glyphs.bars[cell.eighths]
    if cell.kind is Kind.FREE:
        return glyphs.free + " ", Style(dim=True)
    if cell.kind is Kind.IDLE:
        return glyphs.idle + bar, Style(color="grey58")
    if cell.kind is Kind.LOST:
        return LOST + bar, Style(color="red3", bold=True)
    if cell.holder is not None:
        letter = letters[cell.holder]
        return letter + bar, style_of(letter)
    if cell.num_blocks > 1:
        return MIXED + bar, Style(bold=True)
    return (str(cell.num_holders) if cell.num_holders < 10 else MANY) + bar, Style(bold=True)


def style_of(letter: str) -> Style:
    """The colour of a letter, wherever it stands."""
    return Style(color=_COLORS[LETTERS.index(letter) % len(_COLORS)], bold=True)


def meanings(cells: Sequence[Cell], host: Sequence[Cell], glyphs: Glyphs) -> list[Text]:
    """What the glyphs in sight mean."""
    seen = {cell.kind for cell in (*cells, *host)}
    each, half, full = cells[0].num_blocks, glyphs.bars[4], glyphs.bars[8]
    if each == 1:
        said = {
            Kind.HELD: f"A{full} full, A{half} half written" + (", A only taken" if _blank(cells) else ""),
            Kind.SHARED: f"2{full} held by 2" + (", + by 10 or more" if _many(cells) else ""),
            Kind.IDLE: f"{glyphs.idle}{full} idle: can be found again",
        }
    else:
        said = {
            Kind.HELD: f"A{half} half of them held, all by A",
            Kind.SHARED: f"{MIXED}{half} half held, by several",
            Kind.IDLE: f"{glyphs.idle}{half} none held, half idle",
        }
    said |= {Kind.FREE: f"{glyphs.free} free", Kind.LOST: f"{LOST} held, and in no table"}
    parts = [f"a cell is {each} blocks"] if each > 1 else []
    parts += [said[kind] for kind in _ORDER if kind in seen]
    if host and host[0].num_blocks > 1:
        parts.append(f"a cell of the host is {host[0].num_blocks}")
    return [Text(part, style="dim") for part in parts]


def _many(cells: Sequence[Cell]) -> bool:
    return any(cell.num_holders > 9 for cell in cells)


def _blank(cells: Sequence[Cell]) -> bool:
    return any(cell.kind is Kind.HELD and not cell.eighths for cell in cells)
