"""The pictures of the records: one function for each suite, a record in, a figure out.

Owns: what a picture shows, and its title, axes and units. Knows nothing of files or of how anything was measured.
A row has its name above it and not beside it, so that names may be long on a narrow page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from labkit.draw import WIDTH
from reference_impl.bench.budget_record import name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

INK, SOFT, FAINT, BLUE, BROWN = "#1b1f24", "#4d545c", "#d0d4d9", "#005a9c", "#9a4a00"
"""The page's own colours; blue is always ours."""
SERIES = ((BLUE, "o"), (BROWN, "s"), (SOFT, "^"), ("#7b4fa3", "D"), ("#1a6b33", "v"), ("#a3261d", "P"))
"""Colour and marker of each series, in order."""
PEERS = {"vLLM 0.20.2": 18_382.0, "transformers 5.17, padded": 426.0}
"""Output tokens a second of the published script with Qwen3-0.6B, measured on an H100 of the same kind."""
_PEERS_ON = "H100"
_SMALL = 10
_INCH = 72
_ACROSS = 60
"""Small characters in a line."""
_MOST_KINDS = 6


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / _INCH, height), layout="constrained")


def _title(figure: Figure, title: str, lines: Sequence[str]) -> None:
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    foot = [part for line in lines for part in wrap(line, _ACROSS)]
    figure.supxlabel("\n".join(foot), x=0.02, ha="left", fontsize=_SMALL, color=SOFT)


def _bars(
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


def _column(figure: Figure, heights: Sequence[float]) -> list[Axes]:
    """One below the other."""
    return list(figure.subplots(len(heights), 1, height_ratios=list(heights), squeeze=False)[:, 0])


def _legend(axis: Axes, across: int) -> None:
    """Above the axis, as nothing else is there."""
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=across, fontsize=11, handlelength=1.6, columnspacing=1.2
    )


def _machine(record: Record) -> str:
    machine = record["machine"]
    return str(machine.get("device") or machine.get("gpu") or machine.get("cpu"))


def _foot(record: Record) -> str:
    return f"{_machine(record)}, {record['date']}"


# Kernels ------------------------------------------------------------------------------------------------------------


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
    """Each contender's share of what is possible: decode, prefill where it is there, and store_kv."""
    read, copy = (f"{record['ceilings'][f'{name}_gb_s']:,.0f} GB/s" for name in ("read", "copy"))
    decode = [(_case(row), _shares(row["results"], "share"), row["goal"]["share"]) for row in record["decode"]]
    prefill = [
        (_prompt(row), _shares(row["results"], "of_dense"), row["goal"]["of_dense"])
        for row in record.get("prefill", [])
    ]
    store = [(row["name"], {"ours": row["share"]}, row["goal"]["share"]) for row in record["store"]]
    panels = [
        Panel(decode, f"decode: share of the read ceiling, {read}"),
        Panel(prefill, "prefill: share of dense SDPA's speed"),
        Panel(store, f"share of the copy ceiling, {copy}"),
    ]
    panels = [panel for panel in panels if panel.rows]
    heights = [len(panel.rows) * 0.36 + 1.0 for panel in panels]
    figure = _figure(sum(heights) + 1.2)
    for axis, panel in zip(_column(figure, heights), panels, strict=True):
        _dots(axis, panel)
    said = [
        "Sequences x context, heads/KV heads, head size.",
        "Upright line: the goal. *: not tuned for.",
        _foot(record),
    ]
    _title(figure, "Kernels: how near to what is possible", said)
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
    rows, contenders = panel.rows, panel.contenders
    most = max(1.0, *(share for _, shares, _ in rows for share in shares.values()))
    for place, (name, _, goal) in enumerate(rows):
        axis.plot([0, most], [place, place], color=FAINT, lw=1, ls="-", marker="", zorder=1)
        axis.plot([goal, goal], [place - 0.22, place + 0.22], color=INK, lw=1.2, ls="-", marker="", zorder=2)
        # No reason to make the axis narrower, though it may be longer than that.
        axis.text(0, place - 0.16, name, va="bottom", ha="left", fontsize=_SMALL, in_layout=False)
    for order, (contender, (colour, marker)) in enumerate(zip(contenders, SERIES, strict=False)):
        points = [(shares[contender], place) for place, (_, shares, _) in enumerate(rows) if contender in shares]
        xs, ys = zip(*points, strict=True)
        # The first, ours, lies on top.
        axis.plot(xs, ys, color=colour, marker=marker, ls="", ms=6.5, label=contender, zorder=9 - order)
    if len(contenders) > 1:
        _legend(axis, 2)
    axis.set_ylim(len(rows) - 0.4, -0.8)
    axis.set_yticks([])
    axis.set_xlim(0, 1.02 * most)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel(panel.of)
    axis.spines["left"].set_visible(False)


# The whole engine ---------------------------------------------------------------------------------------------------


def offline(record: Record) -> Figure:
    """Output tokens a second beside peers and the floor that bytes set, and where a step's time goes."""
    ours = {"this engine": record["tokens_per_s"]}
    published = record["goal"] is not None and _PEERS_ON in _machine(record)
    found = ours | (PEERS if published else {})
    floor, step = record["floor_tokens_per_s"], record["step"]
    kinds = _kinds(step["kinds"]) if step is not None else {}
    heights = [0.62 * len(found) + 0.3, *([0.5 * len(kinds) + 0.3] if kinds else [])]
    figure = _figure(sum(heights) + 2.0)
    axes = _column(figure, heights)
    values = list(found.values())
    _bars(axes[0], list(found), values, [f"{value:,.0f}" for value in values], [BLUE, *[BROWN] * (len(found) - 1)])
    axes[0].set_xlabel("output tokens a second")
    if floor is not None:
        axes[0].axvline(floor, color=INK, lw=1.5, ls="--")
        axes[0].set_xlim(0, 1.15 * max(floor, *values))
        axes[0].text(floor, -0.8, f"floor {floor:,.0f} ", ha="right", va="top", fontsize=11)
    if kinds:
        _bars(axes[1], list(kinds), list(kinds.values()), [f"{ms:.2f}" for ms in kinds.values()], [BLUE] * len(kinds))
        axes[1].set_xlabel(f"ms of the GPU in a step of {step['requests']} decodes ({step['wall_ms']:.2f} ms)")
    lengths = "the published script" if record["lengths"] == "script" else record["lengths"]
    job = f"{record['requests']} requests ({lengths}), {record['output_tokens']:,} tokens to make"
    said = [f"{record['model']}, {record['dtype']}. {job}.", _foot(record)]
    if published:
        said.append("The others: in other runs, on an H100 of the same kind.")
    _title(figure, "A batch job: tokens a second", said)
    return figure


def _kinds(kinds: Mapping[str, float]) -> dict[str, float]:
    """The largest kinds of kernel, and all others as one."""
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    most = {name.strip("_"): ms for name, ms in ordered[:_MOST_KINDS]}
    rest = sum(ms for _, ms in ordered[_MOST_KINDS:])
    return most | ({"all others": rest} if rest else {})


def serve(record: Record) -> Figure:
    """Latency, throughput and goodput against the rate of requests."""
    rows = record["rates"]
    figure = _figure(8.6)
    first, pace, made, good = figure.subplots(4, 1, sharex=True)
    _latency(first, rows, "ttft_s", 1.0, record["bounds"]["ttft_s"])
    first.set_ylabel("TTFT, s")
    _latency(pace, rows, "tpot_s", 1e3, record["bounds"]["tpot_s"])
    pace.set_ylabel("TPOT, ms")
    rates = [row["rate_per_s"] for row in rows]
    made.plot(rates, [row["output_tokens_per_s"] for row in rows], color=BLUE, marker="o", ls="-")
    made.set_ylabel("tokens/s")
    made.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    good.plot(rates, [row["good_share"] for row in rows], color=BLUE, marker="o", ls="-")
    good.set_ylabel("good requests")
    good.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    for axis in (made, good):
        axis.set_ylim(bottom=0)
    good.set_ylim(0, 1.08)
    good.set_xlabel("requests a second")
    for axis in (first, pace, made, good):
        axis.grid(axis="y", color=FAINT, lw=0.8)
        axis.set_axisbelow(True)
    _legend(first, 3)
    model, job = record["model"], record["workload"]
    said = f"{model['name']}, {model['dtype']}. {job['requests']} requests of {_trace(job)} at each rate."
    _title(figure, "Serving: latency against the rate", [said, _good(record["bounds"]), _foot(record)])
    return figure


def _latency(axis: Axes, rows: Sequence[Record], name: str, scale: float, bound: float | None) -> None:
    """p50 and p99 where there are any, and the bound."""
    from matplotlib.ticker import LogLocator, NullLocator

    there = [row for row in rows if row[name] is not None]
    for (figure, dash), (colour, marker) in zip((("p50", "-"), ("p99", "--")), SERIES, strict=False):
        values = [row[name][figure] * scale for row in there]
        axis.plot([row["rate_per_s"] for row in there], values, color=colour, marker=marker, ls=dash, label=figure)
    if bound is not None:
        axis.axhline(bound * scale, color=INK, lw=1.2, ls=":", label="bound")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _good(bounds: Record) -> str:
    ttft_s, tpot_s = bounds["ttft_s"], bounds["tpot_s"]
    parts = [f"TTFT up to {ttft_s:g} s"] if ttft_s is not None else []
    parts += [f"TPOT up to {tpot_s * 1e3:g} ms"] if tpot_s is not None else []
    return f"Good: {', '.join(parts) or 'answered'}."


def _trace(job: Record) -> str:
    return f"{job['name']} ({'recorded' if job['is_real'] else 'sampled'})"


def budget(record: Record) -> Figure:
    """Tokens a second, requests at once, and how much of the memory holds tokens, for each way to keep it."""
    rows = record["rows"]
    names = [name_of(row) for row in rows]
    colours = [BLUE if row["allocator"] == "paged" else BROWN for row in rows]
    height = 0.46 * len(rows) + 0.75
    figure = _figure(3 * height + 1.4)
    made, running, held = figure.subplots(3, 1)
    texts = [f"{row['tokens_per_s']:,.0f} ({row['gain']:.2f}x)" for row in rows]
    _bars(made, names, [row["tokens_per_s"] for row in rows], texts, colours)
    made.set_xlim(0, max(row["tokens_per_s"] for row in rows) * 1.6)
    made.set_xlabel("output tokens a second (times contiguous)")
    texts = [f"{row['mean_running']:.1f}, at most {row['peak_running']}" for row in rows]
    _bars(running, names, [row["mean_running"] for row in rows], texts, colours)
    running.set_xlim(0, max(row["mean_running"] for row in rows) * 1.6)
    running.set_xlabel("requests at once, mean while somebody waits")
    _bars(held, names, [row["held_share"] for row in rows], [f"{row['held_share']:.0%}" for row in rows], colours)
    held.set_xlim(0, 1.1)
    held.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    held.set_xlabel("share of the KV memory that holds tokens")
    memory, job, model = record["memory"], record["workload"], record["model"]
    said = [
        f"{model['name']}, {model['dtype']}. {memory['kv_bytes'] / 2**20:,.0f} MiB for {memory['kv_tokens']:,} tokens. "
        f"{job['requests']} requests of {_trace(job)}, none above {memory['longest_tokens']:,} tokens.",
        _foot(record),
    ]
    _title(figure, "The same bytes, kept in five ways", said)
    return figure


# On a CPU -----------------------------------------------------------------------------------------------------------


def cpu(record: Record) -> Figure:
    """The engine beside a padded batch of transformers, and paged beside reserved memory."""
    beside, held = record["offline"], record["concurrency"]
    figure = _figure(4.6)
    speed, running = figure.subplots(2, 1)
    values = [beside["ours_tokens_per_s"], beside["theirs_tokens_per_s"]]
    _bars(speed, ["this engine", "transformers, padded"], values, [f"{value:.1f}" for value in values], [BLUE, BROWN])
    speed.set_xlabel(f"useful tokens a second ({beside['model']})")
    rows = held["rows"]
    colours = [BLUE if row["allocator"] == "paged" else BROWN for row in rows]
    texts = [f"{row['mean_running']:.1f}, at most {row['peak_running']}" for row in rows]
    _bars(running, [row["allocator"] for row in rows], [row["mean_running"] for row in rows], texts, colours)
    running.set_xlim(0, max(row["mean_running"] for row in rows) * 1.6)
    running.set_xlabel(f"requests at once in {held['kv_tokens']:,} tokens of KV")
    _title(figure, "On a CPU", [_foot(record)])
    return figure


def memory(record: Record) -> Figure:
    """What one operation costs, on a scale of powers of ten."""
    rows = record["benchmarks"]
    figure = _figure(0.4 * len(rows) + 1.6)
    axis = figure.subplots()
    costs = [row["per_operation_s"] for row in rows]
    least = min(costs) / 3
    for place, row in enumerate(rows):
        cost = row["per_operation_s"]
        axis.plot([least, cost], [place, place], color=FAINT, lw=1, ls="-", marker="", zorder=1)
        axis.text(least, place - 0.18, row["name"], va="bottom", ha="left", fontsize=_SMALL)
        axis.annotate(_time(cost), (cost, place), (7, 0), textcoords="offset points", va="center", fontsize=_SMALL)
    axis.plot(costs, range(len(rows)), color=BLUE, marker="o", ls="", zorder=3)
    axis.set_xscale("log")
    axis.set_xlim(least, max(costs) * 8)
    axis.set_ylim(len(rows) - 0.4, -0.8)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("seconds for one operation")
    _title(figure, "Memory, scheduler and simulator", [_foot(record)])
    return figure


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
