"""The picture of the kernels' record: for each case how near each contender comes to what is possible.

Owns: which rows stand in which panel, and what a share is of. Knows nothing of files or of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reference_impl.bench.drawing import FAINT, INK, SERIES, SMALL, Record, column, figure_of, foot, legend, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """Rows of (name, contender -> share, goal), and what a share is of."""

    rows: Sequence[tuple[str, Mapping[str, float], float]]
    of: str

    @property
    def contenders(self) -> list[str]:
        """In the order in which they are first seen."""
        return list(dict.fromkeys(name for _, shares, _ in self.rows for name in shares))


def kernels(record: Record) -> Figure:
    """Each contender's share of what is possible: decode, store_kv, and where they are there prefill and cascade."""
    read, copy = (f"{record['ceilings'][f'{name}_gb_s']:,.0f} GB/s" for name in ("read", "copy"))
    decode = [(_case(row), _shares(row["results"], "share"), row["goal"]["share"]) for row in record["decode"]]
    prefill = [
        (_prompt(row), _shares(row["results"], "of_dense"), row["goal"]["of_dense"])
        for row in record.get("prefill", [])
    ]
    cascade = [
        (_case(row).removeprefix("cascade, "), {"the prefix read once": row["times_plain"]}, 1.0)
        for row in record.get("cascade", [])
    ]
    store = [(row["name"], {"ours": row["share"]}, row["goal"]["share"]) for row in record["store"]]
    panels = [
        Panel(decode, f"decode: share of the read ceiling, {read}"),
        Panel(prefill, "prefill: share of dense SDPA's speed"),
        Panel(cascade, "a common prefix: share of plain decode's speed"),
        Panel(store, f"share of the copy ceiling, {copy}"),
    ]
    panels = [panel for panel in panels if panel.rows]
    heights = [len(panel.rows) * 0.36 + 1.0 for panel in panels]
    figure = figure_of(sum(heights) + 1.2)
    for axis, panel in zip(column(figure, heights), panels, strict=True):
        _dots(axis, panel)
    said = [
        "Sequences x context, heads/KV heads, head size.",
        "Upright line: the goal. *: not tuned for.",
        foot(record),
    ]
    title(figure, "Kernels: how near to what is possible", said)
    return figure


def _case(row: Record) -> str:
    return f"{row['name'].removeprefix('prefill, ')}{'*' if row['held_out'] else ''}"


def _prompt(row: Record) -> str:
    return f"{_case(row)}: {row['results']['ours']['tflop_s']:,.0f} TFLOP/s"


def _shares(results: Mapping[str, Record], figure: str) -> dict[str, float]:
    """Contender -> share; one that was skipped has none."""
    return {name: found[figure] for name, found in results.items() if figure in found}


def _dots(axis: Axes, panel: Panel) -> None:
    """A line for each row with a mark for each contender, and an upright one for the goal."""
    from matplotlib.ticker import MaxNLocator

    rows, contenders = panel.rows, panel.contenders
    most = max(1.0, *(share for _, shares, _ in rows for share in shares.values()))
    for place, (name, _, goal) in enumerate(rows):
        axis.plot([0, most], [place, place], color=FAINT, lw=1, ls="-", marker="", zorder=1)
        axis.plot([goal, goal], [place - 0.1, place + 0.24], color=INK, lw=1.2, ls="-", marker="", zorder=2)
        # No reason to make the axis narrower, though it may be longer than that.
        axis.text(0, place - 0.16, name, va="bottom", ha="left", fontsize=SMALL, in_layout=False)
    for order, (contender, (colour, marker)) in enumerate(zip(contenders, SERIES, strict=False)):
        points = [(shares[contender], place) for place, (_, shares, _) in enumerate(rows) if contender in shares]
        xs, ys = zip(*points, strict=True)
        # The first, ours, lies on top.
        axis.plot(xs, ys, color=colour, marker=marker, ls="", ms=6.5, label=contender, zorder=9 - order)
    if len(contenders) > 1:
        legend(axis, 2)
    axis.set_ylim(len(rows) - 0.4, -0.8)
    axis.set_yticks([])
    axis.set_xlim(0, 1.02 * most)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel(panel.of)
    axis.spines["left"].set_visible(False)
