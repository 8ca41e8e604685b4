"""Any scheduler, memory, queue and recovery, under arrivals, aborts and ends at random moments."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from reference_impl.memory import POLICIES, Sizes
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import KVMemory
from reference_impl.memory.policy_memory import PolicyMemory
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
from tests.reference_impl.sched.driving import CountedBlocks, Driver, ids

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


class SchedulerMachine(RuleBasedStateMachine):
    operations = 0

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
        kind = draw(st.sampled_from(["continuous", "continuous", "prefill first", "static", "contract"]), "kind")
        self.with_ids = draw(st.booleans(), "token ids")
        if kind == "contract":
            sizes = (blocks, block_size, limits.budget, limits.max_running)
            self.driver = Driver(ContractScheduler(Scheduler(*sizes), *sizes))
            return
        family = draw(st.sampled_from([managers, managers, policies]), "family")
        memories = family(blocks, block_size)
        memory = memories[draw(st.sampled_from(sorted(memories)), "memory")]()
        queue = QUEUES[draw(st.sampled_from(sorted(QUEUES)), "queue")]()
        self.driver = Driver(self.scheduler(kind, memory, limits, queue, draw))

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
    )
    def add(self, prompt: int, most: int, early: int, tenant: str, priority: int) -> None:
        self.enter(prompt, most, max(1, most - early), tenant, priority)

    def enter(self, prompt: int, most: int, makes: int, tenant: str, priority: int) -> None:
        type(self).operations += 1
        request = Request(
            self.next_id,
            prompt,
            most,
            token_ids=ids(self.next_id % 3, prompt) if self.with_ids else None,
            tenant=tenant,
            priority=priority,
            true_new_tokens=makes,
        )
        waiting = self.driver.scheduler.num_waiting
        refusal = self.driver.add(request, makes)
        assert refusal is None or (refusal.reason.is_final and self.driver.scheduler.num_waiting == waiting)
        self.next_id += 1

    @rule(prompts=st.lists(st.integers(1, 6), min_size=2, max_size=6), most=st.integers(4, 10))
    def add_some(self, prompts: list[int], most: int) -> None:
        for prompt in prompts:
            self.enter(prompt, most, most, "abc"[prompt % 3], prompt % 2)

    @precondition(lambda self: self.driver.requests)
    @rule(pick=st.integers(0, 2**16))
    def abort(self, pick: int) -> None:
        type(self).operations += 1
        self.driver.abort(sorted(self.driver.requests)[pick % len(self.driver.requests)])

    @precondition(lambda self: self.driver.plan is None)
    @rule()
    def schedule(self) -> None:
        type(self).operations += 1
        self.driver.schedule()

    @precondition(lambda self: self.driver.plan is not None)
    @rule()
    def finish(self) -> None:
        type(self).operations += 1
        self.driver.finish()

    @precondition(lambda self: self.driver.plan is None and self.driver.requests)
    @rule(steps=st.integers(1, 12))
    def some_steps(self, steps: int) -> None:
        type(self).operations += 2 * steps
        for _ in range(steps):
            self.driver.step()


def machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_every_scheduler_on_every_memory_keeps_its_invariants_and_ends_every_request() -> None:
    machine(150, 40)


@pytest.mark.long
def test_the_same_for_very_many_operations() -> None:
    SchedulerMachine.operations = 0
    while SchedulerMachine.operations < OPERATIONS_OF_A_LONG_RUN:
        machine(400, 60)
    print(f"{SchedulerMachine.operations} operations")
