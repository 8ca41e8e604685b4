"""Where the time of one step goes in which every request decodes.

Owns: how such a step is reached and watched, and what a kernel is for, by its name. Knows nothing of jobs or records.
The wall's time is taken without the profiler, whose own cost is not to be in it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from reference_impl.bench.record import short
from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Ask

_PROFILED_STEPS = 20


def profiled_step(engine: Engine, job: Sequence[Ask], steps: int = _PROFILED_STEPS) -> dict[str, Any] | None:
    """Where the time of a step goes in which all requests decode, a mean of `steps`; the requests are let go then.

    None if they never all decode for so long: there is too little memory, or the first end before the last begin.
    """
    from torch.profiler import ProfilerActivity, profile

    made = start_all(engine, job)
    found = None
    if made is not None and min(ask.params.max_tokens for ask in job) > made // len(job) + 2 * steps + 2:
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        made += sum(_stepped(engine) for _ in range(steps))
        torch.cuda.synchronize()
        wall_s = (time.perf_counter() - started_s) / steps
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            made += sum(_stepped(engine) for _ in range(steps))
            torch.cuda.synchronize()
        kinds: defaultdict[str, float] = defaultdict(float)
        for event in watched.key_averages():
            if event.self_device_time_total:
                kinds[kind_of(event.key)] += event.self_device_time_total / steps / 1e3
        found = {
            "requests": len(job),
            "context_tokens": sum(len(ask.prompt) for ask in job) + made,
            "gpu_ms": short(sum(kinds.values())),
            "wall_ms": short(wall_s * 1e3),
            "kinds": {kind: short(ms) for kind, ms in sorted(kinds.items(), key=lambda item: -item[1])},
        }
    engine.abort_all()
    while engine.has_work:
        engine.step()
    return found


def start_all(engine: Engine, job: Sequence[Ask]) -> int | None:
    """Add all requests and step until a step decodes for every one: tokens made. None if that never comes."""
    for ask in job:
        engine.add(ask.prompt, ask.params)
    made = 0
    while engine.has_work:
        made += _stepped(engine)
        if engine.last_step.decode_tokens == len(job) and not engine.last_step.prefill_tokens:
            return made
    return None


def _stepped(engine: Engine) -> int:
    """One step; tokens that it made."""
    return sum(len(piece.tokens) for piece in engine.step())


_KINDS = {
    "attention": ("_paged_decode", "_paged_prefill"),
    "work list": ("_cut",),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitK", "cublas"),
    "copies": ("Memcpy", "Memset"),
}


def kind_of(kernel: str) -> str:
    """What a kernel is for, by its name; its own name's beginning where nothing fits."""
    for kind, words in _KINDS.items():
        if any(word in kernel for word in words):
            return kind
    return kernel[:60]
