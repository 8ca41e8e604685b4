"""The picture of a comparison: where memory went over time, who ran and waited, how long the first token took.

Owns: the drawing. Knows nothing of simulation: it reads the report of `report.py`, so that a saved file can be drawn
again. No display is needed. Colours are told apart in grey too, and every line has another dash.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = {
    "held": ("#1b6ca8", "tokens"),
    "tail": ("#6fb1de", "tail of the last block"),
    "reserved": ("#f0b429", "reserved"),
    "internal": ("#d9742b", "internal waste"),
    "external": ("#9b3d3d", "external: holes too short"),
    "free": ("#eceff1", "free"),
}
"""Column of the account -> colour and what the legend calls it, from the bottom up."""
_LINES = (
    ("#1b6ca8", "-"),
    ("#d9742b", "--"),
    ("#3a7d44", "-."),
    ("#7b4fa3", ":"),
    ("#444444", (0, (5, 1, 1, 1))),
    ("#c23b6b", (0, (8, 2))),
    ("#8a6d1d", (0, (1, 1))),
)
_MOST_ACROSS = 3
_MOST_POINTS = 128
"""Of a line: more than that in a third of the width would only be noise."""


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture of a report; the file's ending says which format. Raises: ValueError on an unknown ending."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    runs = report["runs"]
    across = min(len(runs), _MOST_ACROSS)
    down = -(-len(runs) // across)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(3.6 * max(across, 2) + 0.6, 2.3 * down + 3.9), layout="constrained")
        parts = figure.subfigures(2, 1, height_ratios=(2.3 * down + 0.5, 3.2), squeeze=False)
        memory, lines = parts[0, 0], parts[1, 0]
        memory.suptitle(_title(report), fontsize=10, x=0.01, ha="left")
        grid = memory.subplots(down, across, squeeze=False, sharey=True)
        axes = list(grid.flat)
        for axis, run in zip(axes, runs, strict=False):
            _memory(axis, run)
            # One scale of time for all: who is done sooner is seen to be.
            axis.set_xlim(0, max(run["metrics"]["duration_s"] for run in runs))
        for axis in axes[len(runs) :]:
            axis.set_axis_off()
        for axis in grid[:, 0]:
            axis.set_ylabel("share of KV memory")
        for axis in axes[max(0, len(runs) - across) : len(runs)]:
            axis.set_xlabel("time in s")
        handles, labels = axes[0].get_legend_handles_labels()
        memory.legend(
            handles, labels, loc="outside lower center", ncols=3 if across < 2 else 6, frameon=False, fontsize=8
        )
        running, waiting, first = lines.subplots(1, 3)
        _requests(running, runs, "running", "requests that run")
        _requests(waiting, runs, "waiting", "requests that wait")
        _first_token(first, runs)
        handles, labels = running.get_legend_handles_labels()
        lines.legend(
            handles, labels, loc="outside lower center", ncols=min(len(runs), 2 * across), frameon=False, fontsize=8
        )
        try:
            figure.savefig(path, dpi=160)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _title(report: dict[str, Any]) -> str:
    trace = report["trace"]
    kind = "recorded" if trace["is_real"] else "sampled"
    return (
        f"{trace['name']} ({kind}, {trace['requests']:,} requests): {report['model']['name']} on "
        f"{report['device']['name']}, {report['runs'][0]['config']['kv_tokens']:,} tokens of KV"
    )


def _memory(axis: Axes, run: dict[str, Any]) -> None:
    series = _thinned(run["series"])
    colours = [colour for colour, _ in _COLUMNS.values()]
    labels = [name for _, name in _COLUMNS.values()]
    axis.stackplot(series["time_s"], [series[column] for column in _COLUMNS], colors=colours, labels=labels, lw=0)
    held = run["metrics"]["mean_over_time"]["held"]
    axis.set_title(f"{_short(run)}: {held:.0%} holds tokens", fontsize=9, loc="left")
    axis.set_ylim(0, 1)


def _requests(axis: Axes, runs: list[dict[str, Any]], column: str, title: str) -> None:
    for place, run in enumerate(runs):
        colour, dash = _LINES[place % len(_LINES)]
        series = _thinned(run["series"])
        axis.plot(series["time_s"], series[column], color=colour, linestyle=dash, lw=1.2, label=_short(run))
    axis.set_ylim(bottom=0)
    axis.margins(x=0)
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlabel("time in s")


def _thinned(series: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each column with at most `_MOST_POINTS` points, means of neighbours."""
    step = -(-len(series["time_s"]) // _MOST_POINTS) or 1
    return {
        name: [fmean(values[start : start + step]) for start in range(0, len(values), step)]
        for name, values in series.items()
    }


def _short(run: dict[str, Any]) -> str:
    """The allocator's name; of a file only the file and the class."""
    return str(run["allocator"]).rpartition("/")[2]


def _first_token(axis: Axes, runs: list[dict[str, Any]]) -> None:
    for place, run in enumerate(runs):
        buckets = run["distributions"]["ttft_s"]
        if not buckets:
            continue
        colour, dash = _LINES[place % len(_LINES)]
        counts = list(accumulate(count for _, count in buckets))
        values = [max(value, 1e-4) for value, _ in buckets]
        shares = [count / counts[-1] for count in counts]
        axis.step(values, shares, where="post", color=colour, linestyle=dash, lw=1.3)
    axis.set_xscale("log")
    axis.set_ylim(0, 1.02)
    axis.set_title("share with a first token by then", fontsize=9, loc="left")
    axis.set_xlabel("TTFT in s")
    axis.grid(alpha=0.25)
