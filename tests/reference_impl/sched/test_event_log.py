"""A scheduler with the log of its memory: who waits, who is preempted and why, and why a request ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labkit import player
from labkit.event_log import check_log
from reference_impl.memory import POLICIES, Sizes
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_policy import Reason
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.sched import (
    ContinuousBatching,
    ContractScheduler,
    EngineScheduler,
    FairShare,
    Limits,
    PrefillFirst,
    Request,
    StaticBatching,
    orca,
)
from reference_impl.sched.contract import Scheduler
from tests.reference_impl.sched.driving import Driver

LIMITS = Limits(100, 3)
SIZES = (5, 4, 100, 3)


def blocks(log: EventLog) -> KVManager:
    return KVManager(5, 4, num_host_blocks=8, log=log)


SCHEDULERS: dict[str, Callable[[EventLog], EngineScheduler]] = {
    "recompute": lambda log: ContinuousBatching(blocks(log), LIMITS, log=log),
    "swap": lambda log: ContinuousBatching(blocks(log), LIMITS, recovery="swap", log=log),
    "prefill first": lambda log: PrefillFirst(blocks(log), LIMITS, recovery="swap", log=log),
    "static": lambda log: StaticBatching(blocks(log), LIMITS, log=log),
    "orca": lambda log: orca(blocks(log), max_running=3, log=log),
    "lab 6": lambda log: ContractScheduler(Scheduler(*SIZES), *SIZES, log=log),
}
on_each = pytest.mark.parametrize("name", SCHEDULERS)


def played(name: str) -> tuple[EventLog, EngineScheduler]:
    """Four requests, too much for five blocks; the last to come is aborted while it waits."""
    log = EventLog()
    driver = Driver(SCHEDULERS[name](log))
    for identity, prompt in ((1, 4), (2, 4), (3, 3), (4, 2)):
        driver.add(Request(identity, prompt, 6), makes=6)
    driver.step()
    driver.abort(4)
    driver.run()
    return log, driver.scheduler


@on_each
def test_every_end_and_every_preemption_is_told_with_its_reason(name: str) -> None:
    log, scheduler = played(name)
    ends = {event["seq"]: event["sentence"] for event in log.events if event["kind"] == "finish"}
    assert ends == {number: f"Request {number} ends: its answer is complete." for number in (1, 2, 3)} | {
        4: "Request 4 ends: it was aborted."
    }
    counts = log.counts()
    assert counts["preempt"] == scheduler.counters.preemptions > 0
    assert counts["admit"] == scheduler.counters.admitted
    assert counts["finish"] == 4
    first = next(place for place, event in enumerate(log.events) if event["kind"] == "preempt")
    why = "the plan says so" if name == "lab 6" else "request "
    assert log.events[first]["sentence"].startswith(f"Request 3 is preempted: {why}")
    assert log.events[first + 1]["kind"] == ("swap_out" if scheduler.counters.swaps_out else "free")


@on_each
def test_the_log_is_one_that_the_player_plays(name: str) -> None:
    log, _ = played(name)
    check_log(log.events)
    assert [event["fault"] for event in log.events if event.get("fault")] == []
    html = player.show(log.events)._repr_html_()
    assert html.count('<section class="p2p-panel"') == log.events[-1]["call"] + 1
    assert "Request 4 ends: it was aborted." in html
    assert "Request 3 is preempted: " in html
    assert "Waiting" in html
    assert ("goes to the host" in html) == (log.counts()["swap_out"] > 0) == (name in ("swap", "prefill first"))


def test_the_states_show_who_waits_and_who_lost_its_blocks() -> None:
    states = [event["state"] for event in played("recompute")[0].events if "state" in event]
    assert states[1]["waiting"] == [2, 3, 4]
    assert next(state["waiting"] for state in states if state["preempted"]) == [3]
    assert states[-1]["waiting"] == states[-1]["preempted"] == []
    for state in states:
        assert not {str(request) for request in state["waiting"]} & state["tables"].keys()


def test_the_first_that_waits_is_the_one_that_the_queue_takes_next() -> None:
    log = EventLog()
    scheduler = ContinuousBatching(KVManager(9, 4, log=log), Limits(100, 1), FairShare(), log=log)
    for identity, tenant in enumerate("aaab"):
        scheduler.add(Request(identity, 4, 2, tenant=tenant))
    for taken in (0, 3):
        scheduler.schedule()
        scheduler.finish_step()
        assert [event["seq"] for event in log.events if event["kind"] == "admit"][-1] == taken
        scheduler.schedule()
        scheduler.finish_step([taken])
        waiting = log.events[-1]["state"]["waiting"]
        assert waiting == ([3, 1, 2] if taken == 0 else [1, 2])


def test_a_request_that_held_nothing_ends_at_once_even_if_nothing_happens_afterwards() -> None:
    log = EventLog()
    scheduler = ContinuousBatching(KVManager(5, 4, log=log), Limits(100, 1), log=log)
    for identity in (1, 2):
        scheduler.add(Request(identity, 4, 1))
    scheduler.schedule()
    scheduler.abort(2)
    assert (log.events[-1]["kind"], log.events[-1]["seq"]) == ("finish", 2)
    assert log.events[-1]["state"]["waiting"] == []
    scheduler.finish_step([1])
    assert log.counts()["finish"] == 2


def test_a_place_on_the_host_that_is_given_up_is_told_as_a_preemption() -> None:
    log = EventLog()

    class Shut(KVManager):
        """Lets nobody back from the host."""

        def swap_in(self, request: int) -> object:  # type: ignore[override]
            return self._refusal(Reason.NO_ROOM, 99)

    scheduler = ContinuousBatching(Shut(5, 4, num_host_blocks=8, log=log), LIMITS, recovery="swap", log=log)
    driver = Driver(scheduler)
    for identity in (1, 2):
        driver.add(Request(identity, 8, 8), makes=8)
    while not (plan := driver.step()).preempted or not plan.admitted:
        assert driver.requests
    assert plan.refused is None, "it was let in again, so nobody waits"
    driver.run()
    assert scheduler.counters.given_up_swaps == 1
    told = [event["sentence"] for event in log.events if event["kind"] == "preempt"]
    assert told[-1] == "Request 2 is preempted: nobody will leave who could make room for it on the device."
    assert len(told) == scheduler.counters.preemptions + scheduler.counters.given_up_swaps


def test_a_log_that_is_not_that_of_the_memory_is_refused() -> None:
    other = EventLog()
    KVManager(5, 4, log=other)
    policy = PolicyMemory(POLICIES["paged"](Sizes(20, 20, 4)))
    for memory, log in ((KVManager(5, 4), EventLog()), (KVManager(5, 4), other), (policy, EventLog())):
        with pytest.raises(ValueError, match="log is not that of the memory"):
            ContinuousBatching(memory, log=log)
