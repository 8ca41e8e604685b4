"""The schema of a log: what is one, and which event is named when it is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from labkit.event_log import KINDS, Event, check_log
from labkit.recorder import record
from reference_impl.memory import BlockAllocator as Reference
from tests.labkit.engine_story import engine_story

PROGRAM: list[tuple[Any, ...]] = [("allocate", 1, 6), ("fork", 1, 2), ("append", 2), ("allocate", 9, 900), ("free", 1)]


@pytest.mark.parametrize("events", [record(Reference(8, 4), 8, 4, PROGRAM), engine_story()], ids=["recorder", "engine"])
def test_a_log_of_ours_is_one_and_stays_one_as_json(events: list[Event]) -> None:
    check_log(events)
    check_log(json.loads(json.dumps(events)))


def test_a_log_without_states_is_one_only_where_none_are_expected() -> None:
    bare = [
        {name: value for name, value in event.items() if name not in ("state", "fault")} for event in engine_story()
    ]
    check_log(bare, states=False)
    with pytest.raises(ValueError, match="last event of call 0 has no state with num_blocks, block_size"):
        check_log(bare)
    with pytest.raises(ValueError, match="event 0 is of a log without states, but it has a state"):
        check_log(engine_story(), states=False)


def test_every_kind_says_what_its_blocks_are() -> None:
    assert len(KINDS) == 15
    assert all(KINDS.values())


def put(path: str, value: Any) -> Callable[[list[Event]], None]:
    """Set one field of event 2, "state.x" in the state of its call's last event, which is event 2 itself."""

    def change(events: list[Event]) -> None:
        where = events[2]
        *outer, last = path.split(".")
        for name in outer:
            where = where[name]
        where[last] = value

    return change


def drop(path: str) -> Callable[[list[Event]], None]:
    def change(events: list[Event]) -> None:
        where = events[2]
        *outer, last = path.split(".")
        for name in outer:
            where = where[name]
        del where[last]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("kind", "explode"), "event 2 is of kind 'explode', which is none of create"),
        (put("kind", ["write"]), r"event 2 is of kind \['write'\], which is none of create"),
        (put("call", "1"), "event 2 has '1' as its call"),
        (put("call", True), "event 2 has True as its call"),
        (put("call", 0), "event 2 is of call 0, after one of 1"),
        (put("told", None), "event 2 has None as its told"),
        (put("seq", "1"), "event 2 has '1' as its seq"),
        (put("blocks", [1, None]), r"event 2 has \[1, None\] as its blocks"),
        (put("fault", 3), "event 2 has 3 as its fault"),
        (put("colour", "red"), "event 2 has 'colour', which is no field of a log"),
        (put("kind", "copy"), r"event 2 is a copy of \[0, 1, 2\], which is not a source and a destination"),
        (put("kind", "finish"), "event 2 is of kind 'finish', which is about no blocks"),
        (drop("sentence"), "event 2 has no sentence"),
        (drop("state"), "last event of call 1 has no state with num_blocks"),
        (drop("state.filled"), "last event of call 1 has no state with filled$"),
        (put("state.num_idel", 1), "'num_idel', which is no field of a state"),
        (put("state.num_idle", "1"), "'1' as its num_idle"),
        (put("state.filled", [1]), "has 1 filled for 8 blocks"),
        (put("state.tables", {"1": 4}), "as its tables"),
        (put("state.tables", {}), "as its tokens, for the tables of $"),
        (put("state.host", {"1": ["a"]}), "as its host"),
        (put("state.waiting", 4), "4 as its waiting"),
        (put("state.block_size", 0), "call 1 has 0 as its block_size, which must be at least 1"),
        (put("state.num_blocks", -1), "call 1 has -1 as its num_blocks, which must be at least 1"),
    ],
)
def test_the_first_event_that_does_not_keep_to_the_schema_is_named(
    change: Callable[[list[Event]], None], said: str
) -> None:
    events = copy.deepcopy(record(Reference(8, 4), 8, 4, [("allocate", 1, 9), ("free", 1)]))
    assert (events[2]["kind"], "state" in events[2]) == ("write", True)
    change(events)
    with pytest.raises(ValueError, match=said):
        check_log(events)


def test_what_is_no_list_of_events_is_refused() -> None:
    with pytest.raises(ValueError, match="events is empty"):
        check_log([])
    with pytest.raises(ValueError, match="event 0 is 'create', not an object"):
        check_log(["create"])  # type: ignore[list-item]
    events = record(Reference(8, 4), 8, 4, [("allocate", 1, 9)])
    events[1]["state"] = events[2]["state"]
    with pytest.raises(ValueError, match="event 1 is not the last event of its call, but it has a state"):
        check_log(events)


def test_a_fault_where_no_player_would_look_is_refused() -> None:
    events = record(Reference(8, 4), 8, 4, [("allocate", 1, 9)])
    events[1]["fault"] = "Two sequences hold block 3."
    with pytest.raises(ValueError, match="event 1 is not the last event of its call, but it has a fault"):
        check_log(events)
