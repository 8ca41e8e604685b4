"""What a step holds, in what order, and what it does to each request: small cases with exact plans."""

from __future__ import annotations

from array import array

import pytest

from reference_impl.memory import POLICIES, Sizes
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.sched import (
    ByPriority,
    ContinuousBatching,
    FairShare,
    FirstCome,
    Limits,
    Plan,
    Request,
    ShortestFirst,
    State,
)
from tests.reference_impl.sched.driving import CountedBlocks, Driver, random_sizes, run


def batching(blocks: int = 100, budget: int = 10, running: int = 8, **how: object) -> ContinuousBatching:
    return ContinuousBatching(KVManager(blocks, 4), Limits(budget, running), **how)  # type: ignore[arg-type]


def test_with_nothing_to_do_a_plan_is_empty_and_need_not_be_finished() -> None:
    scheduler = batching()
    assert scheduler.schedule() == Plan()
    assert scheduler.schedule() == Plan()
    scheduler.finish_step()
    assert scheduler.counters.steps == 0


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_and_then_makes_its_first_token() -> None:
    driver = Driver(batching(budget=10))
    driver.add(Request(1, 25, 3), makes=3)
    assert [dict(driver.step().scheduled) for _ in range(5)] == [{1: 10}, {1: 10}, {1: 5}, {1: 1}, {1: 1}]
    assert driver.ended == {1: 3}
    assert driver.step() == Plan()


def test_decodes_come_first_and_prompts_share_what_is_left() -> None:
    driver = Driver(batching(budget=10))
    driver.add(Request(1, 3, 9), makes=9)
    driver.add(Request(2, 20, 9), makes=9)
    assert driver.step().scheduled == {1: 3, 2: 7}
    assert driver.step().scheduled == {1: 1, 2: 9}
    driver.add(Request(3, 2, 9), makes=9)
    assert driver.step().scheduled == {1: 1, 2: 4, 3: 2}
    assert driver.step().scheduled == {1: 1, 2: 1, 3: 1}


def test_a_later_decode_goes_before_an_earlier_prompt() -> None:
    driver = Driver(batching(budget=4))
    driver.add(Request(1, 5, 2), makes=2)
    driver.add(Request(2, 9, 2), makes=2)
    driver.step()
    plan = driver.schedule()
    assert list(plan.scheduled.items()) == [(1, 1), (2, 3)]


def test_the_head_of_the_queue_is_never_passed_by_a_smaller_one() -> None:
    driver = Driver(batching(blocks=5, budget=100))
    driver.add(Request(1, 8, 4), makes=4)
    driver.step()
    driver.add(Request(2, 16, 1), makes=1)
    driver.add(Request(3, 1, 1), makes=1)
    plan = driver.schedule()
    assert plan.admitted == ()
    assert plan.refused is not None
    assert plan.refused.reason is Reason.NO_ROOM
    assert driver.scheduler.num_waiting_by_reason() == {
        "too little memory is free": 1,
        "behind the first in the queue": 1,
    }


def test_no_more_run_than_may() -> None:
    driver = Driver(batching(running=2, budget=100))
    for identity in range(4):
        driver.add(Request(identity, 2, 2), makes=2)
    assert driver.step().admitted == (0, 1)
    assert driver.scheduler.num_waiting_by_reason() == {"as many run as may": 1, "behind the first in the queue": 1}
    assert driver.step().admitted == ()
    assert driver.step().admitted == (2, 3)


def test_requests_join_and_leave_between_any_two_steps() -> None:
    driver = Driver(batching(budget=100))
    driver.add(Request(1, 4, 9), makes=3)
    driver.step()
    driver.add(Request(2, 4, 9), makes=1)
    assert driver.step().scheduled == {1: 1, 2: 4}
    assert driver.ended == {2: 1}
    assert driver.step().scheduled == {1: 1}
    assert driver.ended == {2: 1, 1: 3}


def test_a_request_of_one_token_and_one_answer_takes_one_step() -> None:
    driver = run(batching(), [(1, 1)])
    assert driver.steps == 1


def test_the_plan_says_what_was_computed_before_each_step() -> None:
    driver = Driver(batching(budget=10))
    driver.add(Request(1, 25, 2), makes=2)
    assert [dict(driver.step().computed) for _ in range(4)] == [{1: 0}, {1: 10}, {1: 20}, {1: 25}]


def test_what_the_prefix_cache_has_is_not_computed_again() -> None:
    driver = Driver(ContinuousBatching(KVManager(20, 4, prefix_cache="hash"), Limits(100, 4)))
    tokens = array("i", range(10))
    driver.add(Request(1, 10, 1, token_ids=array("i", tokens)), makes=1)
    driver.run()
    driver.add(Request(2, 10, 1, token_ids=array("i", tokens)), makes=1)
    plan = driver.step()
    assert (plan.reused, plan.computed, plan.scheduled) == ({2: 8}, {2: 8}, {2: 2})
    assert driver.scheduler.counters.reused_tokens == 8


def test_sampled_ids_are_appended_and_found_again() -> None:
    driver = Driver(ContinuousBatching(KVManager(20, 4, prefix_cache="hash"), Limits(100, 4)))
    first = Request(1, 3, 6, token_ids=array("i", (5, 6, 7)))
    driver.add(first, makes=6)
    driver.run()
    assert first.token_ids is not None
    assert len(first.token_ids) == 8
    assert first.token_ids[:3] == array("i", (5, 6, 7))
    driver.add(Request(2, 9, 1, token_ids=array("i", [*first.token_ids, 9])), makes=1)
    assert driver.step().reused == {2: 8}


def test_whole_prompts_wait_for_a_step_that_has_room_for_them() -> None:
    driver = Driver(batching(budget=10, chunked=False))
    driver.add(Request(1, 6, 2), makes=2)
    driver.add(Request(2, 6, 2), makes=2)
    assert driver.step().scheduled == {1: 6}
    assert driver.scheduler.num_waiting_by_reason() == {"the step has its 10 tokens": 1}
    assert driver.step().scheduled == {1: 1, 2: 6}


@pytest.mark.parametrize(
    ("request_", "limits", "chunked", "reason"),
    [
        (Request(1, 41, 1), Limits(10, 8), True, Reason.NEVER_FITS),
        (Request(1, 30, 12), Limits(10, 8), True, Reason.NEVER_FITS),
        (Request(1, 8, 5), Limits(10, 8, max_request_tokens=12), True, Reason.TOO_LONG),
        (Request(1, 11, 1), Limits(10, 8), False, Reason.ABOVE_BUDGET),
        (Request(1, 8, 4), Limits(10, 8), False, Reason.ABOVE_BUDGET),
    ],
)
def test_what_could_never_run_is_refused_at_the_door_with_its_reason(
    request_: Request, limits: Limits, chunked: bool, reason: Reason
) -> None:
    scheduler = ContinuousBatching(KVManager(10, 4), limits, chunked=chunked)
    refusal = scheduler.add(request_)
    assert refusal is not None
    assert refusal.reason is reason
    assert refusal.reason.is_final
    assert refusal.needed > refusal.free
    assert scheduler.counters.refused == {reason: 1}
    assert scheduler.num_waiting == 0
    assert scheduler.schedule() == Plan()


@pytest.mark.parametrize(
    ("request_", "limits", "chunked"),
    [
        (Request(1, 40, 1), Limits(10, 8), True),
        (Request(1, 30, 11), Limits(10, 8), True),
        (Request(1, 8, 4), Limits(10, 8, max_request_tokens=12), True),
        (Request(1, 8, 3), Limits(10, 8), False),
    ],
)
def test_what_just_fits_runs_to_its_end(request_: Request, limits: Limits, chunked: bool) -> None:
    driver = Driver(ContinuousBatching(KVManager(10, 4), limits, chunked=chunked))
    assert driver.add(request_, request_.max_new_tokens) is None
    driver.run()
    assert driver.ended == {1: request_.max_new_tokens}


def test_an_id_that_is_alive_is_refused_and_may_be_used_again_when_it_is_over() -> None:
    driver = Driver(batching())
    driver.add(Request(1, 2, 1), makes=1)
    with pytest.raises(ValueError, match="request 1 is here already"):
        driver.scheduler.add(Request(1, 5, 5))
    driver.run()
    assert driver.add(Request(1, 2, 1), makes=1) is None
    driver.run()


def test_a_request_that_has_run_cannot_be_added_again() -> None:
    driver = Driver(batching())
    request = Request(1, 2, 1)
    driver.add(request, makes=1)
    driver.run()
    with pytest.raises(ValueError, match="request 1 is not new"):
        driver.scheduler.add(request)


def test_a_step_is_finished_before_the_next_is_scheduled() -> None:
    scheduler = batching()
    scheduler.add(Request(1, 2, 2))
    scheduler.schedule()
    with pytest.raises(RuntimeError, match="finish_step"):
        scheduler.schedule()


def half_done() -> ContinuousBatching:
    """Request 1 makes its last token but one, 2 its last, 3 is in the middle of its prompt, 4 waits."""
    scheduler = batching(budget=10, running=3)
    for identity, prompt, most in ((1, 2, 2), (2, 2, 1), (3, 20, 2), (4, 2, 2)):
        scheduler.add(Request(identity, prompt, most, token_ids=array("i", range(prompt)) if identity == 1 else None))
    assert scheduler.schedule().scheduled == {1: 2, 2: 2, 3: 6}
    return scheduler


@pytest.mark.parametrize(
    ("finished", "sampled", "error", "words"),
    [
        (set(), {1: 7}, ValueError, r"requests \[2\] made the last of their tokens and must be in finished"),
        ({2, 3}, {1: 7}, ValueError, "request 3 made no token in this step"),
        ({2, 4}, {1: 7}, ValueError, "request 4 made no token in this step"),
        ({2, 9}, {1: 7}, KeyError, "no request 9"),
        ({2}, {}, ValueError, "request 1 goes on, and sampled has no id"),
        ({2}, {1: 7, 4: 7}, ValueError, r"requests \[4\] are in sampled and were not scheduled"),
        ({2}, {1: 7, 3: 7}, ValueError, "request 3 is in sampled and made no token in this step"),
        ({2}, {1: 2**31}, ValueError, "sampled for request 1 must be a token id, 0 to 2147483647, got 2147483648"),
        ({2}, {1: -1}, ValueError, "sampled for request 1 must be a token id, 0 to 2147483647, got -1"),
        ({2}, {1: 7.5}, TypeError, "sampled for request 1 must be a token id, got 7.5"),
    ],
)
def test_word_of_a_step_that_cannot_be_true_changes_nothing(
    finished: set[int], sampled: dict[int, int], error: type[Exception], words: str
) -> None:
    scheduler = half_done()
    with pytest.raises(error, match=words):
        scheduler.finish_step(finished, sampled)
    scheduler.check_invariants()
    scheduler.finish_step({2}, {1: 7})
    assert scheduler.schedule().scheduled == {1: 1, 3: 9}


def test_a_request_may_end_before_it_made_all_it_might() -> None:
    scheduler = batching()
    request = Request(1, 2, 100)
    scheduler.add(request)
    scheduler.schedule()
    scheduler.finish_step([1])
    assert request.state is State.FINISHED
    assert request.num_new == 1
    assert scheduler.memory.account().held == 0


def test_word_of_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="no step is under way"):
        batching().finish_step({1})


@pytest.mark.parametrize("queue", [FirstCome, ByPriority, ShortestFirst, FairShare])
@pytest.mark.parametrize("policy", ["manager", *POLICIES])
def test_every_request_makes_its_tokens_whatever_the_memory_the_queue_and_the_chunks(
    policy: str, queue: type[FirstCome]
) -> None:
    sizes = random_sizes(3, 60, 20, 15)
    made = []
    for chunked, budget in ((True, 7), (True, 64), (False, 64)):
        kept = Sizes(160, 40, 4)
        memory = KVManager(40, 4) if policy == "manager" else PolicyMemory(POLICIES[policy](kept))
        scheduler = ContinuousBatching(memory, Limits(budget, 16), queue(), chunked=chunked)
        made.append(run(scheduler, sizes).ended)
    assert made[0] == made[1] == made[2] == dict(enumerate(output for _, output in sizes))


def test_priorities_and_tenants_reach_the_queue() -> None:
    driver = Driver(batching(running=1, queue=ByPriority(100)))
    for identity, priority in enumerate((1, 1, 0)):
        driver.add(Request(identity, 2, 1, priority=priority), makes=1)
    driver.run()
    assert list(driver.ended) == [2, 0, 1]


def test_a_queue_that_is_in_use_is_refused() -> None:
    queue = FirstCome()
    queue.push(Request(1, 2, 2))
    with pytest.raises(ValueError, match="the queue must be empty, 1 requests"):
        batching(queue=queue)


@pytest.mark.parametrize("values", [{"max_running": 0}, {"max_tokens_per_step": 0}, {"max_request_tokens": -1}])
def test_a_limit_below_one_is_named(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(values))} must be at least 1"):
        Limits(**values)


class Liar(CountedBlocks):
    """Refuses a request in an empty memory, after it said that the request fits."""

    def admit(self, demand: Demand, num_tokens: int) -> Grant | Refusal:
        return Refusal(Reason.NO_ROOM, demand.num_tokens, 0, 0)


def test_a_memory_that_breaks_its_promise_is_an_error_and_not_an_endless_wait() -> None:
    scheduler = ContinuousBatching(Liar(4, 4))  # type: ignore[arg-type]
    scheduler.add(Request(1, 4, 4))
    with pytest.raises(RuntimeError, match="nothing can be scheduled, of 1 requests: too little memory is free"):
        scheduler.schedule()
