"""Any scheduler, memory, queue and recovery, under arrivals, forks, aborts and ends at random moments.

Wherever the memory says where its tokens lie, each computed token is looked for there before every step.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from autograder.course import load_module
from reference_impl.memory import POLICIES, Sizes
from reference_impl.memory.cache_memory import PrefixCacheMemory
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import KVMemory, PlacedMemory
from reference_impl.memory.paged_blocks import PagedBlocks
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.memory.prefix_cache import IndexedCache, PrefixCache
from reference_impl.memory.radix_cache import RadixCache
from reference_impl.memory.swap import Recovery
from reference_impl.sched import (
    ByPriority,
    ContinuousBatching,
    ContractScheduler,
    EngineScheduler,
    FairShare,
    FirstCome,
    Limits,
    PrefillFirst,
    Request,
    ShortestFirst,
    StaticBatching,
    WaitingQueue,
)
from reference_impl.sched.contract import Scheduler
from reference_impl.sched.preemption import VICTIMS
from tests import corpus
from tests.reference_impl.sched.driving import CountedBlocks, Driver, ids
from tests.reference_impl.sched.placing import PlacedDriver

ALLOCATORS = {
    path.stem: load_module(path, f"placed_{path.stem}") for path in corpus.files("lab3_block_allocator", "correct")
}
"""The honest submissions of lab 3, different designs all."""

OPERATIONS_OF_A_LONG_RUN = int(os.environ.get("SCHED_OPERATIONS", "300000"))

QUEUES: dict[str, Callable[[], WaitingQueue]] = {
    "first come": FirstCome,
    "priority": lambda: ByPriority(aging_steps=3),
    "shortest": ShortestFirst,
    "fair": lambda: FairShare({"a": 2.0}),
}


def by_length(request: Request) -> Recovery:
    return Recovery.SWAP if request.num_computed > 8 else Recovery.RECOMPUTE


def managers(blocks: int, block_size: int) -> dict[str, Callable[[], KVMemory]]:
    def manager(**how: object) -> Callable[[], KVMemory]:
        return lambda: KVManager(blocks, block_size, **how)  # type: ignore[arg-type]

    return {
        "manager": manager(),
        "manager, hash, host": manager(prefix_cache="hash", num_host_blocks=blocks),
        "manager, radix, small host": manager(prefix_cache="radix", num_host_blocks=2, watermark=0.1),
        "manager, first chunk": manager(full_fit=False, num_host_blocks=blocks // 2),
        "counted": lambda: CountedBlocks(blocks, block_size),  # type: ignore[return-value]
    }


def policies(blocks: int, block_size: int) -> dict[str, Callable[[], KVMemory]]:
    sizes = Sizes(blocks * block_size, min(16, blocks * block_size), block_size)

    def policy(name: str) -> Callable[[], KVMemory]:
        return lambda: PolicyMemory(POLICIES[name](sizes))

    return {name: policy(name) for name in POLICIES}


def allocators(blocks: int, block_size: int) -> dict[str, Callable[[], KVMemory]]:
    def paged(name: str) -> Callable[[], KVMemory]:
        made_by = ALLOCATORS[name].BlockAllocator
        return lambda: PolicyMemory(PagedBlocks(blocks * block_size, block_size, made_by))

    return {name: paged(name) for name in ALLOCATORS}


def caches(blocks: int, block_size: int) -> dict[str, Callable[[], KVMemory]]:
    def cached(made_by: Callable[[int, int], IndexedCache]) -> Callable[[], KVMemory]:
        return lambda: CheckedCacheMemory(made_by(blocks, block_size), blocks, block_size)

    return {"cache, hash": cached(PrefixCache), "cache, radix": cached(RadixCache)}


class CheckedCacheMemory(PrefixCacheMemory):
    """With a cache that has more to say of itself than its contract asks."""

    cache: IndexedCache

    def check_invariants(self) -> None:
        super().check_invariants()
        self.cache.check_invariants()


FAMILIES: dict[str, Callable[[int, int], dict[str, Callable[[], KVMemory]]]] = {
    "managers": managers,
    "policies": policies,
    "allocators": allocators,
    "caches": caches,
}
LAB_6 = "a scheduler of lab 6"


class SchedulerMachine(RuleBasedStateMachine):
    operations = 0
    family = LAB_6
    """What it draws its memory from."""

    def __init__(self) -> None:
        super().__init__()
        self.next_id = 0

    @initialize(data=st.data())
    def make(self, data: st.DataObject) -> None:
        draw = data.draw
        # Little memory for what is asked, and few limits beside it: memory is to run out often.
        blocks, block_size = draw(st.integers(5, 10), "blocks"), draw(st.integers(2, 4), "block size")
        budget = draw(st.one_of(st.integers(1, 12), st.integers(24, 60)), "budget")
        limits = Limits(budget, draw(st.integers(2, 6), "running"), draw(st.sampled_from([None, None, None, 16])))
        self.with_ids = self.family == "caches" or draw(st.booleans(), "token ids")
        if self.family == LAB_6:
            sizes = (blocks, block_size, limits.budget, limits.max_running)
            self.driver = PlacedDriver(ContractScheduler(Scheduler(*sizes), *sizes))
            return
        memories = FAMILIES[self.family](blocks, block_size)
        memory = memories[draw(st.sampled_from(sorted(memories)), "memory")]()
        kind = draw(st.sampled_from(["continuous", "continuous", "prefill first", "static"]), "kind")
        queue = QUEUES[draw(st.sampled_from(sorted(QUEUES)), "queue")]()
        scheduler = self.scheduler(kind, memory, limits, queue, draw)
        self.driver = PlacedDriver(scheduler) if isinstance(memory, PlacedMemory) else Driver(scheduler)

    def scheduler(
        self,
        kind: str,
        memory: KVMemory,
        limits: Limits,
        queue: WaitingQueue,
        draw: Callable[..., object],
    ) -> EngineScheduler:
        if kind == "static":
            return StaticBatching(memory, limits, queue)
        recoveries = ["recompute", "swap", by_length] if isinstance(memory, KVManager) else ["recompute"]
        recovery, victim = draw(st.sampled_from(recoveries)), draw(st.sampled_from(sorted(VICTIMS)))
        chunked = draw(st.booleans(), "chunked")
        made_by = ContinuousBatching if kind == "continuous" else PrefillFirst
        return made_by(memory, limits, queue, chunked=chunked, recovery=recovery, victim=victim)  # type: ignore[arg-type]

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        if self.driver.plan is not None:
            self.driver.finish()
        # Every step makes a token or brings a prompt nearer to one, so a request costs a bounded number of steps.
        self.driver.run(most_steps=4000)
        scheduler = self.driver.scheduler
        assert scheduler.num_running == scheduler.num_waiting == 0
        assert scheduler.num_waiting_by_reason() == {}
        if not isinstance(scheduler.memory, CountedBlocks):
            assert scheduler.memory.account().held == 0
        for request, made in self.driver.ended.items():
            assert made == self.driver.length[request]

    @rule(
        prompt=st.integers(1, 12),
        most=st.integers(1, 12),
        early=st.integers(0, 4),
        tenant=st.sampled_from("abc"),
        priority=st.integers(-1, 2),
        answers=st.sampled_from([1, 1, 2, 3]),
    )
    def add(self, prompt: int, most: int, early: int, tenant: str, priority: int, answers: int) -> None:
        self.enter(prompt, most, max(1, most - early), tenant, priority, answers)

    def enter(self, prompt: int, most: int, makes: int, tenant: str, priority: int, answers: int = 1) -> None:
        """A request; with more than one answer to make, one that forks where the scheduler can."""
        spelling = self.next_id % 3

        def request(number: int) -> tuple[Request, int]:
            SchedulerMachine.operations += 1
            # Each answer has a length of its own.
            length = max(1, makes - number)
            self.next_id += 1
            return Request(
                self.next_id - 1,
                prompt,
                most,
                token_ids=ids(spelling, prompt) if self.with_ids else None,
                tenant=tenant,
                priority=priority,
                true_new_tokens=length,
            ), length

        (first, length), *others = [request(number) for number in range(answers)]
        waiting = self.driver.scheduler.num_waiting
        forks = self.driver.scheduler.can_fork
        refusal = self.driver.add(first, length, others if forks else ())
        assert refusal is None or (refusal.reason.is_final and self.driver.scheduler.num_waiting == waiting)
        for other, length in [] if forks else others:
            assert (self.driver.add(other, length) is None) == (refusal is None)

    @rule(prompts=st.lists(st.integers(1, 6), min_size=2, max_size=6), most=st.integers(4, 10))
    def add_some(self, prompts: list[int], most: int) -> None:
        for prompt in prompts:
            self.enter(prompt, most, most, "abc"[prompt % 3], prompt % 2)

    @precondition(lambda self: self.driver.requests)
    @rule(pick=st.integers(0, 2**16))
    def abort(self, pick: int) -> None:
        SchedulerMachine.operations += 1
        self.driver.abort(sorted(self.driver.requests)[pick % len(self.driver.requests)])

    @precondition(
        lambda self: self.driver.plan is not None and self.driver.requests.keys() & self.driver.plan.scheduled
    )
    @rule(pick=st.integers(0, 2**16))
    def abort_in_the_step(self, pick: int) -> None:
        SchedulerMachine.operations += 1
        scheduled = self.driver.requests.keys() & self.driver.plan.scheduled.keys()
        # One that may fork in this step before any other.
        choice = sorted(scheduled & self.driver.families.keys() or scheduled)
        self.driver.abort(choice[pick % len(choice)])

    @precondition(lambda self: self.driver.plan is None)
    @rule()
    def schedule(self) -> None:
        SchedulerMachine.operations += 1
        self.driver.schedule()

    @precondition(lambda self: isinstance(self.driver, PlacedDriver) and not self.driver.is_computed)
    @rule()
    def compute(self) -> None:
        # Else it is computed when it is finished: an abort may come before or after.
        self.driver.compute()

    @precondition(lambda self: self.driver.plan is not None)
    @rule()
    def finish(self) -> None:
        SchedulerMachine.operations += 1
        self.driver.finish()

    @precondition(lambda self: self.driver.plan is None and self.driver.requests)
    @rule(steps=st.integers(1, 12))
    def some_steps(self, steps: int) -> None:
        SchedulerMachine.operations += 2 * steps
        for _ in range(steps):
            self.driver.step()


def machine(family: str, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        type("SchedulerMachine", (SchedulerMachine,), {"family": family}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.parametrize("family", [*FAMILIES, LAB_6])
def test_every_scheduler_on_every_memory_ends_every_request_and_finds_each_token_in_its_slot(family: str) -> None:
    machine(family, 60, 40)


@pytest.mark.long
def test_the_same_for_very_many_operations() -> None:
    SchedulerMachine.operations = 0
    while SchedulerMachine.operations < OPERATIONS_OF_A_LONG_RUN:
        for family in (*FAMILIES, LAB_6):
            machine(family, 100, 60)
    print(f"{SchedulerMachine.operations} operations")
