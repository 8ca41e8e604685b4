"""The book's drawings: memory as blocks, and plots in the house style.

Owns: geometry. Knows nothing of where blocks or numbers come from: tokens, block tables and plots come in, a `Figure`
goes out. Everything is drawn 360 units wide, so that its text is legible on a phone without a second layout.
matplotlib is imported only inside the two functions for plots.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from labkit.figures import Figure, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

WIDTH = 360
PAD = "<pad>"
_COLUMNS = 6
_MARGIN = 2
HATCH = (
    '<defs><pattern id="@ID@-hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="var(--p2p-paper, #fff)"/>'
    '<path d="M0 0V6" stroke="var(--p2p-b-line, #9a4a00)" stroke-width="1.2"/></pattern></defs>'
)


def padded_in_fragmented_memory(
    rows: Sequence[Sequence[str]],
    block_tables: Sequence[Sequence[int]],
    num_blocks: int,
    block_size: int,
    others: Mapping[int, str],
) -> Figure:
    """A padded batch above, and below it the physical blocks that hold it among other requests' blocks and holes.

    `rows` are the tokens of each sequence with its pads, `block_tables` their physical blocks in logical order,
    `others` tells who holds each remaining block that is held.
    Raises: ValueError naming the row or block that does not fit.
    """
    placed = _place(rows, block_tables, num_blocks, block_size)
    for block in others:
        if not 0 <= block < num_blocks or block in placed:
            raise ValueError(f"block {block} of another request is outside the memory or held by a row")
    shapes = [HATCH]
    shapes.append(label(_MARGIN, 15, f"Logical: {len(rows)} rows of {len(rows[0])} tokens", 12, weight=700))
    top = 22.0
    for number, row in enumerate(rows):
        shapes += _logical_row(number, row, block_size, top)
        top += 54
    shapes.append(label(_MARGIN, top + 15, f"Physical: {num_blocks} blocks of {block_size} tokens", 12, weight=700))
    top += 23
    for block in range(num_blocks):
        shapes += _physical_block(block, top, placed.get(block), others.get(block))
    height = top + -(-num_blocks // _COLUMNS) * 54 + 4
    free = [block for block in range(num_blocks) if block not in placed and block not in others]
    names = " and ".join(_letter(number) for number in range(len(rows)))
    pads = sum(row.count(PAD) for row in rows)
    return Figure(
        title="Padded sequences in fragmented memory",
        description=(
            f"Sequences {names} form one rectangle, {pads} of whose {len(rows) * len(rows[0])} places are padding. "
            f"Their blocks ({', '.join(f'{_letter(n)}: {_listed(t)}' for n, t in enumerate(block_tables))}) "
            f"lie scattered among other requests' blocks; {len(free)} blocks are free, "
            f"at most {_longest_run(free)} in a row."
        ),
        view_box=(WIDTH, height),
        shapes="".join(shapes),
        table=Table(
            ("Block", "Held by", "Tokens"),
            [_block_row(block, placed.get(block), others.get(block)) for block in range(num_blocks)],
        ),
    )


_Held = tuple[int, int, Sequence[str]]
"""Row, logical block of that row, the tokens in it."""


def _place(
    rows: Sequence[Sequence[str]], block_tables: Sequence[Sequence[int]], num_blocks: int, block_size: int
) -> dict[int, _Held]:
    if not rows or len(rows) != len(block_tables):
        raise ValueError(f"{len(rows)} rows and {len(block_tables)} block tables: need one table a row")
    placed: dict[int, _Held] = {}
    for number, (row, table) in enumerate(zip(rows, block_tables, strict=True)):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {_letter(number)} has {len(row)} tokens, row A has {len(rows[0])}: no rectangle")
        if len(table) != -(-len(row) // block_size):
            raise ValueError(
                f"row {_letter(number)}: {len(row)} tokens do not fill {len(table)} blocks of {block_size}"
            )
        for logical, block in enumerate(table):
            if not 0 <= block < num_blocks or block in placed:
                raise ValueError(f"row {_letter(number)}: block {block} is outside the memory or held twice")
            placed[block] = (number, logical, row[logical * block_size : (logical + 1) * block_size])
    return placed


def _logical_row(number: int, row: Sequence[str], block_size: int, top: float) -> list[str]:
    left, colour = 18.0, _colour(number)
    cell = (WIDTH - left - _MARGIN) / len(row)
    shapes = [label(_MARGIN, top + 36, _letter(number), 13, weight=700)]
    for start in range(0, len(row), block_size):
        span = min(block_size, len(row) - start) * cell
        x = left + start * cell
        shapes.append(label(x + span / 2, top + 11, f"{_letter(number)}{start // block_size}", 11.5, anchor="middle"))
        shapes.append(
            f'<path d="M{x + 2:.1f} {top + 18:.1f}v-4h{span - 4:.1f}v4" fill="none" stroke="{colour[1]}" '
            'stroke-width="1.5"/>'
        )
    for place, token in enumerate(row):
        x = left + place * cell
        fill = "url(#@ID@-hatch)" if token == PAD else colour[0]
        shapes.append(box(x, top + 20, cell, 26, fill, colour[1]))
        if token == PAD:
            shapes.append(box(x + 6, top + 26, cell - 12, 14, "var(--p2p-paper, #fff)", "none"))
        shapes.append(label(x + cell / 2, top + 37, token, 11.5, anchor="middle"))
    return shapes


def _physical_block(block: int, top: float, held: _Held | None, other: str | None) -> list[str]:
    width = (WIDTH - 2 * _MARGIN) / _COLUMNS
    x, y = _MARGIN + block % _COLUMNS * width + 1, top + block // _COLUMNS * 54
    width -= 2
    if held is not None:
        number, logical, tokens = held
        colour = _colour(number)
        shapes = [
            box(x, y, width, 50, colour[0], colour[1], 2),
            label(x + width - 4, y + 13, f"{_letter(number)}{logical}", 12, anchor="end", weight=700),
        ]
        for line, token in enumerate(tokens):
            if token == PAD:
                shapes.append(box(x + 3, y + 18 + line * 15, width - 6, 13, "url(#@ID@-hatch)", "none"))
                shapes.append(box(x + 11, y + 18 + line * 15, width - 22, 13, "var(--p2p-paper, #fff)", "none"))
            shapes.append(label(x + width / 2, y + 28.5 + line * 15, token, 11.5, anchor="middle"))
    elif other is not None:
        shapes = [
            box(x, y, width, 50, "var(--p2p-other, #e8eaed)", "var(--p2p-rule, #757c85)"),
            label(x + width / 2, y + 34, other, 12, anchor="middle"),
        ]
    else:
        shapes = [
            box(x, y, width, 50, "none", "var(--p2p-rule, #757c85)", dashed=True),
            label(x + width / 2, y + 34, "free", 11.5, anchor="middle"),
        ]
    return [*shapes, label(x + 4, y + 12.5, str(block), 11.5)]


def _block_row(block: int, held: _Held | None, other: str | None) -> tuple[str, str, str]:
    if held is not None:
        return str(block), f"{_letter(held[0])}{held[1]}", " ".join(held[2])
    return str(block), f"request {other}" if other is not None else "nobody: free", "-"


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _colour(number: int) -> tuple[str, str]:
    return (
        ("var(--p2p-a, #d6e8f7)", "var(--p2p-a-line, #005a9c)"),
        ("var(--p2p-b, #fde7cb)", "var(--p2p-b-line, #9a4a00)"),
    )[number % 2]


def _listed(blocks: Sequence[int]) -> str:
    return " ".join(str(block) for block in blocks)


def _longest_run(blocks: Sequence[int]) -> int:
    longest = run = 0
    for before, block in zip([None, *blocks], blocks, strict=False):
        run = run + 1 if before is not None and block == before + 1 else 1
        longest = max(longest, run)
    return longest


def box(
    x: float, y: float, width: float, height: float, fill: str, line: str, weight: float = 1, dashed: bool = False
) -> str:
    """A rectangle, as SVG."""
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" fill="{fill}" stroke="{line}" '
        f'stroke-width="{weight:g}"{dash}/>'
    )


def label(x: float, y: float, text: str, size: float, anchor: str = "start", weight: int = 400) -> str:
    """One line of text, as SVG; `y` is its base line."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="var(--p2p-ink, #1b1f24)">{html.escape(text)}</text>'
    )


INK, FIRST, SECOND, THIRD = "#010203", "#010204", "#010205", "#010206"
"""Colours for plots; each stands for a custom property of the page's theme, which `plot` puts in its place."""

_THEME = {INK: "--p2p-ink", FIRST: "--p2p-a-line", SECOND: "--p2p-b-line", THIRD: "--p2p-soft"}


@contextmanager
def figure_style() -> Iterator[None]:
    """matplotlib in the house style for the block: 360 units wide, legible text, series for colour-blind eyes too."""
    import matplotlib as mpl
    from cycler import cycler

    # Any: the stubs of newer releases of matplotlib know these keys as literals, those of older ones as text.
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "padding-to-paging",
        "figure.figsize": (WIDTH / 72, 3.4),
        "figure.constrained_layout.use": True,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.size": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=[FIRST, SECOND, THIRD], linestyle=["-", "--", ":"], marker=["o", "s", "^"]),
        "lines.linewidth": 2,
        "legend.frameon": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with mpl.rc_context(settings):
        yield


def plot(drawn: Plot, title: str, description: str, table: Table, note: str = "") -> Figure:
    """A matplotlib figure, drawn inside `figure_style()`, as a `Figure` that follows the page's theme; closes it.

    `description` says what the plot shows to who cannot see it; `table` holds the plotted numbers.
    """
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    with figure_style():
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(drawn)
    found = re.search(r'<svg[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>(.*)</svg>', buffer.getvalue(), re.DOTALL)
    assert found is not None, "matplotlib wrote no view box"
    shapes = re.sub(r"<metadata>.*?</metadata>", "", found[3], flags=re.DOTALL)
    # Ids and the style sheet are global in a page: both are kept inside this figure.
    shapes = re.sub(r'(\bid="|href="#|url\(#)', r"\g<1>@ID@-", shapes)
    shapes = shapes.replace("*{", "#@ID@ svg *{")
    for colour, name in _THEME.items():
        shapes = shapes.replace(colour, f"var({name}, #1b1f24)")
    return Figure(title, description, (float(found[1]), float(found[2])), shapes, table, note)
