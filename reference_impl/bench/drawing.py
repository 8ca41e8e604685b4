"""What all pictures have in common: their width, colours, titles, bars and legends.

Owns: how a picture looks. Knows nothing of records' contents beyond the machine and the date.
A row has its name above it and not beside it, so that names may be long on a narrow page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from labkit.draw import WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

INK, SOFT, FAINT, BLUE, BROWN = "#1b1f24", "#4d545c", "#d0d4d9", "#005a9c", "#9a4a00"
"""The page's own colours; blue is always ours."""
SERIES = ((BLUE, "o"), (BROWN, "s"), (SOFT, "^"), ("#7b4fa3", "D"), ("#1a6b33", "v"), ("#a3261d", "P"))
"""Colour and marker of each series, in order."""
SMALL = 10
_INCH = 72
_ACROSS = 60
"""Small characters in a line."""


def figure_of(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / _INCH, height), layout="constrained")


def title(figure: Figure, title: str, lines: Sequence[str]) -> None:
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    foot = [part for line in lines for part in wrap(line, _ACROSS)]
    figure.supxlabel("\n".join(foot), x=0.02, ha="left", fontsize=SMALL, color=SOFT)


def bars(
    axis: Axes, names: Sequence[str], values: Sequence[float], texts: Sequence[str], colours: Sequence[str]
) -> None:
    """Horizontal bars from the top, each under its name and with its value behind it."""
    from matplotlib.ticker import MaxNLocator

    places = range(len(names))
    axis.barh(places, values, height=0.42, color=colours)
    for place, name, value, text in zip(places, names, values, texts, strict=True):
        axis.text(0, place - 0.28, name, va="bottom", ha="left", fontsize=11)
        axis.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=11)
    axis.set_ylim(len(names) - 0.6, -0.85)
    axis.set_yticks([])
    axis.set_xlim(0, max(values) * 1.32 or 1)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.spines["left"].set_visible(False)


def column(figure: Figure, heights: Sequence[float]) -> list[Axes]:
    """One below the other."""
    return list(figure.subplots(len(heights), 1, height_ratios=list(heights), squeeze=False)[:, 0])


def legend(axis: Axes, across: int) -> None:
    """Above the axis, as nothing else is there."""
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=across, fontsize=11, handlelength=1.6, columnspacing=1.2
    )


def machine_of(record: Record) -> str:
    machine = record["machine"]
    return str(machine.get("device") or machine.get("gpu") or machine.get("cpu"))


def foot(record: Record) -> str:
    return f"{machine_of(record)}, {record['date']}"
