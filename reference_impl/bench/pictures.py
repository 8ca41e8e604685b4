"""The pictures of the records, the kernels' aside: one function for each suite, a record in, a figure out.

Owns: what a picture shows, and its title, axes and units. Knows nothing of files or of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from reference_impl.bench.budget_record import name_of
from reference_impl.bench.drawing import (
    BLUE,
    BROWN,
    FAINT,
    INK,
    SERIES,
    SMALL,
    Record,
    bars,
    column,
    figure_of,
    foot,
    legend,
    machine_of,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PEERS = {"vLLM 0.20.2": 18_382.0, "transformers 5.17, padded": 426.0}
"""Output tokens a second of the published script with Qwen3-0.6B, measured on an H100 of the same kind."""
PEERS_ON = "H100"
_MOST_KINDS = 6

# The whole engine ---------------------------------------------------------------------------------------------------


def offline(record: Record) -> Figure:
    """The first run beside peers and the floor that bytes set, all runs as shares of theirs, and a step's time."""
    first, runs = record["runs"][0], record["runs"]
    ours = {"this engine": first["tokens_per_s"]}
    published = first["goal"] is not None and PEERS_ON in machine_of(record)
    found = ours | (PEERS if published else {})
    shares = runs if len(runs) > 1 and all(run["share"] is not None for run in runs) else []
    kinds = _kinds(first["step"]["kinds"]) if first["step"] is not None else {}
    heights = [0.62 * len(found) + 0.3, *(0.5 * len(part) + 0.3 for part in (shares, kinds) if part)]
    figure = figure_of(sum(heights) + 2.0 + 0.3 * (len(heights) > 2))
    axes = column(figure, heights)
    _beside_the_floor(axes[0], found, first["floor_tokens_per_s"])
    if shares:
        texts = [f"{run['share']:.0%}, {run['tokens_per_s']:,.0f} tokens/s" for run in shares]
        bars(axes[1], [_job(run) for run in shares], [run["share"] for run in shares], texts, [BLUE] * len(shares))
        axes[1].set_xlim(0, 1.35)
        axes[1].set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes[1].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes[1].set_xlabel("share of the floor, each job of its own bytes")
    if kinds:
        bars(axes[-1], list(kinds), list(kinds.values()), [f"{ms:.2f}" for ms in kinds.values()], [BLUE] * len(kinds))
        step = first["step"]
        axes[-1].set_xlabel(f"ms of the GPU in a step of {step['requests']} decodes ({step['wall_ms']:.2f} ms)")
    said = [
        f"{_job(first)}, {first['dtype']}: {first['requests']} requests, {first['output_tokens']:,} tokens to make."
    ]
    said.append(foot(record))
    if published:
        said.append("The others: in other runs, on an H100 of the same kind.")
    title(figure, "A batch job: tokens a second", said)
    return figure


def _beside_the_floor(axis: Axes, found: Mapping[str, float], floor: float | None) -> None:
    """Output tokens a second of each, the first of them ours."""
    values = list(found.values())
    bars(axis, list(found), values, [f"{value:,.0f}" for value in values], [BLUE, *[BROWN] * (len(found) - 1)])
    axis.set_xlabel("output tokens a second")
    if floor is not None:
        axis.axvline(floor, color=INK, lw=1.5, ls="--")
        axis.set_xlim(0, 1.15 * max(floor, *values))
        axis.text(floor, -0.8, f"floor {floor:,.0f} ", ha="right", va="top", fontsize=11)


def _job(run: Record) -> str:
    lengths = "the published script" if run["lengths"] == "script" else run["lengths"]
    return f"{run['model']}, {lengths}{'' if run['is_real'] else ' (sampled)'}"


def _kinds(kinds: Mapping[str, float]) -> dict[str, float]:
    """The largest kinds of kernel, and all others as one."""
    ordered = sorted(kinds.items(), key=lambda item: -item[1])
    most = {name.strip("_"): ms for name, ms in ordered[:_MOST_KINDS]}
    rest = sum(ms for _, ms in ordered[_MOST_KINDS:])
    return most | ({"all others": rest} if rest else {})


def serve(record: Record) -> Figure:
    """Latency, throughput and goodput against the rate of requests."""
    rows = record["rates"]
    figure = figure_of(8.6)
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
    legend(first, 3)
    model, job = record["model"], record["workload"]
    said = f"{model['name']}, {model['dtype']}. {job['requests']} requests of {_trace(job)} at each rate."
    title(figure, "Serving: latency against the rate", [said, _good(record["bounds"]), foot(record)])
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
    figure = figure_of(3 * height + 1.4)
    made, running, held = figure.subplots(3, 1)
    texts = [f"{row['tokens_per_s']:,.0f} ({row['gain']:.2f}x)" for row in rows]
    bars(made, names, [row["tokens_per_s"] for row in rows], texts, colours)
    made.set_xlim(0, max(row["tokens_per_s"] for row in rows) * 1.6)
    made.set_xlabel("output tokens a second (times contiguous)")
    texts = [f"{row['mean_running']:.1f}, at most {row['peak_running']}" for row in rows]
    bars(running, names, [row["mean_running"] for row in rows], texts, colours)
    running.set_xlim(0, max(row["mean_running"] for row in rows) * 1.6)
    running.set_xlabel("requests at once, mean while somebody waits")
    bars(held, names, [row["held_share"] for row in rows], [f"{row['held_share']:.0%}" for row in rows], colours)
    held.set_xlim(0, 1.1)
    held.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    held.set_xlabel("share of the KV memory that holds tokens")
    memory, job, model = record["memory"], record["workload"], record["model"]
    said = [
        f"{model['name']}, {model['dtype']}. {memory['kv_bytes'] / 2**20:,.0f} MiB for {memory['kv_tokens']:,} tokens. "
        f"{job['requests']} requests of {_trace(job)}, none above {memory['longest_tokens']:,} tokens.",
        foot(record),
    ]
    title(figure, "The same bytes, kept in five ways", said)
    return figure


# On a CPU -----------------------------------------------------------------------------------------------------------


def cpu(record: Record) -> Figure:
    """The engine beside a padded batch of transformers, and paged beside reserved memory."""
    beside, held = record["offline"], record["concurrency"]
    figure = figure_of(4.6)
    speed, running = figure.subplots(2, 1)
    values = [beside["ours_tokens_per_s"], beside["theirs_tokens_per_s"]]
    bars(speed, ["this engine", "transformers, padded"], values, [f"{value:.1f}" for value in values], [BLUE, BROWN])
    speed.set_xlabel(f"useful tokens a second ({beside['model']})")
    rows = held["rows"]
    colours = [BLUE if row["allocator"] == "paged" else BROWN for row in rows]
    texts = [f"{row['mean_running']:.1f}, at most {row['peak_running']}" for row in rows]
    bars(running, [row["allocator"] for row in rows], [row["mean_running"] for row in rows], texts, colours)
    running.set_xlim(0, max(row["mean_running"] for row in rows) * 1.6)
    running.set_xlabel(f"requests at once in {held['kv_tokens']:,} tokens of KV")
    title(figure, "On a CPU", [foot(record)])
    return figure


def memory(record: Record) -> Figure:
    """What one operation costs, on a scale of powers of ten."""
    rows = record["benchmarks"]
    figure = figure_of(0.4 * len(rows) + 1.6)
    axis = figure.subplots()
    costs = [row["per_operation_s"] for row in rows]
    least = min(costs) / 3
    for place, row in enumerate(rows):
        cost = row["per_operation_s"]
        axis.plot([least, cost], [place, place], color=FAINT, lw=1, ls="-", marker="", zorder=1)
        axis.text(least, place - 0.18, row["name"], va="bottom", ha="left", fontsize=SMALL)
        axis.annotate(_time(cost), (cost, place), (7, 0), textcoords="offset points", va="center", fontsize=SMALL)
    axis.plot(costs, range(len(rows)), color=BLUE, marker="o", ls="", zorder=3)
    axis.set_xscale("log")
    axis.set_xlim(least, max(costs) * 8)
    axis.set_ylim(len(rows) - 0.4, -0.8)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel("seconds for one operation")
    title(figure, "Memory, scheduler and simulator", [foot(record)])
    return figure


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
