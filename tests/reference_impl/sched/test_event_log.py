"""A scheduler with the log of its memory: who waits, who is preempted and why, and why a request ends."""

from __future__ import annotations

from labkit.event_log import check_log
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.sched import ContinuousBatching, Limits, Request
from tests.reference_impl.sched.driving import Driver


def played(recovery: str) -> EventLog:
    log = EventLog()
    memory = KVManager(5, 4, num_host_blocks=8, log=log)
    scheduler = ContinuousBatching(memory, Limits(100, 3), recovery=recovery, log=log)  # type: ignore[arg-type]
    driver = Driver(scheduler)
    for identity, prompt in ((1, 4), (2, 4), (3, 3), (4, 2)):
        driver.add(Request(identity, prompt, 6), makes=6)
    driver.step()
    driver.abort(4)
    driver.run()
    return log


def test_every_end_and_every_preemption_is_told_with_its_reason() -> None:
    for recovery, away in (("recompute", "free"), ("swap", "swap_out")):
        log = played(recovery)
        check_log(log.events)
        ends = {event["seq"]: event["sentence"] for event in log.events if event["kind"] == "finish"}
        assert ends == {number: f"Request {number} ends: its answer is complete." for number in (1, 2, 3)} | {
            4: "Request 4 ends: it was aborted."
        }
        first = next(place for place, event in enumerate(log.events) if event["kind"] == "preempt")
        assert log.events[first]["sentence"].startswith("Request 3 is preempted: request ")
        assert log.events[first + 1]["kind"] == away


def test_the_states_show_who_waits_and_who_lost_its_blocks() -> None:
    states = [event["state"] for event in played("recompute").events if "state" in event]
    assert states[1]["waiting"] == [2, 3, 4]
    assert next(state["waiting"] for state in states if state["preempted"]) == [3]
    assert states[-1]["waiting"] == states[-1]["preempted"] == []
    for state in states:
        assert not {str(request) for request in state["waiting"]} & state["tables"].keys()
