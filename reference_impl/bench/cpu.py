"""`engine bench cpu`: what paging and continuous batching gain on a CPU, held against two goals and kept.

Owns: the goals, the record and how it is said. Knows nothing of how either figure is measured
(`beside_transformers.py`, `concurrency.py`).

    suite, date, commit, machine    as in record.py; machine also has threads, torch, transformers, and waits: how a
                 thread waits for the others, OpenMP's OMP_WAIT_POLICY, which decides on a machine that is not idle
    clock        "perf_counter": seconds on the wall, because both sides of a turn have the same neighbours
    offline      model, requests, useful_tokens, padded_share, turns (list of ours_s, theirs_s, gain, same), and of the
                 medians ours_tokens_per_s, theirs_tokens_per_s, gain; goal
    concurrency  kv_bytes, kv_tokens, longest_tokens, rows (list of allocator, requests, steps, mean_running,
                 peak_running, preemptions), gain in the mean; goal
    goal         at_least (float), met (bool)
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from os import cpu_count, environ
from typing import Any

import torch

from reference_impl.bench import beside_transformers, concurrency
from reference_impl.bench.record import commit, cpu_model

OFFLINE_GAIN = 2.0
"""Useful tokens a second over those of a padded static batch."""
CONCURRENCY_GAIN = 3.0
"""Requests that run at once over those with the longest length reserved, in the same bytes."""
MODEL = "smollm2"
TURNS = 3
CONCURRENT_REQUESTS = 150

_FIELDS = {
    "record": ("suite", "date", "commit", "machine", "clock", "offline", "concurrency"),
    "machine": ("cpu", "cores", "threads", "waits", "python", "torch", "transformers"),
    "offline": (
        "model",
        "requests",
        "useful_tokens",
        "padded_share",
        "turns",
        "ours_tokens_per_s",
        "theirs_tokens_per_s",
        "gain",
        "goal",
    ),
    "turn": ("ours_s", "theirs_s", "gain", "same"),
    "concurrency": ("kv_bytes", "kv_tokens", "longest_tokens", "rows", "gain", "goal"),
    "row": ("allocator", "requests", "steps", "mean_running", "peak_running", "preemptions"),
    "goal": ("at_least", "met"),
}


def measure(
    model: str = MODEL,
    turns: int = TURNS,
    requests: int = CONCURRENT_REQUESTS,
    job: beside_transformers.Job | None = None,
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The record of both comparisons. Raises: ValueError or ImportError if something cannot be measured.

    Cost: with SmolLM2 on two calm cores about a minute a turn, and two minutes for the count of requests.
    """
    # Read first: while this runs somebody may commit something else.
    measured = commit()
    beside = beside_transformers.measure(model, turns, job, progress)
    rows, lengths = [], concurrency.conversations(requests)
    for allocator in concurrency.ALLOCATORS:
        rows.append(concurrency.hold(allocator, lengths))
        progress(
            f"{allocator}: {rows[-1].mean_running:.1f} requests at once in the mean, {rows[-1].peak_running} at most"
        )
    record = {
        "suite": "cpu",
        "date": date.today().isoformat(),
        "commit": measured,
        "machine": {
            "cpu": cpu_model(),
            "cores": cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "waits": environ.get("OMP_WAIT_POLICY", "default").lower(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
        "clock": "perf_counter",
        "offline": _offline(model, beside),
        "concurrency": _concurrency(rows),
    }
    check_record(record)
    return record


def _offline(model: str, found: beside_transformers.Offline) -> dict[str, Any]:
    return {
        "model": model,
        "requests": len(found.job.outputs),
        "useful_tokens": found.job.useful_tokens,
        "padded_share": _short(found.job.padded_share),
        "turns": [
            {
                "ours_s": _short(turn.ours_s),
                "theirs_s": _short(turn.theirs_s),
                "gain": _short(turn.gain),
                "same": turn.same,
            }
            for turn in found.turns
        ],
        "ours_tokens_per_s": _short(found.ours_tokens_per_s),
        "theirs_tokens_per_s": _short(found.theirs_tokens_per_s),
        "gain": _short(found.gain),
        "goal": _goal(OFFLINE_GAIN, found.gain),
    }


def _concurrency(rows: list[concurrency.Concurrency]) -> dict[str, Any]:
    reserved, paged = rows
    gain = paged.mean_running / reserved.mean_running
    return {
        "kv_bytes": paged.kv_bytes,
        "kv_tokens": concurrency.KV_TOKENS,
        "longest_tokens": concurrency.MAX_LENGTH,
        "rows": [
            {
                "allocator": row.allocator,
                "requests": row.requests,
                "steps": row.steps,
                "mean_running": _short(row.mean_running),
                "peak_running": row.peak_running,
                "preemptions": row.preemptions,
            }
            for row in rows
        ],
        "gain": _short(gain),
        "goal": _goal(CONCURRENCY_GAIN, gain),
    }


def _goal(at_least: float, gain: float) -> dict[str, Any]:
    return {"at_least": at_least, "met": gain >= at_least}


def _short(value: float) -> float:
    """Four digits: the rest is noise."""
    return float(f"{value:.4g}")


def check_record(record: Mapping[str, Any]) -> None:
    """Raises: ValueError naming what has a field missing or too many, or a goal that does not fit its figure."""
    _check("record", record)
    _check("machine", record["machine"])
    for name in ("offline", "concurrency"):
        part = record[name]
        _check(name, part)
        _check("goal", part["goal"])
        if (part["gain"] >= part["goal"]["at_least"]) != part["goal"]["met"]:
            raise ValueError(f"{name}: gain {part['gain']} and the goal {part['goal']}")
    for turn in record["offline"]["turns"]:
        _check("turn", turn)
    for row in record["concurrency"]["rows"]:
        _check("row", row)


def _check(what: str, found: Mapping[str, Any]) -> None:
    if wrong := set(_FIELDS[what]) ^ found.keys():
        raise ValueError(f"{what}: {sorted(wrong)} is missing or too many")


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record for people."""
    beside, held = record["offline"], record["concurrency"]
    machine = record["machine"]
    same = min(turn["same"] for turn in beside["turns"])
    found = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}",
        f"{beside['model']}, {beside['requests']} requests, {beside['useful_tokens']:,} useful tokens; "
        f"a static batch would be {beside['padded_share']:.0%} padding",
        f"  ours          {beside['ours_tokens_per_s']:8.1f} useful tokens a second",
        f"  transformers  {beside['theirs_tokens_per_s']:8.1f}, same tokens in {same} of {beside['requests']} answers",
        f"  gain          {beside['gain']:8.2f}  {_verdict(beside['goal'])}",
        f"{held['kv_tokens']:,} slots of KV, requests of at most {held['longest_tokens']:,} tokens",
    ]
    for row in held["rows"]:
        ran = f"{row['mean_running']:8.1f} at once, {row['peak_running']} at most, {row['preemptions']} preemptions"
        found.append(f"  {row['allocator']:12}  {ran}")
    return [*found, f"  gain          {held['gain']:8.2f}  {_verdict(held['goal'])}"]


def _verdict(goal: Mapping[str, Any]) -> str:
    return f"at least {goal['at_least']:g}: {'hit' if goal['met'] else 'MISS'}"
