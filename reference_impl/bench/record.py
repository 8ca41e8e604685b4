"""The record of a run of benchmarks: one lean JSON file, its schema, and the table that is printed.

Owns: what is kept, and what is not: no name of a host or a user, no path, no single timings. Knows nothing of how
anything was measured.

    suite        str
    date         str, YYYY-MM-DD
    commit       str, "+" behind it if the working tree had changes; "unknown" outside of a repository
    machine      cpu (str), cores (int), python (str)
    clock        str, what the seconds are: "process_time", those of the processor
    benchmarks   list of: name, unit (of one operation), operations (of one round), rounds, median_s, iqr_s,
                 per_operation_s, rate (operations a second), and goal where there is one
    ratios       list of: name, ratio, goal
    skipped      object: name -> why
    goal         figure ("rate", "per_operation_s", "median_s" or "ratio"), value, met (bool)
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from reference_impl.bench.cases import CASES, RATIOS, Case
from reference_impl.bench.goals import FLAT, Goal

Schema = Mapping[str, Mapping[str, type | tuple[type, ...]]]
"""What a part of a record is called -> its fields and their types."""

_FIELDS: Schema = {
    "record": {
        "suite": str,
        "date": str,
        "commit": str,
        "machine": dict,
        "clock": str,
        "benchmarks": list,
        "ratios": list,
        "skipped": dict,
    },
    "machine": {"cpu": str, "cores": int, "python": str},
    "benchmark": {
        "name": str,
        "unit": str,
        "operations": int,
        "rounds": int,
        "median_s": float,
        "iqr_s": float,
        "per_operation_s": float,
        "rate": float,
    },
    "ratio": {"name": str, "ratio": float, "goal": dict},
    "goal": {"figure": str, "value": float, "met": bool},
}


def lean(report: Mapping[str, Any], skipped: Mapping[str, str]) -> dict[str, Any]:
    """The record of what pytest-benchmark wrote. `skipped`: name -> why a case was not measured."""
    rows = [_row(CASES[entry["extra_info"]["name"]], entry["stats"]) for entry in report["benchmarks"]]
    costs = {row["name"]: row["per_operation_s"] for row in rows}
    return {
        "suite": "memory",
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count() or 1, "python": platform.python_version()},
        "clock": "process_time",
        "benchmarks": rows,
        "ratios": [
            {"name": name, "ratio": (ratio := short(costs[large] / costs[small])), "goal": _goal(FLAT, ratio)}
            for name, (large, small) in RATIOS.items()
            if large in costs and small in costs
        ],
        "skipped": dict(skipped),
    }


def _row(case: Case, stats: Mapping[str, float]) -> dict[str, Any]:
    median_s = stats["median"]
    figures = {"median_s": median_s, "per_operation_s": median_s / case.operations, "rate": case.operations / median_s}
    row = {
        "name": case.name,
        "unit": case.unit,
        "operations": case.operations,
        "rounds": int(stats["rounds"]),
        "iqr_s": short(stats["iqr"]),
        **{name: short(value) for name, value in figures.items()},
    }
    return row if case.goal is None else row | {"goal": _goal(case.goal, figures[case.goal.figure])}


def _goal(goal: Goal, value: float) -> dict[str, Any]:
    return {"figure": goal.figure, "value": goal.value, "met": goal.is_met(value)}


def short(value: float) -> float:
    """Four digits: the rest is noise."""
    return float(f"{value:.4g}")


def cpu_model() -> str:
    """The processor's name; its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The commit that was measured."""
    here = Path(__file__).parent
    try:
        name = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--", "..", "../../labs/labkit")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+" if changed else name


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], check=True, capture_output=True, text=True, timeout=20
    ).stdout.strip()


def check_record(record: Any) -> None:
    """Raises: ValueError naming the first field that is missing, unknown or of another type."""
    _check("record", record)
    _check("machine", record["machine"])
    for row in record["benchmarks"]:
        _check("benchmark", row, optional=("goal",))
    for row in record["ratios"]:
        _check("ratio", row)
    for row in record["benchmarks"] + record["ratios"]:
        if "goal" in row:
            _check("goal", row["goal"])
            value, goal = row[row["goal"]["figure"]], Goal(row["goal"]["figure"], row["goal"]["value"])
            if goal.is_met(value) != row["goal"]["met"]:
                raise ValueError(f"{row['name']}: {value} and the goal {goal.value}, but met is {row['goal']['met']}")
    if not record["benchmarks"]:
        raise ValueError("benchmarks: none were measured")


def _check(what: str, found: Any, optional: tuple[str, ...] = ()) -> None:
    check_fields(_FIELDS, what, found, optional)


def check_fields(schema: Schema, what: str, found: Any, optional: tuple[str, ...] = ()) -> None:
    """Raises: ValueError unless `found` has the fields that `schema` gives `what`, each of its type, and no others."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{what}: {found!r} is no object")
    name = found.get("name", what)
    for field, kind in schema[what].items():
        if field not in found:
            raise ValueError(f"{name}: no {field}")
        if not isinstance(found[field], kind):
            raise ValueError(f"{name}: {field} is {found[field]!r}")
    for field in found:
        if field not in schema[what] and field not in optional:
            raise ValueError(f"{name}: {field!r} is no field of a {what}")


def table(record: Mapping[str, Any]) -> list[str]:
    """The record in lines: what, how fast, how even, and whether the goal was met."""
    lines = [f"{'':52} {'median':>10} {'IQR':>9} {'one':>10} {'a second':>12}  goal"]
    for row in record["benchmarks"]:
        lines.append(
            f"{row['name']:52} {_seconds(row['median_s']):>10} {_seconds(row['iqr_s']):>9} "
            f"{_seconds(row['per_operation_s']):>10} {row['rate']:>12,.0f}  {_verdict(row)}".rstrip()
        )
    for row in record["ratios"]:
        lines.append(f"{row['name']:58} {row['ratio']:.2f}  {_verdict(row)}")
    lines += [f"{name}: skipped, {why}" for name, why in record["skipped"].items()]
    return lines


def _verdict(row: Mapping[str, Any]) -> str:
    if "goal" not in row:
        return ""
    goal = Goal(row["goal"]["figure"], row["goal"]["value"])
    if goal.figure == "rate":
        value = f"{goal.value:,.0f} {row['unit']}/s"
    else:
        value = f"{goal.value:g}" if goal.figure == "ratio" else _seconds(goal.value)
    return f"{'at least' if goal.at_least else 'at most'} {value}: {'hit' if row['goal']['met'] else 'MISS'}"


def _seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
