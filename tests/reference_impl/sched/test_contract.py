"""Lab 6's contract: our scheduler behind it, and what the oracle says to schedulers that break it."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from labkit import contracts
from labkit.contracts import StepPlan
from reference_impl.sched import ContractScheduler, EngineScheduler, Limits, PlanError, Request
from reference_impl.sched.contract import Scheduler
from tests.reference_impl.sched.driving import Driver, random_sizes, run

SIZES = (20, 4, 32, 6)


def test_the_reference_has_the_methods_of_the_contract_with_their_arguments() -> None:
    assert isinstance(Scheduler(*SIZES), contracts.Scheduler)
    for name in ("__init__", "add", "abort", "schedule", "finish_step"):
        ours, theirs = getattr(Scheduler, name), getattr(contracts.Scheduler, name)
        assert inspect.signature(ours).parameters.keys() == inspect.signature(theirs).parameters.keys()


def test_the_reference_gives_plans_of_the_contract() -> None:
    scheduler = Scheduler(10, 4, 8, 4)
    scheduler.add(1, 10, 2)
    scheduler.add(2, 3, 1)
    assert scheduler.schedule() == StepPlan({1: 8}, (), (1,))
    scheduler.finish_step(set())
    assert scheduler.schedule() == StepPlan({1: 2, 2: 3}, (), (2,))
    scheduler.finish_step({2})
    assert scheduler.schedule() == StepPlan({1: 1}, (), ())
    scheduler.finish_step({1})
    assert scheduler.schedule() == StepPlan()
    scheduler.check_invariants()


@pytest.mark.parametrize("sizes", [(0, 4, 8, 4), (4, 0, 8, 4), (4, 4, 0, 4), (4, 4, 8, 0)])
def test_the_reference_needs_four_numbers_of_at_least_one(sizes: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Scheduler(*sizes)


def test_the_errors_of_the_reference_are_those_of_the_contract() -> None:
    scheduler = Scheduler(3, 4, 8, 4)
    scheduler.add(1, 12, 1)
    for request, prompt, most in ((1, 1, 1), (2, 0, 1), (2, 1, 0), (2, 12, 2), (2, 13, 1)):
        with pytest.raises(ValueError):
            scheduler.add(request, prompt, most)
    with pytest.raises(KeyError):
        scheduler.abort(2)
    scheduler.abort(1)
    with pytest.raises(KeyError):
        scheduler.abort(1)
    assert scheduler.schedule() == StepPlan()


def test_the_oracle_finds_no_fault_with_the_reference() -> None:
    sizes = random_sizes(6, 150, 20, 20)
    scheduler = ContractScheduler(Scheduler(*SIZES), *SIZES)
    assert isinstance(scheduler, EngineScheduler)
    driver = run(scheduler, sizes)
    assert driver.ended == dict(enumerate(output for _, output in sizes))
    assert scheduler.counters.preemptions > 5
    assert scheduler.counters.recomputed_tokens > 0


def test_the_oracle_s_memory_holds_what_the_plans_say() -> None:
    driver = Driver(ContractScheduler(Scheduler(*SIZES), *SIZES))
    driver.add(Request(1, 40, 4), makes=4)
    driver.schedule()
    account = driver.scheduler.memory.account()
    assert (account.held, account.free) == (32, 48)
    driver.finish()
    driver.abort(1)
    assert driver.scheduler.memory.account().held == 0


class Scripted:
    """Says whatever it was told to: the plans in order."""

    def __init__(self, *plans: object) -> None:
        self.plans = list(plans)

    def add(self, request: int, prompt_tokens: int, max_new_tokens: int) -> None:
        if prompt_tokens > 80:
            raise ValueError("too long")

    def abort(self, request: int) -> None:
        """Nothing to do."""

    def schedule(self) -> object:
        return self.plans.pop(0)

    def finish_step(self, finished: set[int]) -> None:
        """Nothing to do."""


def followed(*plans: object) -> Driver:
    """Requests 1 and 2, of 8 prompt and 4 new tokens, in 4 blocks of 4; 9 tokens a step, 2 run at most."""
    driver = Driver(ContractScheduler(Scripted(*plans), 4, 4, 9, 2))  # type: ignore[arg-type]
    for identity in (1, 2, 3):
        driver.add(Request(identity, 8, 4), makes=4)
    return driver


FIRST = StepPlan({1: 8}, admitted=[1])

BROKEN: dict[str, tuple[list[object], str]] = {
    "unknown": ([StepPlan({7: 1}, admitted=[7])], "request 7: admitted, but it is unknown or has ended"),
    "unknown, scheduled": ([StepPlan({7: 1})], "request 7: scheduled, but it is unknown or has ended"),
    "not admitted": ([StepPlan({1: 4})], "request 1: scheduled, but it does not run in this step"),
    "admitted twice": ([FIRST, StepPlan({1: 1}, admitted=[1])], "request 1: admitted, but it runs already"),
    "twice in one list": ([StepPlan({1: 4}, admitted=[1, 1])], "request 1: stands 2 times in admitted"),
    "preempted, never ran": ([StepPlan({1: 4}, [2], [1])], "request 2: preempted, but it does not run"),
    "preempted and scheduled": ([FIRST, StepPlan({1: 1}, [1])], "request 1: scheduled, but it does not run"),
    "no tokens for one": ([StepPlan({1: 0}, admitted=[1])], "request 1: 0 tokens are scheduled, 1 to 8 are left"),
    "too many for one": ([FIRST, StepPlan({1: 2})], "request 1: 2 tokens are scheduled, 1 to 1 are left"),
    "too many after a preemption": (
        [FIRST, StepPlan({1: 10}, [1], [1])],
        "request 1: 10 tokens are scheduled, 1 to 9 are left",
    ),
    "budget": ([StepPlan({1: 8, 2: 2}, admitted=[1, 2])], "request 2: 10 tokens are scheduled, a step has 9"),
    "running": ([StepPlan({1: 1, 2: 1, 3: 1}, admitted=[1, 2, 3])], "request 3: 3 requests run, 2 may"),
    "blocks": (
        [FIRST, StepPlan({1: 1, 2: 5}, admitted=[2])],
        "request 2: with its tokens the step needs more than the 4 blocks",
    ),
    "nothing": ([StepPlan()], "request 1: nothing is scheduled, but it is not done"),
    "no plan": ([None], "schedule\\(\\) returned None, which is not a StepPlan"),
    "not integers": ([StepPlan({1: 1.5}, admitted=[1])], "which is not a StepPlan of integers"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_named_with_the_request(name: str) -> None:
    plans, words = BROKEN[name]
    driver = followed(*plans)
    for _ in plans[:-1]:
        driver.step()
    with pytest.raises(PlanError, match=words):
        driver.scheduler.schedule()


def test_a_request_that_has_ended_may_not_be_scheduled() -> None:
    driver = followed(FIRST, StepPlan({1: 1}))
    driver.schedule()
    driver.scheduler.finish_step({1})
    with pytest.raises(PlanError, match="request 1: scheduled, but it is unknown or has ended"):
        driver.scheduler.schedule()


def test_an_aborted_request_may_not_be_scheduled() -> None:
    driver = followed(FIRST, StepPlan({1: 1}))
    driver.step()
    driver.abort(1)
    with pytest.raises(PlanError, match="request 1"):
        driver.scheduler.schedule()


def test_a_request_may_be_admitted_before_it_gets_tokens_and_holds_nothing_till_then() -> None:
    driver = followed(StepPlan({1: 8}, admitted=[1, 2]), StepPlan({2: 4, 1: 1}))
    driver.step()
    assert driver.scheduler.memory.account().held == 8
    driver.step()
    assert driver.scheduler.memory.account().held == 13
    driver.abort(2)
    driver.abort(1)


@pytest.mark.parametrize(
    ("prompt", "words"), [(17, "add\\(\\) took it, but"), (81, None), (16, None)], ids=["never fits", "refused", "fits"]
)
def test_the_answer_to_add_is_checked_too(prompt: int, words: str | None) -> None:
    scheduler = ContractScheduler(Scripted(), 4, 4, 9, 2)  # type: ignore[arg-type]
    if words is not None:
        with pytest.raises(PlanError, match=words):
            scheduler.add(Request(1, prompt, 1))
        return
    refusal = scheduler.add(Request(1, prompt, 1))
    assert (refusal is None) == (prompt == 16)


def test_a_request_that_is_not_new_never_reaches_the_scheduler() -> None:
    class Asked(Scripted):
        def add(self, request: int, prompt_tokens: int, max_new_tokens: int) -> None:
            asked.append(request)

    asked: list[int] = []
    scheduler = ContractScheduler(Asked(FIRST), 4, 4, 9, 2)  # type: ignore[arg-type]
    over = Request(1, 8, 4)
    scheduler.add(over)
    with pytest.raises(ValueError, match="request 1 is here already"):
        scheduler.add(Request(1, 8, 4))
    scheduler.abort(1)
    with pytest.raises(ValueError, match="request 1 is not new"):
        scheduler.add(over)
    assert asked == [1]


def test_refusing_what_fits_breaks_the_contract() -> None:
    scheduler = ContractScheduler(Scripted(), 100, 4, 9, 2)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="request 1: add\\(\\) refused it \\(too long\\), but its 81 tokens fit"):
        scheduler.add(Request(1, 81, 1))


def greedy(scheduler: type[Scheduler], change: Callable[[StepPlan], StepPlan]) -> contracts.Scheduler:
    class Changed(scheduler):  # type: ignore[valid-type, misc]
        def schedule(self) -> StepPlan:
            return change(super().schedule())

    return Changed(*SIZES)


def test_one_plan_gone_wrong_among_many_is_found() -> None:
    def more(plan: StepPlan) -> StepPlan:
        if plan.preempted:
            return StepPlan(plan.scheduled, (), plan.admitted)
        return plan

    scheduler = ContractScheduler(greedy(Scheduler, more), *SIZES)
    with pytest.raises(PlanError):
        run(scheduler, random_sizes(6, 150, 20, 20))


def test_the_oracle_needs_numbers_of_at_least_one() -> None:
    with pytest.raises(ValueError, match="max_running must be at least 1"):
        ContractScheduler(Scheduler(*SIZES), 4, 4, 9, 0)
    assert Limits(9, 2).budget == 9
