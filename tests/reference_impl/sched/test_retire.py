"""An answer that is found complete a step too late: its request ends like one that finished, wherever it stands."""

from __future__ import annotations

from array import array

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.sched import ContinuousBatching, Limits, Request


def scheduler(blocks: int = 8, **options: object) -> ContinuousBatching:
    return ContinuousBatching(KVManager(blocks, 2, full_fit=False), Limits(16, 4), **options)  # type: ignore[arg-type]


def request(identity: int, prompt: int = 3, new: int = 6) -> Request:
    return Request(identity, prompt, new, token_ids=array("i", range(prompt)))


def test_in_the_step_under_way_it_keeps_its_blocks_to_the_end_and_makes_nothing() -> None:
    ours = scheduler()
    ours.add(request(1))
    ours.schedule()
    ours.finish_step(sampled={1: 7})
    plan = ours.schedule()
    assert plan.scheduled == {1: 1}
    ours.retire(1)
    assert ours.memory.account().held > 0, "the step still writes there"
    ours.finish_step()
    assert ours.memory.account().held == 0
    assert (ours.counters.finished, ours.counters.aborted, ours.counters.made_tokens) == (1, 0, 1)
    ours.check_invariants()


def test_between_two_steps_it_ends_at_once() -> None:
    ours = scheduler()
    ours.add(request(1))
    ours.schedule()
    ours.finish_step(sampled={1: 7})
    ours.retire(1)
    assert ours.memory.account().held == 0
    assert ours.counters.finished == 1
    assert not ours.schedule().scheduled


def test_while_it_waits_again_after_a_preemption_it_leaves_the_queue() -> None:
    ours = scheduler(blocks=4)
    for identity in (1, 2):
        ours.add(request(identity, prompt=4, new=3))
    ours.schedule()
    ours.finish_step(sampled={1: 7, 2: 7})
    plan = ours.schedule()
    assert plan.preempted == (2,)
    ours.retire(2)
    assert ours.num_waiting == 0
    ours.finish_step(sampled={1: 8})
    assert ours.counters.finished == 1
    ours.check_invariants()


def test_who_is_unknown_or_has_ended_cannot_retire() -> None:
    ours = scheduler()
    ours.add(request(1))
    ours.schedule()
    ours.retire(1)
    for identity in (1, 2):
        with pytest.raises(KeyError, match=f"no request {identity}"):
            ours.retire(identity)
    assert ours.counters.finished == 1
