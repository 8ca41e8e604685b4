"""What continuous batching is measured against: static batches, whole prompts, prefill before decodes."""

from __future__ import annotations

import pytest

from reference_impl.memory import POLICIES, Sizes
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_policy import Reason
from reference_impl.memory.policies import PaddedBatch
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.sched import (
    ByPriority,
    ContinuousBatching,
    EngineScheduler,
    Limits,
    Plan,
    PrefillFirst,
    Rectangle,
    Request,
    StaticBatching,
    orca,
)
from tests.reference_impl.sched.driving import Driver, random_sizes, run


def padded(capacity: int = 100, limits: Limits | None = None) -> Driver:
    return Driver(StaticBatching(PolicyMemory(PaddedBatch(capacity)), limits or Limits(None, 4)))


def test_a_static_batch_runs_until_its_last_row_is_done_and_nobody_joins() -> None:
    driver = padded()
    driver.add(Request(1, 3, 2), makes=2)
    driver.add(Request(2, 5, 4), makes=4)
    plans = [driver.step()]
    driver.add(Request(3, 1, 1), makes=1)
    plans += [driver.step() for _ in range(4)]
    assert [dict(plan.scheduled) for plan in plans] == [{1: 3, 2: 5}, {1: 1, 2: 1}, {2: 1}, {2: 1}, {3: 1}]
    assert driver.step() == Plan()


def test_the_rectangle_counts_pads_and_rows_that_are_done() -> None:
    driver = padded()
    driver.add(Request(1, 3, 2), makes=2)
    driver.add(Request(2, 5, 4), makes=4)
    assert [driver.step().rectangle for _ in range(5)] == [
        Rectangle(2, 5, 0),
        Rectangle(2, 1, 5),
        Rectangle(2, 1, 6),
        Rectangle(2, 1, 7),
        None,
    ]


def test_a_batch_is_as_large_as_rows_budget_and_memory_allow() -> None:
    for limits, capacity, rows, why in (
        (Limits(None, 3), 1000, 3, "as many run as may"),
        (Limits(9, 8), 1000, 2, "the rectangle has its 9 tokens"),
        (Limits(None, 8), 32, 4, "too little memory is free"),
    ):
        driver = padded(capacity, limits)
        for identity in range(8):
            driver.add(Request(identity, 4, 4), makes=4)
        plan = driver.step()
        assert len(plan.scheduled) == rows
        assert driver.scheduler.num_waiting_by_reason()[why] == 1
        driver.run()


def test_a_row_that_is_aborted_keeps_its_place_in_the_rectangle() -> None:
    driver = padded()
    for identity in (1, 2):
        driver.add(Request(identity, 3, 4), makes=4)
    driver.step()
    driver.abort(1)
    assert driver.step().rectangle == Rectangle(2, 1, 3)
    driver.run()


def test_a_static_batch_on_blocks_that_outgrows_them_leaves_its_last_row_for_the_next() -> None:
    driver = run(StaticBatching(KVManager(20, 4), Limits(None, 8)), random_sizes(1, 40, 20, 20))
    assert driver.scheduler.counters.preemptions > 0


def test_orca_computes_whole_prompts_beside_the_decodes() -> None:
    driver = Driver(orca(KVManager(100, 4), max_running=4))
    driver.add(Request(1, 3, 9), makes=9)
    driver.step()
    driver.add(Request(2, 200, 9), makes=9)
    driver.add(Request(3, 50, 9), makes=9)
    assert driver.step().scheduled == {1: 1, 2: 200, 3: 50}


def test_orca_with_the_memory_of_its_paper_never_preempts() -> None:
    for policy in ("reserve_max", "pow2", "oracle"):
        memory = PolicyMemory(POLICIES[policy](Sizes(256, 64, 4)))
        driver = run(orca(memory), random_sizes(2, 60, 20, 20))
        assert driver.scheduler.counters.preemptions == 0


def test_prefill_first_lets_decodes_stand_still_while_a_prompt_is_computed() -> None:
    driver = Driver(PrefillFirst(KVManager(100, 4), Limits(10, 4), chunked=True))
    driver.add(Request(1, 3, 9), makes=9)
    assert driver.step().scheduled == {1: 3}
    assert driver.step().scheduled == {1: 1}
    driver.add(Request(2, 25, 9), makes=9)
    assert [dict(driver.step().scheduled) for _ in range(4)] == [{2: 10}, {2: 10}, {2: 5}, {1: 1, 2: 1}]


def test_a_step_of_prefill_first_is_of_one_kind() -> None:
    driver = Driver(PrefillFirst(KVManager(30, 4), Limits(60, 16)))
    for identity, (prompt, output) in enumerate(random_sizes(4, 60, 20, 20)):
        driver.add(Request(identity, prompt, output), output)
    while (plan := driver.schedule()).scheduled:
        made = {driver.made[identity] > 0 and plan.computed[identity] > 0 for identity in plan.scheduled}
        assert len(made) == 1
        driver.finish()
    assert driver.scheduler.counters.preemptions > 0


def test_a_prompt_and_a_decode_that_come_back_from_the_host_are_not_computed_in_one_step() -> None:
    # Request 0 is preempted in the middle of its prompt, beside the decodes of 2, and 1 in the middle of its answer.
    memory = KVManager(4, 2, full_fit=False, num_host_blocks=4)
    scheduler = PrefillFirst(memory, Limits(3, 4), ByPriority(10), chunked=True, recovery="swap")
    driver = Driver(scheduler)
    for identity, prompt, makes, priority in ((1, 1, 2, 2), (2, 2, 4, 1), (0, 5, 2, 1)):
        if identity == 0:
            driver.step()
        driver.add(Request(identity, prompt, makes, priority=priority), makes)
    returned = set()
    while (plan := driver.schedule()).scheduled:
        returned.update(plan.swapped_in)
        kinds = {driver.requests[identity].num_tokens - plan.computed[identity] > 1 for identity in plan.scheduled}
        assert len(kinds) == 1, f"{plan.scheduled} after {plan.computed}"
        driver.finish()
    assert returned == {0, 1}


def longest_wait_of_a_decode(scheduler: EngineScheduler) -> int:
    """Tokens computed in the largest step beside sixteen decodes while one long prompt comes in."""
    driver = Driver(scheduler)
    for identity in range(16):
        driver.add(Request(identity, 4, 60), makes=60)
    driver.step()
    driver.add(Request(16, 4000, 2), makes=2)
    since = worst = 0
    for _ in range(50):
        plan = driver.step()
        since += sum(plan.scheduled.values())
        if 0 in plan.scheduled:
            worst, since = max(worst, since), 0
    return worst


def test_chunks_bound_what_a_decode_waits_for_by_the_budget_and_nothing_else_does() -> None:
    # Agrawal et al., OSDI 2024, figure 1; tokens stand for time here, the simulator has the seconds.
    memory = lambda: KVManager(2000, 4)  # noqa: E731
    assert longest_wait_of_a_decode(ContinuousBatching(memory(), Limits(256, 32))) == 256
    assert longest_wait_of_a_decode(orca(memory(), 32)) == 4016
    assert longest_wait_of_a_decode(PrefillFirst(memory(), Limits(8192, 32))) >= 4000
    assert longest_wait_of_a_decode(PrefillFirst(memory(), Limits(256, 32), chunked=True)) >= 4000


@pytest.mark.parametrize("scheduler", [StaticBatching, PrefillFirst])
def test_without_chunks_a_request_that_no_step_could_compute_is_refused(scheduler: type[StaticBatching]) -> None:
    refusal = scheduler(KVManager(100, 4), Limits(10, 4)).add(Request(1, 8, 4))
    assert refusal is not None
    assert refusal.reason is Reason.ABOVE_BUDGET


def test_all_schedulers_make_the_same_tokens_and_have_one_surface() -> None:
    sizes = random_sizes(9, 50, 20, 15)
    limits = Limits(64, 8)
    for scheduler in (
        ContinuousBatching(KVManager(20, 4), limits),
        PrefillFirst(KVManager(20, 4), limits),
        StaticBatching(KVManager(20, 4), limits),
        orca(KVManager(20, 4), 8),
    ):
        assert isinstance(scheduler, EngineScheduler)
        assert run(scheduler, sizes).ended == dict(enumerate(output for _, output in sizes))
