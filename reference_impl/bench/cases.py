"""What is measured: memory, scheduler and simulator, each with the state that a running engine has.

Owns: the cases, how each is prepared and what one round of it does. Knows nothing of clocks, statistics or files.
What is prepared is not timed. A pool is measured twice: new, when its free list lies in memory as it is walked, and
aged (all blocks taken and given back in random order), as the free list of an engine that has run for long.
Imports of what a case needs stand in its preparation, so that one case can be measured without the others.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reference_impl.bench import goals
from reference_impl.bench.goals import Goal

BATCH = 256
BLOCK_SIZE = 16
SYNTHETIC_REQUESTS = 100_000


class NotHere(Exception):  # noqa: N818 - a reason to skip, not an error
    """A case needs what this machine does not have; the message says what."""


@dataclass(frozen=True)
class Case:
    """`run(prepare())` does `operations` operations, each of them one `unit`; `rounds` of them are timed.

    reusable: `run` leaves what was prepared as good as it was, so that all rounds share it. part: prepares a part of a
    long round, for the profile. note: what the profile alone does not say.
    """

    name: str
    unit: str
    operations: int
    prepare: Callable[[], Any]
    run: Callable[[Any], object]
    goal: Goal | None = None
    rounds: int = 25
    reusable: bool = False
    part: Callable[[], Any] | None = None
    note: str = ""


SCATTERED = (
    "Few calls, and nearly all of the time in the loops themselves. The same loops take an eighth of it where the list"
    " is small, or as large and in order: what is left looks like waiting for memory, as each block is somewhere else"
    " in three arrays that are larger than the caches."
)


# The pool and the allocator -----------------------------------------------------------------------------------------


def _pool(num_blocks: int, aged: bool) -> Any:
    from reference_impl.memory.block_pool import BlockPool

    pool = BlockPool(num_blocks)
    if aged:
        blocks = pool.take(num_blocks)
        random.Random(0).shuffle(blocks)
        pool.release(blocks)
    return pool


def _batches(pool: Any) -> None:
    """40 batches, each taken before the one before it is given back: the free list goes round, as in an engine."""
    held = pool.take(BATCH)
    for _ in range(39):
        taken = pool.take(BATCH)
        pool.release(held)
        held = taken
    pool.release(held)


def _allocator() -> Any:
    from reference_impl.memory.block_allocator import BlockAllocator

    return BlockAllocator(100_000, BLOCK_SIZE)


def _allocate_and_free(allocator: Any) -> None:
    for seq in range(100):
        allocator.allocate(seq, 64 * BLOCK_SIZE)
    for seq in range(100):
        allocator.free(seq)


def _allocator_with_sequences() -> Any:
    allocator = _allocator()
    for seq in range(100):
        allocator.allocate(seq, 1000 + seq)
    return allocator


def _append(allocator: Any) -> None:
    for _ in range(100):
        for seq in range(100):
            allocator.append(seq)


# The manager --------------------------------------------------------------------------------------------------------


def _published(num_blocks: int, prefix_cache: str) -> Any:
    """A manager that has computed one prompt of `num_blocks` full blocks, and the demand of the same prompt again."""
    from reference_impl.memory.kv_manager import KVManager
    from reference_impl.memory.kv_memory import Demand

    made_by: Any = prefix_cache
    memory = KVManager(2 * num_blocks + 2, BLOCK_SIZE, prefix_cache=made_by)
    dice = random.Random(0)
    ids = array("i", [dice.randrange(100_000) for _ in range(num_blocks * BLOCK_SIZE + 1)])
    demand = Demand(1, len(ids), 1, token_ids=ids)
    memory.admit(demand, len(ids))
    memory.commit(1, len(ids))
    memory.free(1)
    return memory, Demand(2, len(ids), 1, token_ids=ids)


def _match(prepared: Any) -> None:
    memory, demand = prepared
    found = memory.match(demand)
    if found != demand.num_tokens - 1:
        raise RuntimeError(f"{found} tokens found of {demand.num_tokens - 1}: this is not the case to be measured")


def _growing() -> Any:
    from reference_impl.memory.kv_manager import KVManager
    from reference_impl.memory.kv_memory import Demand

    memory = KVManager(100_000, BLOCK_SIZE)
    for request in range(100):
        memory.admit(Demand(request, 1 + request * BLOCK_SIZE, 2000), 1 << 20)
    return memory


def _grow(tokens_each: int) -> Callable[[Any], None]:
    def run(memory: Any) -> None:
        grow = memory.grow
        for request in range(100):
            held = 1 + request * BLOCK_SIZE
            for num_tokens in range(held + 1, held + 1 + tokens_each):
                grow(request, num_tokens)

    return run


# Scheduler and simulator --------------------------------------------------------------------------------------------


def _decoding(num_running: int) -> Callable[[], Any]:
    def prepare() -> Any:
        from reference_impl.memory.kv_manager import KVManager
        from reference_impl.sched.request import Request
        from reference_impl.sched.scheduler import ContinuousBatching
        from reference_impl.sched.surface import Limits

        memory = KVManager(num_running * 16, BLOCK_SIZE)
        scheduler = ContinuousBatching(memory, Limits(64 * num_running, num_running))
        for request in range(num_running):
            scheduler.add(Request(request, 32, 200))
        plan = scheduler.schedule()
        scheduler.finish_step(())
        if plan.num_tokens != 32 * num_running:
            raise RuntimeError(f"{plan.num_tokens} tokens in the first step: this is not the case to be measured")
        return scheduler

    return prepare


def _decode(scheduler: Any) -> None:
    for _ in range(100):
        scheduler.schedule()
        scheduler.finish_step(())


def _mooncake(requests: int | None = None) -> Any:
    """The trace and a memory of 50,000 blocks, as long as the blocks whose contents the trace knows."""
    from labkit.workloads import HASHED_TOKENS, workload
    from reference_impl.sched.setup import Setup
    from reference_impl.sim.arrivals import limits_of, recorded

    trace = workload("mooncake_conversation")
    if not trace.is_real:
        raise NotHere("the recorded Mooncake trace is not on this machine; engine traces get fetches it")
    limits = limits_of(trace)
    setup = Setup(
        "paged",
        "continuous",
        kv_tokens=50_000 * HASHED_TOKENS,
        max_length=limits.max_length,
        block_size=HASHED_TOKENS,
        max_tokens_per_step=8_192,
        prefix_cache="hash",
    )
    return list(recorded(trace, limits, requests)), setup


def _short_requests(requests: int = SYNTHETIC_REQUESTS) -> Any:
    from reference_impl.sched.setup import Setup
    from reference_impl.sim.arrivals import synthetic

    arrivals = list(synthetic(requests, (16, 240), (8, 120), 200.0, 0))
    return arrivals, Setup("paged", "continuous", kv_tokens=300_000, max_length=512)


def _simulate(prepared: Any) -> None:
    from reference_impl.sched.setup import build
    from reference_impl.sim.compare import cost_model
    from reference_impl.sim.simulator import Settings, simulate

    arrivals, setup = prepared
    settings = Settings(keep_contents=setup.prefix_cache != "none")
    cost = cost_model("llama-3.1-8b", "h100-sxm")
    simulate(arrivals, build(setup), cost, settings)


def _cases() -> list[Case]:
    cases = [
        Case(
            f"{age} pool: take and release, {size:,} blocks",
            "blocks",
            40 * BATCH,
            lambda size=size, age=age: _pool(size, age == "aged"),  # type: ignore[misc]
            _batches,
            goals.POOL,
            reusable=True,
            note=SCATTERED if age == "aged" else "",
        )
        for age in ("new", "aged")
        for size in (1_000, 10_000, 100_000, 1_000_000)
    ]
    cases += [
        Case("allocator: allocate and free", "blocks", 100 * 64, _allocator, _allocate_and_free, reusable=True),
        Case("allocator: append one token", "tokens", 10_000, _allocator_with_sequences, _append),
    ]
    cases += [
        Case(
            f"prefix lookup by {index}, {size:,} blocks",
            "blocks",
            size,
            lambda size=size, index=index: _published(size, index),  # type: ignore[misc]
            _match,
            reusable=True,
        )
        for index in ("hash", "radix")
        for size in (100, 1_000, 10_000)
    ]
    cases += [
        Case("manager: grow in place", "calls", 100 * 15, _growing, _grow(15), goals.GROW),
        Case("manager: grow, a new block every 16th", "calls", 100 * 320, _growing, _grow(320)),
    ]
    cases += [
        Case(
            f"scheduler: a step, {running} decodes", "decodes", 100 * running, _decoding(running), _decode, goals.DECODE
        )
        for running in (16, 256)
    ]
    cases += [
        Case(
            "simulator: the Mooncake trace",
            "requests",
            12_031,
            _mooncake,
            _simulate,
            goals.MOONCAKE,
            rounds=1,
            part=lambda: _mooncake(500),
        ),
        Case(
            "simulator: short requests",
            "requests",
            SYNTHETIC_REQUESTS,
            _short_requests,
            _simulate,
            rounds=1,
            part=lambda: _short_requests(2_000),
        ),
    ]
    return cases


CASES: dict[str, Case] = {case.name: case for case in _cases()}

RATIOS: dict[str, tuple[str, str]] = {
    "new pool: cost at 1,000,000 blocks over 1,000": (
        "new pool: take and release, 1,000,000 blocks",
        "new pool: take and release, 1,000 blocks",
    ),
    "aged pool: cost at 1,000,000 blocks over 1,000": (
        "aged pool: take and release, 1,000,000 blocks",
        "aged pool: take and release, 1,000 blocks",
    ),
    "prefix lookup by hash: a block of 10,000 over one of 100": (
        "prefix lookup by hash, 10,000 blocks",
        "prefix lookup by hash, 100 blocks",
    ),
    "prefix lookup by radix: a block of 10,000 over one of 100": (
        "prefix lookup by radix, 10,000 blocks",
        "prefix lookup by radix, 100 blocks",
    ),
}
"""Name -> the cases whose costs of an operation are divided; the goal of all of them is `goals.FLAT`."""
