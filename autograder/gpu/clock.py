"""How fast a plan is: beside the reference, on data of its own, with outputs of the timed calls looked at.

Owns: the drawing of a timed case, the interleaved clock and the check of what was timed. Runs in the trusted process
that plays plans; the worker is gone by then. The clock is the host's, round whole replays: the time stamps of CUDA's
events lie in memory that a kernel might find.

A share is the bytes of keys and values that must be read, over the time, over the fastest read of this device in the
same process. Student and reference alternate, reference first and last, each on data of its own, so that neither finds
the other's answers in memory.

Nothing that a kernel could remember is of use to it in the next round: before every timed replay all queries are drawn
anew, outputs are filled with what no answer is, and scratch is poisoned. Which round is looked at afterwards is not
known before.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from autograder import nvml
from autograder.gpu.plan import Plan, parse
from autograder.gpu.replay import Guarded, Loaded, Player, Scratch
from autograder.gpu.timed import TimedCase, Timing
from autograder.judge.attention_view import check
from autograder.worker.record import record
from reference_impl.attention import reference
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.work_list import WorkList

REPLICA_BYTES = 3_000_000_000
"""Keys and values of all replicas together: many times the second-level cache, and long enough for the host's clock."""
ROUNDS = 15
LOOKED_AT = 3
"""Rounds after which an output is compared, the last among them; the others are drawn."""
POISON = 0xFF


class Machine(Protocol):
    """What the clock needs of a device: so that its rules can be tried where there is no GPU."""

    device: str

    def bound(self, plan: Plan, inputs: Sequence[Sequence[Tensor]]) -> Bound:
        """The plan bound to the storages of each replica."""

    def synchronize(self) -> None:
        """Wait for everything under way."""

    def slowed(self) -> tuple[str, ...]:
        """Why its clocks are held down at this moment; () if they are not."""


class Bound(Protocol):
    """A plan on several replicas."""

    def replay(self) -> None:
        """Queue all replicas once."""

    def refresh(self) -> None:
        """Poison the scratch that no replay finds ready."""

    def intact(self) -> bool:
        """Whether what is ready is as it was, and nothing was written beside scratch."""

    def unload(self) -> None:
        """Give the modules back."""


class Cuda:
    """The GPU of this process."""

    device = "cuda"

    @staticmethod
    def bound(plan: Plan, inputs: Sequence[Sequence[Tensor]]) -> Bound:
        return _Graph(plan, inputs)

    @staticmethod
    def synchronize() -> None:
        torch.cuda.synchronize()

    @staticmethod
    def slowed() -> tuple[str, ...]:
        # Torch's first device is the first that this process may use.
        return nvml.slowed(nvml.gpus()[0].uuid)


class _Graph:
    """A plan on several replicas in one CUDA graph, with one scratch for all: they run one after another."""

    def __init__(self, plan: Plan, inputs: Sequence[Sequence[Tensor]]) -> None:
        self._loaded = Loaded(plan)
        self._scratch = Scratch(plan)
        self._scratch.poison(POISON)
        self._players = [Player(self._loaded, storages, self._scratch) for storages in inputs]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for player in self._players:
                player.settle()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for player in self._players:
                player.play()

    def replay(self) -> None:
        self._graph.replay()

    def refresh(self) -> None:
        self._scratch.poison(POISON, but=self._players[0].settled)

    def intact(self) -> bool:
        return self._scratch.intact() and all(player.settled_intact() for player in self._players)

    def unload(self) -> None:
        del self._graph
        self._loaded.unload()


class _Side:
    """A plan, the replicas of a case that it works on, and the check of what it left there."""

    def __init__(self, plan: Plan, case: TimedCase, tables: Tensor, lengths: Tensor, seed: int, on: Machine) -> None:
        self._case, self._seed, self._on = case, seed, on
        self._tables, self._lengths = tables, lengths
        self.count = max(2, -(-REPLICA_BYTES // case.kv_bytes))
        shared = [self._guarded(tables), self._guarded(lengths)]
        self._inputs: list[list[Guarded]] = []
        for replica in range(self.count):
            query = self._guarded(self._query(replica, 0))
            keys, values = (self._guarded(tensor) for tensor in self._caches(replica))
            out = Guarded(query.inner.numel(), on.device)
            out.inner.fill_(POISON)
            self._inputs.append([query, keys, values, *shared, out])
        self._round = 0
        self._bound = on.bound(plan, [[memory.inner for memory in inputs] for inputs in self._inputs])

    def round_s(self) -> float:
        """Seconds of one call in a new round: queries drawn, outputs and scratch poisoned, and only then the clock."""
        self._round += 1
        for replica, inputs in enumerate(self._inputs):
            inputs[0].inner.copy_(_bytes(self._query(replica, self._round)))
            inputs[-1].inner.fill_(POISON)
        self._bound.refresh()
        self._on.synchronize()
        start = time.perf_counter()
        self._bound.replay()
        self._on.synchronize()
        return (time.perf_counter() - start) / self.count

    def wrong(self, replica: int) -> str:
        """Why a replica's output is not the answer to the queries of this round; "" if it is."""
        query = self._query(replica, self._round)
        keys, values = self._caches(replica)
        tables, lengths = self._tables.to(self._on.device), self._lengths.to(self._on.device)
        oracle = reference.paged_decode(query, keys, values, tables, lengths, self._case.head_dim**-0.5)
        out = self._inputs[replica][-1].inner.view(self._case.torch_dtype).view(oracle.shape)
        try:
            check(out, oracle, "an output that was timed")
        except AssertionError as told:
            return str(told)
        return ""

    def harm(self) -> str:
        """What the calls should have left alone and did not; "" if nothing."""
        for replica, inputs in enumerate(self._inputs):
            should = [self._query(replica, self._round), *self._caches(replica), self._tables, self._lengths]
            for memory, tensor in zip(inputs[:-1], should, strict=True):
                if not memory.intact() or not torch.equal(memory.inner, _bytes(tensor).to(self._on.device)):
                    return "an input or the memory beside it was changed"
            if not inputs[-1].intact():
                return "the memory beside the output was changed"
        return "" if self._bound.intact() else "the memory beside scratch, or a list that is made once, was changed"

    def close(self) -> None:
        """Give the kernels back."""
        self._bound.unload()

    def _guarded(self, tensor: Tensor) -> Guarded:
        memory = Guarded(tensor.numel() * tensor.element_size(), self._on.device)
        memory.inner.copy_(_bytes(tensor))
        return memory

    def _query(self, replica: int, turn: int) -> Tensor:
        """[batch, heads, head_dim], the same at every call for one replica and round, and in no other."""
        case = self._case
        # Apart from the caches' seeds, which are small.
        generator = torch.Generator(self._on.device).manual_seed(self._seed + (turn + 1) * 1_000 + replica)
        shape = (len(case.lengths), case.heads, case.head_dim)
        return torch.randn(shape, generator=generator, device=self._on.device, dtype=case.torch_dtype)

    def _caches(self, replica: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one replica, the same at every call; NaN in the slots that hold no token."""
        case = self._case
        generator = torch.Generator(self._on.device).manual_seed(self._seed + replica)
        shape = (case.num_blocks, case.block_size, case.kv_heads, case.head_dim)
        keys, values = (
            torch.randn(shape, generator=generator, device=self._on.device, dtype=case.torch_dtype) for _ in range(2)
        )
        for row, length in enumerate(case.lengths):
            if used := length % case.block_size:
                block = int(self._tables[row, (length - 1) // case.block_size])
                keys[block, used:] = values[block, used:] = float("nan")
        return keys, values


def measure(plan: Plan, case: TimedCase, tables_seed: int, data_seed: int, read_bytes_per_s: float) -> Timing:
    """Time a plan recorded for `case.tables(tables_seed)`; both seeds are unknown to the kernels' author."""
    tables, lengths = case.tables(tables_seed)
    ours = reference_plan(case, tables, lengths)
    return timed_beside(ours, plan, case, (tables, lengths), data_seed, read_bytes_per_s, Cuda())


def timed_beside(
    ours: Plan,
    plan: Plan,
    case: TimedCase,
    integers: tuple[Tensor, Tensor],
    data_seed: int,
    read_bytes_per_s: float,
    on: Machine,
) -> Timing:
    """The clock itself: rounds of the reference, the student and the reference again, and the looks at what they left.

    integers: block tables and context lengths. The time that an empty round takes is no kernel's, and is taken off.
    """
    reference_side = _Side(ours, case, *integers, data_seed, on)
    student_side = _Side(plan, case, *integers, data_seed + 1_000_003, on)
    try:
        looked_at = {ROUNDS - 1, *random.SystemRandom().sample(range(ROUNDS), LOOKED_AT - 1)}
        seconds: list[list[float]] = [[], [], []]
        wrong = ""
        slowed: set[str] = set()
        for turn in range(ROUNDS):
            for side, found in zip((reference_side, student_side, reference_side), seconds, strict=True):
                found.append(side.round_s())
                slowed.update(on.slowed())
                if side is student_side and turn in looked_at and not wrong:
                    wrong = student_side.wrong(random.SystemRandom().randrange(student_side.count))
        wrong = wrong or student_side.harm()
        own = reference_side.wrong(0) or reference_side.harm()
        if own and not wrong:
            # The reference is right: what it left was damaged by somebody else in this process.
            wrong = f"memory that does not belong to the call was changed: {own}"
    finally:
        reference_side.close()
        student_side.close()
    empty_s = statistics.median(_empty_round_s(on) for _ in range(ROUNDS))
    before_us, student_us, after_us = (
        1e6 * (statistics.median(found) - empty_s / side.count)
        for side, found in zip((reference_side, student_side, reference_side), seconds, strict=True)
    )
    told = ", ".join(sorted(slowed))
    return Timing(student_us, before_us, after_us, case.kv_bytes, read_bytes_per_s, wrong, told)


def _empty_round_s(on: Machine) -> float:
    """What the clock shows if nothing but a touch of memory is queued."""
    touched = torch.zeros(1, device=on.device)
    on.synchronize()
    start = time.perf_counter()
    touched.fill_(1.0)
    on.synchronize()
    return time.perf_counter() - start


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


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
