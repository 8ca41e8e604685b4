"""The record of `engine bench serve`: its fields, what must hold among them, and the lines that are printed.

Owns: the schema. Knows nothing of how anything was measured (`serve.py`).

    suite, date, commit, clock    "serve"; clock is "perf_counter", seconds on the wall
    machine    as in machine.py
    model      name, weights ("random" or "loaded"), dtype
    engine     attention, cuda_graphs, overlap, block_allocator, prefix_cache, block_size, kv_tokens, kv_bytes,
               max_running, max_tokens_per_step, longest_tokens, max_waiting (0: as many as come)
    workload   name, is_real (recorded, not sampled), requests, cut (longer in the trace), prompt_tokens, output_tokens,
               seed, temperature
    bounds     ttft_s, tpot_s; None asks nothing
    rates      list of: rate_per_s (asked for), requests, completed, refused (kind -> how many), seconds (from the start
               to the end of the last step), steps, requests_per_s, output_tokens_per_s, good_share, good_per_s,
               queue_mean (over the seconds), queue_most, preemptions, and ttft_s, tpot_s, itl_s, e2e_s: p50, p90, p99,
               mean, max, or None if there were none. A quantile is the least value with that share at or below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reference_impl.bench.machine import MACHINE
from reference_impl.bench.record import Schema, check_fields

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")

SCHEMA: Schema = {
    "record": {
        "suite": str,
        "date": str,
        "commit": str,
        "clock": str,
        "machine": dict,
        "model": dict,
        "engine": dict,
        "workload": dict,
        "bounds": dict,
        "rates": list,
    },
    **MACHINE,
    "model": {"name": str, "weights": str, "dtype": str},
    "engine": {
        "attention": str,
        "cuda_graphs": bool,
        "overlap": bool,
        "block_allocator": str,
        "prefix_cache": str,
        "block_size": int,
        "kv_tokens": int,
        "kv_bytes": int,
        "max_running": int,
        "max_tokens_per_step": int,
        "longest_tokens": int,
        "max_waiting": int,
    },
    "workload": {
        "name": str,
        "is_real": bool,
        "requests": int,
        "cut": int,
        "prompt_tokens": int,
        "output_tokens": int,
        "seed": int,
        "temperature": float,
    },
    "bounds": {"ttft_s": (float, type(None)), "tpot_s": (float, type(None))},
    "rate": {
        "rate_per_s": float,
        "requests": int,
        "completed": int,
        "refused": dict,
        "seconds": float,
        "steps": int,
        "requests_per_s": float,
        "output_tokens_per_s": float,
        "good_share": float,
        "good_per_s": float,
        "queue_mean": float,
        "queue_most": int,
        "preemptions": int,
        **dict.fromkeys(LATENCIES, (dict, type(None))),
    },
    "quantiles": {"p50": float, "p90": float, "p99": float, "mean": float, "max": float},
}


def check_record(record: Any) -> None:
    """Raises: ValueError naming the first field that is missing, unknown, of another type, or does not add up."""
    check_fields(SCHEMA, "record", record)
    for part in ("machine", "model", "engine", "workload", "bounds"):
        check_fields(SCHEMA, part, record[part])
    if not record["rates"]:
        raise ValueError("rates: none was measured")
    for row in record["rates"]:
        check_fields(SCHEMA, "rate", row)
        came = row["completed"] + sum(row["refused"].values())
        if came != row["requests"]:
            raise ValueError(f"rate {row['rate_per_s']:g}: {row['requests']} requests came, {came} are accounted for")
        for name in LATENCIES:
            if row[name] is not None:
                check_fields(SCHEMA, "quantiles", row[name])


def header() -> str:
    """What stands above the lines."""
    return (
        f"{'rate/s':>8} {'done/s':>8} {'tokens/s':>9} {'good':>5} {'TTFT p50':>9} {'p99':>9} {'TPOT p50':>9} {'p99':>9}"
        f" {'ITL p99':>9} {'queue':>6} {'preempted':>9} {'refused':>7}"
    )


def line(row: Mapping[str, Any]) -> str:
    """One rate; times in milliseconds."""

    def ms(name: str, figure: str) -> str:
        return f"{row[name][figure] * 1e3:7,.1f}ms" if row[name] is not None else f"{'-':>9}"

    return (
        f"{row['rate_per_s']:8g} {row['requests_per_s']:8.2f} {row['output_tokens_per_s']:9,.0f}"
        f" {row['good_share']:5.0%}"
        f" {ms('ttft_s', 'p50')} {ms('ttft_s', 'p99')} {ms('tpot_s', 'p50')} {ms('tpot_s', 'p99')} {ms('itl_s', 'p99')}"
        f" {row['queue_mean']:6.1f} {row['preemptions']:9} {sum(row['refused'].values()):7}"
    )
