"""The record of `engine bench budget`: its fields, what must hold among them, and the lines that are printed.

Owns: the schema and the goal. Knows nothing of how anything was measured (`budget.py`).

    suite, date, commit, clock    "budget"; clock is "perf_counter", seconds on the wall
    machine    as in machine.py
    model      name, weights ("random" or "loaded"), dtype
    engine     attention, cuda_graphs, overlap, block_size, max_running, max_tokens_per_step
    memory     kv_bytes, kv_tokens (slots in them), longest_tokens (of a request)
    workload   name, is_real (recorded, not sampled), requests, prompt_tokens, output_tokens, longest_prompt_tokens,
               system_prompts, system_tokens, shared_share (of prompt tokens that come from a system prompt, in the row
               whose prompts are "shared"), seed, temperature
    rows       list of: allocator, prefix_cache, prompts ("own" or "shared"), seconds (of all steps), steps, refused,
               tokens (made), tokens_per_s, waiting_tokens_per_s (while somebody waits), mean_running (over the time
               that somebody waits), peak_running, held_share (of the memory, holding tokens), preemptions,
               reused_tokens (found in the prefix cache, by preempted requests too), gain and running_gain: tokens_per_s
               and mean_running over those of contiguous
    goal       at_least (float), met (bool): of paged's gain. It was set for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reference_impl.bench.machine import MACHINE
from reference_impl.bench.record import Schema, check_fields

GAIN = 2.0
"""Tokens a second of paged over those with the longest length reserved, in the same bytes."""

SCHEMA: Schema = {
    "record": {
        "suite": str,
        "date": str,
        "commit": str,
        "clock": str,
        "machine": dict,
        "model": dict,
        "engine": dict,
        "memory": dict,
        "workload": dict,
        "rows": list,
        "goal": dict,
    },
    **MACHINE,
    "model": {"name": str, "weights": str, "dtype": str},
    "engine": {
        "attention": str,
        "cuda_graphs": bool,
        "overlap": bool,
        "block_size": int,
        "max_running": int,
        "max_tokens_per_step": int,
    },
    "memory": {"kv_bytes": int, "kv_tokens": int, "longest_tokens": int},
    "workload": {
        "name": str,
        "is_real": bool,
        "requests": int,
        "prompt_tokens": int,
        "output_tokens": int,
        "longest_prompt_tokens": int,
        "system_prompts": int,
        "system_tokens": int,
        "shared_share": float,
        "seed": int,
        "temperature": float,
    },
    "row": {
        "allocator": str,
        "prefix_cache": str,
        "prompts": str,
        "seconds": float,
        "steps": int,
        "refused": int,
        "tokens": int,
        "tokens_per_s": float,
        "waiting_tokens_per_s": float,
        "mean_running": float,
        "peak_running": int,
        "held_share": float,
        "preemptions": int,
        "reused_tokens": int,
        "gain": float,
        "running_gain": float,
    },
    "goal": {"at_least": float, "met": bool},
}


def check_record(record: Any) -> None:
    """Raises: ValueError naming the first field that is missing, unknown, of another type, or does not add up."""
    check_fields(SCHEMA, "record", record)
    for part in ("machine", "model", "engine", "memory", "workload", "goal"):
        check_fields(SCHEMA, part, record[part])
    for row in record["rows"]:
        check_fields(SCHEMA, "row", row)
        if not row["refused"] and row["tokens"] != record["workload"]["output_tokens"]:
            wanted = record["workload"]["output_tokens"]
            raise ValueError(f"{name_of(row)}: {row['tokens']} tokens were made, {wanted} were asked for")
    paged = [row for row in record["rows"] if row["allocator"] == "paged"]
    if not paged:
        raise ValueError("rows: paged was not measured")
    if (paged[0]["gain"] >= record["goal"]["at_least"]) != record["goal"]["met"]:
        raise ValueError(f"{name_of(paged[0])}: gain {paged[0]['gain']} and the goal {record['goal']}")


def name_of(row: Mapping[str, Any]) -> str:
    """What a row is called, for people."""
    cache = "" if row["prefix_cache"] == "none" else " + prefix cache"
    return f"{row['allocator']}{cache}{', shared prompts' if row['prompts'] == 'shared' else ''}"


def header() -> str:
    """What stands above the lines."""
    return (
        f"{'':38} {'at once':>8} {'peak':>5} {'tokens/s':>9} {'waiting':>9} {'holds':>6} {'steps':>7}"
        f" {'step':>8} {'preempted':>9} {'reused':>8}"
    )


def line(row: Mapping[str, Any]) -> str:
    """One way; gains are told at the end (`verdict`), as contiguous may come later."""
    return (
        f"{name_of(row):38} {row['mean_running']:8.1f} {row['peak_running']:5} {row['tokens_per_s']:9,.0f}"
        f" {row['waiting_tokens_per_s']:9,.0f} {row['held_share']:6.1%} {row['steps']:7,}"
        f" {row['seconds'] / row['steps'] * 1e3:6.2f}ms {row['preemptions']:9,} {row['reused_tokens']:8,}"
    )


def verdict(record: Mapping[str, Any]) -> list[str]:
    """The gains over contiguous, and whether the goal was met."""
    found = [
        f"{name_of(row):38} {row['gain']:5.2f} times the tokens a second, {row['running_gain']:5.2f} times the requests"
        for row in record["rows"]
    ]
    goal = record["goal"]
    return [*found, f"paged at least {goal['at_least']:g} times contiguous: {'hit' if goal['met'] else 'MISS'}"]
