"""The manager's log: its sentences, its states, and that the events alone tell what happened."""

from __future__ import annotations

import json
import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.event_log import check_log
from labkit.player import Player
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand


def ten(request: int, more: int = 0) -> Demand:
    return Demand(request, 10 + more, 5, token_ids=array("i", range(10 + more)))


def story(log: EventLog | None = None) -> tuple[KVManager, EventLog]:
    """Two requests with one prompt, a fork, a copy, a swap, an end and an eviction."""
    log = log or EventLog()
    manager = KVManager(6, 4, prefix_cache="hash", num_host_blocks=8, log=log)
    manager.admit(ten(1), 10)
    manager.commit(1, 10)
    manager.admit(ten(2), 10)
    manager.commit(2, 10)
    manager.fork(2, ten(3, more=1))
    manager.grow(3, 11)
    manager.commit(3, 11)
    manager.grow(2, 99)
    log.waits([7, 3])
    log.preempted(3, "request 2 needs a block")
    manager.swap_out(3)
    manager.swap_in(3)
    manager.grow(1, 15)
    manager.truncate(1, 10)
    log.finished(1, "it has all its tokens")
    manager.free(1)
    manager.free(2)
    manager.free(3)
    manager.admit(Demand(4, 24, 1), 24)
    return manager, log


def test_a_call_that_changes_no_block_and_computes_nothing_leaves_no_event() -> None:
    log = EventLog()
    manager = KVManager(6, 4, log=log)
    manager.admit(ten(1), 10)
    before = len(log.events)
    manager.grow(1, 11)
    manager.truncate(1, 10)
    manager.commit(1, 0)
    manager.account()
    assert len(log.events) == before


def test_every_kind_of_change_is_told_in_words() -> None:
    _, log = story()
    told = [(event["kind"], event["sentence"]) for event in log.events]
    assert told == [
        ("create", "A memory of 6 blocks, all free, with 4 slots each."),
        ("admit", "Request 1 comes in with 10 tokens."),
        ("allocate", "Request 1 takes blocks 0, 1 and 2."),
        ("write", "The KV of tokens 0 to 9 is computed: request 1 has written blocks 0, 1 and 2."),
        ("publish", "What stands in blocks 0 and 1 can be found by others from now on."),
        ("admit", "Request 2 comes in with 10 tokens, 8 of them found again."),
        ("share", "Request 2 shares blocks 0 and 1, where its beginning stands."),
        ("allocate", "Request 2 takes block 3."),
        ("write", "The KV of tokens 8 to 9 is computed: request 2 has written block 3."),
        ("share", "Request 3 shares blocks 0, 1 and 3 with request 2."),
        ("copy", "Request 3 is about to write into shared block 3: it is copied to block 4 first."),
        ("write", "The KV of token 10 is computed: request 3 has written block 4."),
        (
            "refused",
            "Request 2 cannot grow to 99 tokens: more than the memory could ever give "
            "(88 tokens of memory needed, 4 free).",
        ),
        ("preempt", "Request 3 is preempted: request 2 needs a block."),
        ("swap_out", "Request 3 goes to the host: blocks 0, 1 and 4 to blocks 0, 1 and 2 there."),
        ("free", "Request 3 gives back block 4; 2 blocks still held by others."),
        ("share", "Request 3 shares blocks 0 and 1, where its beginning stands."),
        ("allocate", "Request 3 takes block 5."),
        ("swap_in", "Request 3 comes back: block 2 of the host to block 5 here."),
        ("allocate", "Request 1 takes block 4."),
        ("free", "Request 1 keeps 10 slots and gives back block 4."),
        ("finish", "Request 1 ends: it has all its tokens."),
        ("free", "Request 1 gives back block 2; 2 blocks still held by others."),
        ("free", "Request 2 gives back block 3; 2 blocks still held by others."),
        ("free", "Request 3 gives back blocks 0, 1 and 5; what stands in blocks 0 and 1 can still be found."),
        ("admit", "Request 4 comes in with 24 tokens."),
        ("evict", "What stands in blocks 1 and 0 is forgotten: the room is needed."),
        ("allocate", "Request 4 takes blocks 4, 2, 3, 5, 1 and 0."),
    ]


def test_the_log_keeps_to_the_schema_and_can_be_played() -> None:
    manager, log = story()
    check_log(log.events)
    assert json.loads(json.dumps(log.events)) == log.events
    assert [event.get("fault", "") for event in log.events] == [""] * len(log.events)
    html = Player(log.events)._repr_html_()
    assert "Request 3 goes to the host" in html
    manager.check_invariants()


def test_a_state_is_that_of_the_memory_after_the_call() -> None:
    _, log = story()
    (swapped,) = (event for event in log.events if event["told"] == "swap_out(3)" and "state" in event)
    assert swapped["state"] == {
        "num_blocks": 6,
        "block_size": 4,
        "num_free": 2,
        "tables": {"1": [0, 1, 2], "2": [0, 1, 3]},
        "tokens": {"1": 10, "2": 10},
        "ref_counts": [2, 2, 1, 1, 0, 0],
        "filled": [4, 4, 2, 2, 0, 0],
        "published": [0, 1],
        "num_idle": 0,
        "waiting": [7, 3],
        "preempted": [3],
        "host": {"3": [0, 1, 2]},
        "num_host_blocks": 8,
    }


def test_a_broken_memory_is_told_as_a_fault() -> None:
    log = EventLog()
    manager = KVManager(6, 4, log=log)
    manager.admit(ten(1), 10)
    manager._blocks.pool.share([manager.block_table(1)[0]])
    manager.commit(1, 10)
    assert log.events[-1]["fault"] == "I2: block 0 counts 2 references, 1 exist"


def test_a_log_without_states_has_the_same_events() -> None:
    lean, full = EventLog(with_state=False), EventLog()
    for log in (lean, full):
        random_program(log, 7)
    bare = [{key: event[key] for key in event if key not in ("state", "fault")} for event in full.events]
    assert lean.events == bare
    check_log(lean.events, states=False)
    assert lean.counts() == full.counts()


def test_a_log_belongs_to_one_memory() -> None:
    log = EventLog()
    KVManager(2, 2, log=log)
    with pytest.raises(ValueError, match="this log is that of another memory"):
        KVManager(2, 2, log=log)


def random_program(log: EventLog, seed: int) -> KVManager:
    """A hundred calls on a small memory, most of which succeed."""
    dice = random.Random(seed)
    kind = dice.choice(["none", "hash", "radix"])
    manager = KVManager(9, dice.randint(1, 4), prefix_cache=kind, num_host_blocks=5, log=log)  # type: ignore[arg-type]
    for request in range(100):
        live, swapped = list(manager._live), list(manager._swapped)
        ids = array("i", [dice.randrange(2) for _ in range(dice.randint(1, 12))])
        manager.admit(Demand(request, len(ids), dice.randint(1, 4), token_ids=ids), dice.randint(1, 12))
        for one in live:
            slots = manager.num_tokens(one)
            if dice.random() < 0.5:
                manager.grow(one, slots + dice.randint(0, 4))
            if dice.random() < 0.3:
                manager.truncate(one, manager.num_tokens(one))
            manager.commit(one, manager.num_tokens(one))
            if dice.random() < 0.2:
                manager.swap_out(one)
            if one in manager._live and dice.random() < 0.4:
                manager.free(one)
        for one in swapped:
            manager.swap_in(one)
        if manager._live and dice.random() < 0.5:
            parent = manager._live[dice.choice(list(manager._live))]
            if parent.committed == parent.num_tokens > 0:
                known = parent.demand.token_ids
                assert known is not None
                known.extend([dice.randrange(2) for _ in range(parent.num_tokens - len(known))])
                manager.fork(parent.demand.request, Demand(1_000 + request, parent.num_tokens, 1, token_ids=known[:]))
    return manager


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_events_alone_tell_which_blocks_are_held_and_found(seed: int) -> None:
    log = EventLog()
    random_program(log, seed)
    check_log(log.events)
    assert not any(event.get("fault") for event in log.events)
    held: set[int] = set()
    found: set[int] = set()
    for event in log.events:
        kind, blocks = event["kind"], set(event["blocks"])
        if kind == "allocate":
            assert not blocks & held, "a block is taken that somebody holds"
            held |= blocks
        elif kind == "share":
            assert blocks <= held | found
            held |= blocks
        elif kind == "copy":
            held.add(event["blocks"][1])
        elif kind == "free":
            assert blocks <= held
            held -= blocks
        elif kind == "publish":
            assert blocks <= held
            found |= blocks
        elif kind == "evict":
            assert blocks <= found - held
            found -= blocks
        if "state" in event:
            state = event["state"]
            assert held == {block for block, count in enumerate(state["ref_counts"]) if count}
            assert (sorted(found), len(found - held)) == (state["published"], state["num_idle"])
            assert state["num_free"] == state["num_blocks"] - len(held)


@pytest.mark.parametrize("with_state", [True, False])
def test_a_log_that_keeps_the_last_events_is_the_end_of_one_that_keeps_all(with_state: bool) -> None:
    _, everything = story(EventLog(with_state=with_state))
    for keep in (1, 2, 5, 1_000):
        manager, kept = story(EventLog(with_state=with_state, keep=keep))
        assert kept.events == everything.events[-keep:]
        assert kept.num_events == everything.num_events == len(everything.events)
        check_log(kept.events, states=with_state)
        assert manager.num_free_blocks == kept.state()["num_free"]


def test_the_state_now_is_the_one_that_is_written_down() -> None:
    _, log = story()
    _, small = story(EventLog(with_state=False))
    assert log.events[-1]["state"] == log.state() == small.state()


def test_a_log_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        EventLog(keep=0)
