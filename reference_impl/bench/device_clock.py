"""How long the GPU takes: graphs replayed between events, and the two ceilings that every figure is held against.

Owns: capture, replay, medians, and the fastest read and copy of this device in this run. Knows nothing of attention.
A graph holds one call for each replica, so that no replay finds its data in the second-level cache, and the host's
time to launch is not in it.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

_CEILING_BYTES = 2 << 30
_READ_ELEMENTS = 16_384
_COPY_ELEMENTS = 4096


def replay_s(calls: Sequence[Callable[[], object]], *, at_least_s: float = 0.15, rounds: int = 15) -> float:
    """Seconds of one of `calls`, median over graph replays of all of them; each was run once before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    once_s = _events_s(graph, 3)[-1]
    return statistics.median(_events_s(graph, max(rounds, int(at_least_s / once_s)))) / len(calls)


def _events_s(graph: torch.cuda.CUDAGraph, rounds: int) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    for mark in marks[:-1]:
        mark.record()
        graph.replay()
    marks[-1].record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def copy_bytes_per_s() -> float:
    """Bytes read and written a second by the fastest of several copies of 2 GiB, torch's own among them."""
    source = torch.randint(0, 127, (_CEILING_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    calls: list[Callable[[], object]] = [
        partial(target.copy_, source),
        *(partial(_copy, source, target, warps) for warps in (4, 8)),
    ]
    return 2 * _CEILING_BYTES / min(replay_s([call]) for call in calls)


def read_bytes_per_s() -> float:
    """Bytes read a second by the fastest of several kernels that add up 2 GiB."""
    source = torch.randint(0, 127, (_CEILING_BYTES // 4,), dtype=torch.int32, device="cuda")
    sums = torch.empty(triton.cdiv(source.numel(), _READ_ELEMENTS), dtype=torch.int32, device="cuda")
    seconds = [replay_s([partial(_read, source, sums, step, warps)]) for step in (2048, 4096) for warps in (4, 8)]
    return _CEILING_BYTES / min(seconds)


def _read(source: Tensor, sums: Tensor, step: int, warps: int) -> None:
    _sum[(sums.numel(),)](source, sums, ELEMENTS=_READ_ELEMENTS, STEP=step, num_warps=warps)


def _copy(source: Tensor, target: Tensor, warps: int) -> None:
    _move[(source.numel() // _COPY_ELEMENTS,)](source, target, ELEMENTS=_COPY_ELEMENTS, num_warps=warps)


@triton.jit
def _move(source, target, ELEMENTS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def _sum(source, sums, ELEMENTS: tl.constexpr, STEP: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * ELEMENTS
    found = tl.zeros((STEP,), dtype=tl.int32)
    for step in tl.static_range(ELEMENTS // STEP):
        found += tl.load(source + start + step * STEP + tl.arange(0, STEP))
    tl.store(sums + tl.program_id(0), tl.sum(found, 0))
