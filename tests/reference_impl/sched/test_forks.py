"""Several answers to one prompt: forks in the step that completes it, what they share, and where none can be."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import pytest

from reference_impl.memory import (
    POLICIES,
    EventLog,
    KVManager,
    KVMemory,
    PagedBlocks,
    PolicyMemory,
    PrefixCache,
    Sizes,
)
from reference_impl.memory.cache_memory import PrefixCacheMemory
from reference_impl.sched import (
    ContinuousBatching,
    ContractScheduler,
    FairShare,
    Limits,
    PrefillFirst,
    Request,
    State,
    StaticBatching,
)
from reference_impl.sched.contract import Scheduler
from reference_impl.sched.lifecycle import Lifecycle
from tests.reference_impl.sched.driving import CountedBlocks, ids
from tests.reference_impl.sched.placing import PlacedDriver

PROMPT = array("i", [5, 6, 7, 8, 9, 10])

SHARING: dict[str, Callable[[], KVMemory]] = {
    "manager": lambda: KVManager(20, 4),
    "manager, hash": lambda: KVManager(20, 4, prefix_cache="hash"),
    "lab 3": lambda: PolicyMemory(PagedBlocks(80, 4)),
}
NOT_SHARING: dict[str, Callable[[], KVMemory]] = {
    **{
        name: (lambda name=name: PolicyMemory(POLICIES[name](Sizes(80, 20, 4))))  # type: ignore[misc]
        for name in ("reserve_max", "pow2", "oracle", "grow")
    },
    "lab 5": lambda: PrefixCacheMemory(PrefixCache(20, 4), 20, 4),
    "counted": lambda: CountedBlocks(20, 4),  # type: ignore[return-value]
}


def request(identity: int, makes: int = 5, **other: Any) -> Request:
    return Request(identity, len(PROMPT), makes, **{"token_ids": PROMPT[:], **other})


def parted(memory: KVMemory, limits: Limits | None = None, **how: Any) -> tuple[ContinuousBatching, Request, Request]:
    """A scheduler after the step in which request 1 forked into itself and 2."""
    scheduler = ContinuousBatching(memory, limits or Limits(100, 8), **how)
    parent, child = request(1), request(2)
    scheduler.add(parent)
    scheduler.schedule()
    scheduler.finish_step((), {1: 20}, {1: [(child, 30)]})
    scheduler.check_invariants()
    return scheduler, parent, child


@pytest.mark.parametrize("name", SHARING)
def test_a_fork_runs_on_its_parents_blocks_with_a_token_of_its_own(name: str) -> None:
    memory = SHARING[name]()
    scheduler, parent, child = parted(memory)
    assert (parent.token_ids, child.token_ids) == (array("i", [*PROMPT, 20]), array("i", [*PROMPT, 30]))
    assert (child.num_tokens, child.num_computed, child.state) == (7, 6, State.RUNNING)
    assert memory.account().held == 6
    assert memory.account().tail == 2
    assert memory.block_table(1) == memory.block_table(2)  # type: ignore[attr-defined]
    counters = scheduler.counters
    assert (counters.added, counters.forks, counters.admitted, counters.made_tokens) == (2, 1, 1, 2)
    plan = scheduler.schedule()
    assert plan.scheduled == {1: 1, 2: 1}
    # The first that writes gets a copy of the tail, the last one writes in place.
    assert len(plan.copies) == 1
    assert memory.block_table(1)[0] == memory.block_table(2)[0]  # type: ignore[attr-defined]
    assert memory.block_table(1)[1] != memory.block_table(2)[1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NOT_SHARING)
def test_where_memory_cannot_be_shared_a_fork_waits_with_its_token(name: str) -> None:
    scheduler, _, child = parted(NOT_SHARING[name]())
    assert (child.num_tokens, child.num_computed, child.state) == (7, 0, State.WAITING)
    assert (scheduler.counters.added, scheduler.counters.forks) == (2, 0)
    plan = scheduler.schedule()
    assert plan.admitted == (2,)
    assert plan.scheduled[2] + plan.reused.get(2, 0) == 7
    scheduler.finish_step((), {1: 21, 2: 31})
    assert child.token_ids == array("i", [*PROMPT, 30, 31])


def test_no_more_forks_run_than_requests_may() -> None:
    scheduler = ContinuousBatching(KVManager(20, 4), Limits(100, 2))
    scheduler.add(request(1))
    scheduler.schedule()
    children = [request(identity) for identity in (2, 3, 4)]
    scheduler.finish_step((), {1: 20}, {1: [(child, 30) for child in children]})
    scheduler.check_invariants()
    assert [child.state for child in children] == [State.RUNNING, State.WAITING, State.WAITING]
    assert scheduler.num_waiting == 2


@pytest.mark.parametrize("how", ["finished", "aborted"])
@pytest.mark.parametrize("name", SHARING)
def test_a_parent_that_ends_with_the_step_has_its_children_all_the_same(name: str, how: str) -> None:
    memory = SHARING[name]()
    scheduler = ContinuousBatching(memory, Limits(100, 8))
    scheduler.add(request(1))
    scheduler.schedule()
    if how == "aborted":
        scheduler.abort(1)
    child = request(2)
    scheduler.finish_step({1} if how == "finished" else (), {}, {1: [(child, 30)]})
    scheduler.check_invariants()
    assert (child.state, child.num_computed, scheduler.num_running) == (State.RUNNING, 6, 1)
    plan = scheduler.schedule()
    assert (plan.scheduled, plan.copies) == ({2: 1}, ())


def test_a_fork_without_token_ids_is_one_by_counts_alone() -> None:
    scheduler = ContinuousBatching(KVManager(20, 4), Limits(100, 8))
    scheduler.add(request(1, token_ids=None))
    scheduler.schedule()
    child = request(2, token_ids=None)
    scheduler.finish_step((), {}, {1: [(child, 3)]})
    assert (child.num_tokens, child.num_computed) == (7, 6)
    scheduler.check_invariants()


@pytest.mark.parametrize("recovery", ["recompute", "swap"])
def test_a_fork_that_is_preempted_comes_back_with_all_its_tokens(recovery: str) -> None:
    # Six blocks: the two share one, and neither can end while the other holds its five.
    memory = KVManager(6, 4, num_host_blocks=6)
    driver = PlacedDriver(ContinuousBatching(memory, Limits(100, 4), recovery=recovery))  # type: ignore[arg-type]
    driver.add(Request(1, 6, 13, token_ids=PROMPT[:]), 13, [(Request(2, 6, 13, token_ids=PROMPT[:]), 13)])
    driver.run()
    counters = driver.scheduler.counters
    assert driver.ended == {1: 13, 2: 13}
    assert counters.forks == 1
    assert counters.preemptions > 0
    assert (counters.swaps_out > 0) == (recovery == "swap")


def test_a_static_batch_is_closed_to_forks_too() -> None:
    driver = PlacedDriver(StaticBatching(KVManager(40, 4), Limits(None, 8)))
    driver.add(request(1), 5, [(request(2), 5), (request(3), 4)])
    plans = [driver.step() for _ in range(6)]
    assert [dict(plan.scheduled) for plan in plans] == [{1: 6}, {1: 1}, {1: 1}, {1: 1}, {1: 1}, {2: 7, 3: 7}]
    assert all(plan.rectangle is not None and plan.rectangle.rows == len(plan.scheduled) for plan in plans)
    driver.run()


def test_a_fork_stands_behind_those_that_came_before_it() -> None:
    _, parent, child = parted(KVManager(20, 4))
    assert parent.place is not None
    assert child.place is not None
    assert parent.place < child.place


def test_a_fork_is_not_charged_for_a_prompt_that_its_parent_computed() -> None:
    queue = FairShare(prompt_price=1.0, output_price=2.0)
    parted(KVManager(20, 4), queue=queue)
    assert queue.counters == {"": 6 + 2 + 2}


def test_the_log_says_who_shares_and_who_waits() -> None:
    log = EventLog()
    memory = KVManager(20, 4, log=log)
    scheduler, _, _ = parted(memory, Limits(100, 1), log=log)
    scheduler.schedule()
    scheduler.finish_step((), {1: 21})
    assert log.events[-1]["state"]["waiting"] == [2]
    log = EventLog()
    parted(KVManager(20, 4, log=log), log=log)
    assert log.events[-1]["sentence"] == "Request 2 shares blocks 0 and 1 with request 1."


def test_prompts_in_chunks_fork_only_when_the_last_chunk_is_computed() -> None:
    scheduler = ContinuousBatching(KVManager(20, 4), Limits(4, 8))
    scheduler.add(request(1))
    scheduler.schedule()
    with pytest.raises(ValueError, match="request 1 made no token in this step, so it cannot fork with it"):
        scheduler.finish_step((), {}, {1: [(request(2), 3)]})
    scheduler.finish_step()
    scheduler.schedule()
    scheduler.finish_step((), {1: 20}, {1: [(request(2), 30)]})
    assert scheduler.num_running == 2


WRONG: dict[str, tuple[Callable[[Request], object], type[Exception], str]] = {
    "unknown parent": (lambda parent: {7: [(request(2), 3)]}, KeyError, "no request 7"),
    "here already": (lambda parent: {1: [(request(1), 3)]}, ValueError, "request 1 is here already"),
    "two of one name": (
        lambda parent: {1: [(request(2), 3), (request(2), 4)]},
        ValueError,
        "request 2 is here already",
    ),
    "other prompt length": (
        lambda parent: {1: [(Request(2, 5, 5, token_ids=PROMPT[:5]), 3)]},
        ValueError,
        "request 2 has prompt_tokens 5, its parent 6",
    ),
    "other prompt": (
        lambda parent: {1: [(request(2, token_ids=array("i", range(6))), 3)]},
        ValueError,
        "token_ids of request 2 are not the prompt of its parent",
    ),
    "other salt": (
        lambda parent: {1: [(request(2, salt="x"), 3)]},
        ValueError,
        "request 2 has salt 'x', its parent ''",
    ),
    "other length": (lambda parent: {1: [(request(2, makes=4), 3)]}, ValueError, "request 2 has max_new_tokens 4"),
    "no ids": (
        lambda parent: {1: [(request(2, token_ids=None), 3)]},
        ValueError,
        "must both have token_ids, or neither",
    ),
    "one array": (
        lambda parent: {1: [(request(2, token_ids=parent.token_ids), 3)]},
        ValueError,
        "request 2 has the very token_ids of its parent",
    ),
    "no token": (lambda parent: {1: [(request(2), -1)]}, ValueError, "the first token of request 2 must be a token id"),
    "no number": (
        lambda parent: {1: [(request(2), "a")]},
        TypeError,
        "the first token of request 2 must be a token id",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fork_that_is_none_is_refused_and_nothing_has_changed(name: str) -> None:
    forked, error, words = WRONG[name]
    scheduler = ContinuousBatching(KVManager(20, 4), Limits(100, 8))
    parent = request(1)
    scheduler.add(parent)
    scheduler.schedule()
    with pytest.raises(error, match=words):
        scheduler.finish_step((), {1: 20}, forked(parent))  # type: ignore[arg-type]
    scheduler.check_invariants()
    assert (parent.num_tokens, parent.num_computed, parent.token_ids) == (6, 0, PROMPT)
    assert (scheduler.counters.added, scheduler.num_running, scheduler.num_waiting) == (1, 1, 0)
    child = request(2)
    scheduler.finish_step((), {1: 20}, {1: [(child, 30)]})
    assert child.state is State.RUNNING


def test_a_request_of_one_token_is_over_and_cannot_fork() -> None:
    scheduler = ContinuousBatching(KVManager(20, 4), Limits(100, 8))
    scheduler.add(request(1, makes=1))
    scheduler.schedule()
    with pytest.raises(ValueError, match="request 2 may make one token and has it"):
        scheduler.finish_step({1}, {}, {1: [(request(2, makes=1), 3)]})


def test_a_fork_is_new_and_its_parent_has_made_nothing_yet() -> None:
    scheduler, _, child = parted(KVManager(20, 4))
    scheduler.abort(2)
    scheduler.schedule()
    with pytest.raises(ValueError, match="request 1 made 1 tokens before: it forks with its first"):
        scheduler.finish_step((), {1: 21}, {1: [(request(3), 3)]})
    scheduler.finish_step((), {1: 21})
    scheduler.add(request(4))
    scheduler.schedule()
    with pytest.raises(ValueError, match="request 2 is not new"):
        scheduler.finish_step((), {1: 22, 4: 1}, {4: [(child, 3)]})


def test_without_a_step_nobody_forks() -> None:
    with pytest.raises(ValueError, match=r"no step is under way, in which \{1\} could have made a token"):
        ContinuousBatching(KVManager(20, 4)).finish_step((), {}, {1: [(request(2), 3)]})


def test_a_scheduler_of_lab_6_knows_no_fork_and_says_so() -> None:
    sizes = (20, 4, 100, 8)
    scheduler = ContractScheduler(Scheduler(*sizes), *sizes)
    assert scheduler.can_fork is False
    scheduler.add(request(1))
    scheduler.schedule()
    with pytest.raises(ValueError, match=r"requests \[1\] cannot fork: the contract of lab 6 knows no fork"):
        scheduler.finish_step((), {1: 20}, {1: [(request(2), 3)]})
    scheduler.finish_step((), {1: 20})
    scheduler.check_invariants()


@pytest.mark.parametrize("made_by", [ContinuousBatching, PrefillFirst, StaticBatching])
def test_all_others_take_forks(made_by: type[Lifecycle]) -> None:
    assert made_by(KVManager(20, 4)).can_fork is True


@pytest.mark.parametrize("answers", [2, 5])
def test_forks_save_the_blocks_of_the_prompt(answers: int) -> None:
    # Forty blocks of prompt stand in memory once; alone, each answer would hold them all.
    driver = PlacedDriver(ContinuousBatching(KVManager(200, 4), Limits(None, 16)))
    prompt = ids(1, 160, kinds=50)
    first, *others = [Request(identity, 160, 4, token_ids=prompt[:]) for identity in range(answers)]
    driver.add(first, 4, [(other, 4) for other in others])
    driver.step()
    account = driver.scheduler.memory.account()
    assert account.held == 160
    driver.run()
    assert len(driver.ended) == answers
