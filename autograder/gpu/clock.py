"""How fast a plan is: beside the reference, on data of its own, with every output looked at.

Owns: the drawing of a timed case, the interleaved clock and the check of what was timed. Runs in the trusted process
that plays plans; the worker is gone by then. The clock is the host's, round whole replays: a kernel has no way to it,
while the time stamps of CUDA's events lie in memory that a kernel might find.

A share is the bytes of keys and values that must be read, over the time, over the fastest read of this device in the
same process. Student and reference alternate, reference first and last, each on data of its own, so that neither finds
the other's answers in memory.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from autograder.gpu.plan import Plan, parse
from autograder.gpu.replay import Guarded, Loaded, Player, Scratch
from autograder.gpu.timed import TimedCase, Timing
from autograder.worker.record import record
from reference_impl.attention import reference
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.work_list import WorkList

REPLICA_BYTES = 512_000_000
"""Keys and values of all replicas together: ten times the second-level cache of an H100."""
SAMPLE_S = 0.008
ROUNDS = 7
ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative L2 over the output, as lab 4 has it."""
ROW_SLACK = 4.0
"""A row's error may be so many times that."""


class _Replicas:
    """A plan bound to several copies of a case's data, and the graph that plays it on all of them."""

    def __init__(self, plan: Plan, case: TimedCase, tables: Tensor, context_lens: Tensor, seed: int) -> None:
        self._case, self._seed = case, seed
        self._tables, self._lengths = tables, context_lens
        self.count = max(2, -(-REPLICA_BYTES // case.kv_bytes))
        self._inputs: list[list[Guarded]] = []
        shared = [_guarded(tables), _guarded(context_lens)]
        for replica in range(self.count):
            query, key_cache, value_cache = (_guarded(tensor) for tensor in self._draw(replica))
            out = Guarded(query.inner.numel())
            out.inner.fill_(0xFF)
            self._inputs.append([query, key_cache, value_cache, *shared, out])
        loaded = Loaded(plan)
        scratch = Scratch(plan)
        scratch.poison(0xFF)
        players = [Player(loaded, [memory.inner for memory in inputs], scratch) for inputs in self._inputs]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for player in players:
                player.settle()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for player in players:
                player.play()
        # Replays use all of it: it lives as long as the graph.
        self._held = (loaded, scratch, players)

    def sample_s(self, replays: int) -> float:
        """Seconds of one call, by the host's clock round so many replays."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(replays):
            self._graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / replays / self.count

    def fault(self) -> str:
        """Why what is in memory now is not what the calls should have left; "" if it is."""
        case = self._case
        dtype = case.torch_dtype
        scale = case.head_dim**-0.5
        tables, lengths = self._tables.to("cuda"), self._lengths.to("cuda")
        for replica, inputs in enumerate(self._inputs):
            drawn = [tensor.to("cuda") for tensor in self._draw(replica)]
            for memory, tensor in zip(inputs, (*drawn, self._tables, self._lengths), strict=False):
                if not memory.intact() or not torch.equal(memory.inner, _bytes(tensor).to("cuda")):
                    return "an input or the memory beside it was changed"
            if not inputs[-1].intact():
                return "the memory beside the output was changed"
            oracle = reference.paged_decode(drawn[0], drawn[1], drawn[2], tables, lengths, scale)
            out = inputs[-1].inner.view(dtype).view(oracle.shape).double()
            if wrong := _differs(out, oracle, ERRORS[dtype]):
                return wrong
        return ""

    def _draw(self, replica: int) -> list[Tensor]:
        """Query, keys and values of one replica, the same at every call; NaN in the slots that hold no token."""
        case = self._case
        generator = torch.Generator("cuda").manual_seed(self._seed + replica)
        dtype = case.torch_dtype
        cache = (case.num_blocks, case.block_size, case.kv_heads, case.head_dim)
        shapes = ((len(case.lengths), case.heads, case.head_dim), cache, cache)
        query, *caches = (torch.randn(shape, generator=generator, device="cuda", dtype=dtype) for shape in shapes)
        last = [(length - 1) // case.block_size for length in case.lengths]
        for row, (place, length) in enumerate(zip(last, case.lengths, strict=True)):
            if used := length % case.block_size:
                for tensor in caches:
                    tensor[int(self._tables[row, place]), used:] = float("nan")
        return [query, *caches]


def measure(plan: Plan, case: TimedCase, tables_seed: int, data_seed: int, read_bytes_per_s: float) -> Timing:
    """Time a plan recorded for `case.tables(tables_seed)`; both seeds are unknown to the kernels' author."""
    tables, context_lens = case.tables(tables_seed)
    reference_side = _Replicas(reference_plan(case, tables, context_lens), case, tables, context_lens, data_seed)
    student_side = _Replicas(plan, case, tables, context_lens, data_seed + 1_000_003)
    sides = (reference_side, student_side, reference_side)
    replays = [max(1, round(SAMPLE_S / (side.sample_s(2) * side.count))) for side in sides]
    seconds: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for side, count, found in zip(sides, replays, seconds, strict=True):
            found.append(side.sample_s(count))
    before_us, student_us, after_us = (statistics.median(found) * 1e6 for found in seconds)
    wrong = student_side.fault()
    if own := reference_side.fault():
        # The reference is right: what it left was damaged by somebody else in this process.
        wrong = wrong or f"memory that does not belong to the call was changed: {own}"
    return Timing(student_us, before_us, after_us, case.kv_bytes, read_bytes_per_s, wrong)


def reference_plan(case: TimedCase, tables: Tensor, context_lens: Tensor) -> Plan:
    """Our own decode on a case, as a plan."""
    data, sizes = recorded_reference(case, tables, context_lens)
    return parse(data, sizes)


def recorded_reference(case: TimedCase, tables: Tensor, context_lens: Tensor) -> tuple[Any, list[int]]:
    """Our own decode, recorded as a student's is, and the sizes of its storages in bytes.

    Its work list was made before, as an engine makes it once a step.
    """
    dtype = case.torch_dtype
    device = torch.device("cuda")
    tables, context_lens = tables.to(device), context_lens.to(device)
    work = WorkList(len(case.lengths), case.heads, case.kv_heads, case.head_dim, dtype, device).refresh(context_lens)
    query = torch.randn(len(case.lengths), case.heads, case.head_dim, device=device, dtype=dtype)
    cache = torch.zeros(case.num_blocks, case.block_size, case.kv_heads, case.head_dim, device=device, dtype=dtype)
    storages = [query, cache, torch.zeros_like(cache), tables, context_lens, torch.empty_like(query)]

    def call(*arguments: Any) -> None:
        paged_decode(*arguments, work=work)

    arguments = [*storages[:5], case.head_dim**-0.5, storages[5]]
    return record(call, arguments, storages), [tensor.untyped_storage().nbytes() for tensor in storages]


def _guarded(tensor: Tensor) -> Guarded:
    memory = Guarded(tensor.numel() * tensor.element_size())
    memory.inner.copy_(_bytes(tensor))
    return memory


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _differs(out: Tensor, oracle: Tensor, bound: float) -> str:
    """Why `out` is not the oracle's answer within the bounds; "" if it is."""
    if not bool(torch.isfinite(out).all()):
        return "an output is not finite or was not written"
    whole = float((out - oracle).norm() / oracle.norm())
    rows = float(((out - oracle).norm(dim=-1) / oracle.norm(dim=-1).clamp(min=1e-30)).max())
    if whole > bound or rows > ROW_SLACK * bound:
        return "an output that was timed is wrong"
    return ""
