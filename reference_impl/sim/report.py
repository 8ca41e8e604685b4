"""A comparison of runs: as a table on a terminal, and as one JSON file.

Owns: `Run` (what was simulated and what came out), the columns of the table, the schema of the file. Knows nothing of
how a run was made. The file's fields:

    schema      "engine-simulate/1"
    versions    of this package, Python and NumPy
    trace       name, description, is_real (recorded or sampled), requests
    traffic     when requests came, what they were allowed, the latencies that were aimed at
    device, model, rates    what the cost model was made from
    runs        for each allocator: allocator, config, took_s (of the simulation itself, in real time; all else is
                the same whenever the same command runs), metrics (as `Metrics.summary`), series (columns over time),
                distributions (latency -> [value in s, count] pairs)
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.workloads import Workload
from reference_impl.sim.cost import CostModel
from reference_impl.sim.metrics import LATENCIES, Metrics

SCHEMA = "engine-simulate/1"


@dataclass(frozen=True)
class Run:
    """One row of a comparison: the allocator's name, the settings it ran under, what was measured."""

    allocator: str
    config: dict[str, object]
    metrics: Metrics
    took_s: float
    """Seconds that the simulation itself took."""


def as_json(
    runs: Sequence[Run], workload: Workload, requests: int, traffic: dict[str, object], cost: CostModel
) -> dict[str, Any]:
    """Everything as plain data."""
    return {
        "schema": SCHEMA,
        "versions": {"padding-to-paging": _version(), "python": platform.python_version(), "numpy": np.__version__},
        "trace": {
            "name": workload.name,
            "description": workload.description,
            "is_real": workload.is_real,
            "requests": requests,
        },
        "traffic": traffic,
        "device": asdict(cost.device),
        "model": {"name": cost.model.name, "vocabulary": cost.model.vocabulary, **asdict(cost.model.shape)},
        "rates": asdict(cost.rates),
        "runs": [
            {
                "allocator": run.allocator,
                "config": run.config,
                "took_s": run.took_s,
                "metrics": run.metrics.summary(),
                "series": run.metrics.memory.columns(),
                "distributions": {name: run.metrics.latencies[name].buckets() for name in LATENCIES},
            }
            for run in runs
        ],
    }


def write_json(report: dict[str, Any], path: Path) -> None:
    """One file, numbers unrounded. Raises: OSError where it cannot be written."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _version() -> str:
    try:
        return importlib.metadata.version("padding-to-paging")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """The header and one row for each run. held: share of memory that holds tokens; run, most: requests at once."""
    header = (
        "allocator",
        "tok/s",
        "req/s",
        "good/s",
        "TTFT s p50",
        "p99",
        "TPOT ms p50",
        "ITL ms p99",
        "held",
        "run",
        "most",
        "preempt",
        "recomp",
        "hit",
        "refused",
    )
    return [header, *(_row(run) for run in runs)]


def _row(run: Run) -> tuple[str, ...]:
    metrics = run.metrics
    seconds, means = metrics.duration_s, metrics.memory.means()

    def at(name: str, share: float, factor: float = 1.0) -> str:
        histogram = metrics.latencies[name]
        return f"{histogram.quantile(share) * factor:.2f}" if histogram.count else "-"

    def rate(count: int) -> str:
        return f"{count / seconds:,.2f}" if seconds else "-"

    return (
        run.allocator,
        f"{metrics.output_tokens / seconds:,.0f}" if seconds else "-",
        rate(metrics.completed),
        rate(metrics.good),
        at("ttft_s", 0.5),
        at("ttft_s", 0.99),
        at("tpot_s", 0.5, 1e3),
        at("itl_s", 0.99, 1e3),
        f"{means['held']:.1%}",
        f"{means['running']:.1f}",
        f"{metrics.most_running}",
        f"{metrics.preemptions:,}",
        f"{metrics.recomputed_tokens:,}",
        f"{metrics.reused_tokens / metrics.prompt_tokens:.1%}" if metrics.prompt_tokens else "-",
        f"{metrics.refused.total():,}",
    )


def folded(rows: Sequence[Sequence[str]], width: int) -> str:
    """As `aligned`, in as few tables one under the other as keep within `width` characters, all about as wide.

    Each has the first column, and at least one more, however wide.
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    width = min(width, sum(widths) + 2 * len(widths))
    parts = _parts(widths, width)
    while len(narrower := _parts(widths, width - 1)) == len(parts) and width > 0:
        parts, width = narrower, width - 1
    return "\n\n".join(aligned([[row[column] for column in part] for row in rows]) for part in parts)


def _parts(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each table, filled from the left."""
    parts: list[list[int]] = [[0]]
    used = widths[0]
    for column in range(1, len(widths)):
        if used + 2 + widths[column] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(column)
        used += 2 + widths[column]
    return parts


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows under each other: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
