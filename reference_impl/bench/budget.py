"""`engine bench budget`: one budget of KV bytes, kept in five ways, and what each makes of it in tokens a second.

Owns: the ways, and their run one after the other with the same weights and requests on the same machine. Knows nothing
of how memory is kept; `concurrency.py` counts who runs.

    padded       a static batch in one rectangle
    contiguous   the longest length reserved for each request: what all others are held against
    pow2         the prompt and the next power of two above the answer's true length
    paged        blocks as tokens come
    paged, hash  and blocks with the same contents kept once

The last two also serve prompts of the same lengths that begin with one of a few system prompts; those of all others
share nothing.

Padded and pow2 are told the true length of each answer, which no server knows, so they look better here than they are.
All requests are there at the start. Throughput is tokens that somebody asked for, over the seconds of all steps; what
runs at once and how much of the memory holds tokens is counted while somebody waits. One thing beside memory is in
the seconds: ranges are tables of an entry for each token where blocks have one for sixteen, so a step of ranges costs
more Python.
Source: Kwon et al., SOSP 2023, sections 6.2 and 6.4 (1.7 to 2.7 times the request rate of the oracle, 2 to 8 times
that of the longest length reserved; a shared prefix gives another 1.67 to 3.58).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import torch

from reference_impl.bench import concurrency
from reference_impl.bench.budget_record import GAIN, check_record, header, line
from reference_impl.bench.machine import computed_by, describe
from reference_impl.bench.open_loop import warm_up
from reference_impl.bench.record import short
from reference_impl.bench.serve import TEMPERATURE, load_or_draw
from reference_impl.bench.workload_lengths import Lengths, SystemPrompts, asks, fitting
from reference_impl.engine.build import build_engine
from reference_impl.engine.heap import frozen_heap
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import LoadedModel

WORKLOAD = "sharegpt_8k"
SYSTEM = SystemPrompts(count=4, tokens=256)
RESERVED = "contiguous"


@dataclass(frozen=True)
class Way:
    """How memory is kept, and whether prompts begin with a system prompt."""

    allocator: str
    prefix_cache: str = "none"
    shared: bool = False


WAYS = (
    Way("padded"),
    Way(RESERVED),
    Way("pow2"),
    Way("paged"),
    Way("paged", "hash"),
    Way("paged", shared=True),
    Way("paged", "hash", shared=True),
)


@dataclass(frozen=True)
class Terms:
    """What all ways have in common: slots for keys and values, requests, and how long these may be, in tokens."""

    kv_tokens: int = concurrency.KV_TOKENS
    requests: int = 240
    longest: int = concurrency.MAX_LENGTH
    longest_prompt: int = concurrency.MAX_PROMPT
    workload: str = WORKLOAD
    seed: int = 0


def measure(settings: EngineSettings, terms: Terms, commit: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The record of all ways. `settings` says all but how memory is kept and how much there is.

    Raises: ValueError if the requests do not fill the memory, or on what does not go together. Cost: that of the
    slowest way, contiguous or padded, twice.
    """
    lengths = fitting(terms.workload, terms.requests, terms.longest_prompt, terms.longest)
    loaded, weights = load_or_draw(settings.model, settings.dtype, settings.device)
    kv_bytes = terms.kv_tokens * loaded.config.kv_bytes_per_token(loaded.transformer.dtype.itemsize)
    common = replace(settings, kv_memory_bytes=kv_bytes, max_context_tokens=terms.longest)
    say(f"{loaded.name} ({weights} weights, {settings.dtype}), {terms.kv_tokens:,} tokens of KV in {kv_bytes:,} bytes")
    say(f"{terms.requests} requests of {terms.workload}, {lengths.output_tokens:,} tokens to make")
    say(header())
    rows: list[dict[str, Any]] = []
    for way in WAYS:
        row, computed = _row(way, common, loaded, lengths, terms.seed)
        rows.append(row)
        say(line(row))
    record = {
        "suite": "budget",
        "date": date.today().isoformat(),
        "commit": commit,
        "clock": "perf_counter",
        "machine": describe(loaded.transformer.device),
        "model": {"name": loaded.name, "weights": weights, "dtype": settings.dtype},
        "engine": {
            **computed,
            "block_size": settings.block_size,
            "max_running": settings.max_running,
            "max_tokens_per_step": settings.max_tokens_per_step,
        },
        "memory": {"kv_bytes": kv_bytes, "kv_tokens": terms.kv_tokens, "longest_tokens": terms.longest},
        "workload": _workload(lengths, terms),
        **_gains(rows),
    }
    check_record(record)
    return record


def _gains(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows with what each gains over the longest length reserved, and the goal of the first that is paged."""
    reserved = next(row for row in rows if row["allocator"] == RESERVED)
    told = [
        row
        | {
            "gain": short(row["tokens_per_s"] / reserved["tokens_per_s"]),
            "running_gain": short(row["mean_running"] / reserved["mean_running"]),
        }
        for row in rows
    ]
    paged = next(row for row in told if row["allocator"] == "paged")
    return {"rows": told, "goal": {"at_least": GAIN, "met": paged["gain"] >= GAIN}}


def _row(
    way: Way, common: EngineSettings, loaded: LoadedModel, lengths: Lengths, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row, without gains, and what computed it."""
    built = build_engine(replace(common, block_allocator=way.allocator, prefix_cache=way.prefix_cache), loaded=loaded)
    engine, counters = built.engine, built.engine.scheduler.counters
    warm_up(engine, lengths.pairs)
    preemptions, reused = counters.preemptions, counters.reused_tokens
    requests = asks(
        lengths.pairs,
        loaded.config.vocab_size,
        seed,
        temperature=TEMPERATURE,
        system=SYSTEM if way.shared else None,
    )
    with frozen_heap():
        seen = concurrency.crowd(engine, requests, way.allocator)
    row = {
        "allocator": way.allocator,
        "prefix_cache": way.prefix_cache,
        "prompts": "shared" if way.shared else "own",
        "seconds": short(seen.seconds),
        "steps": seen.steps,
        "refused": seen.refused,
        "tokens": seen.tokens,
        "tokens_per_s": short(seen.tokens / seen.seconds),
        "waiting_tokens_per_s": short(sum(seen.made) / sum(seen.waited_s)),
        "mean_running": short(seen.mean_running),
        "peak_running": max(seen.running),
        "held_share": short(sum(seen.held) / len(seen.held)),
        "preemptions": counters.preemptions - preemptions,
        "reused_tokens": counters.reused_tokens - reused,
    }
    computed = computed_by(engine)
    del built, engine, counters
    _give_back()
    return row, computed


def _give_back() -> None:
    """The next way needs the memory that this one had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _workload(lengths: Lengths, terms: Terms) -> dict[str, Any]:
    shared = sum(SYSTEM.shared(prompt) for prompt, _ in lengths.pairs)
    return {
        "name": lengths.workload,
        "is_real": lengths.is_real,
        "requests": len(lengths.pairs),
        "prompt_tokens": lengths.prompt_tokens,
        "output_tokens": lengths.output_tokens,
        "longest_prompt_tokens": terms.longest_prompt,
        "system_prompts": SYSTEM.count,
        "system_tokens": SYSTEM.tokens,
        "shared_share": short(shared / lengths.prompt_tokens),
        "seed": terms.seed,
        "temperature": TEMPERATURE,
    }
