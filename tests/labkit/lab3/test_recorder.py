"""The recorder's log says what happened, and notices what must not happen."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from labkit.contracts import BlockAllocator as Contract
from labkit.contracts import OutOfBlocks
from labkit.event_log import Event, check_log
from labkit.recorder import Recorder, record
from reference_impl.memory import BlockAllocator as Reference
from tests.labkit.lab3.mistakes import MISTAKES, Mistake, never_copies, takes_what_it_can_before_it_fails

FORK_AND_WRITE: list[tuple[Any, ...]] = [
    ("allocate", 1, 6),
    ("fork", 1, 2),
    ("append", 2),
    ("append", 1, 3),
    ("free", 1),
]


def faults(events: list[Event]) -> list[str]:
    return [event["fault"] for event in events if event.get("fault")]


def test_a_recorder_is_an_allocator_with_the_same_answers() -> None:
    plain, recorder = Reference(8, 4), Recorder(Reference(8, 4), 8, 4)
    assert isinstance(recorder, Contract)
    for allocator in (plain, recorder):
        allocator.allocate(1, 6)
        allocator.fork(1, 2)
    assert recorder.append(2, 3) == plain.append(2, 3) != []
    assert recorder.block_table(2) == plain.block_table(2)
    assert recorder.slot_mapping(2, 0, 9) == plain.slot_mapping(2, 0, 9)
    assert recorder.num_tokens(2) == 9
    assert recorder.num_free_blocks == plain.num_free_blocks


def test_each_call_becomes_its_events_in_order() -> None:
    events = record(Reference(8, 4), 8, 4, FORK_AND_WRITE)
    kinds = [(event["call"], event["kind"]) for event in events]
    assert kinds == [
        (0, "create"),
        *[(1, "allocate"), (1, "write")],
        (2, "share"),
        *[(3, "copy"), (3, "write")],
        *[(4, "allocate"), (4, "write")],
        (5, "free"),
    ]


def test_the_state_after_a_call_is_what_the_allocator_shows() -> None:
    allocator = Reference(8, 4)
    events = record(allocator, 8, 4, FORK_AND_WRITE[:-1])
    state = events[-1]["state"]
    assert state["num_free"] == allocator.num_free_blocks
    assert state["tables"] == {"1": allocator.block_table(1), "2": allocator.block_table(2)}
    assert state["tokens"] == {"1": 9, "2": 7}
    head, copied = allocator.block_table(1)[0], allocator.block_table(2)[1]
    assert (state["ref_counts"][head], state["filled"][head]) == (2, 4)
    assert (state["ref_counts"][copied], state["filled"][copied]) == (1, 3)
    assert sum(count == 0 for count in state["ref_counts"]) == state["num_free"]


def test_the_log_is_plain_json() -> None:
    events = record(Reference(8, 4), 8, 4, [*FORK_AND_WRITE, ("allocate", 9, 900)])
    assert json.loads(json.dumps(events)) == events


def test_a_refusal_is_an_event_and_still_an_error() -> None:
    recorder = Recorder(Reference(2, 4), 2, 4)
    with pytest.raises(OutOfBlocks):
        recorder.allocate(1, 9)
    assert recorder.events[-1]["kind"] == "refused"
    assert recorder.events[-1]["sentence"] == "allocate(1, 9) is refused: OutOfBlocks."
    assert recorder.events[-1]["state"]["num_free"] == 2


def test_another_error_is_a_failure_with_its_message(model_solution: Any) -> None:
    class Crashes(model_solution):
        def fork(self, parent: int, child: int) -> None:
            raise IndexError("list index out of range")

    events = record(Crashes(8, 4), 8, 4, [("allocate", 1, 6), ("fork", 1, 2), ("append", 1)])
    assert [event["kind"] for event in events if event["call"] == 2] == ["failed"]
    assert "IndexError: list index out of range" in next(e["sentence"] for e in events if e["kind"] == "failed")
    assert events[-1]["kind"] == "write", "the program goes on"


def test_an_unwritten_method_does_not_end_the_log(model_solution: Any) -> None:
    class Started(model_solution):
        def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
            raise NotImplementedError

    events = record(Started(8, 4), 8, 4, [("allocate", 1, 6), ("free", 1)])
    assert "not written yet" in events[1]["sentence"]
    assert len({event["call"] for event in events}) == 3


def test_an_overwritten_token_is_a_fault_of_the_step_that_lost_it(model_solution: Any) -> None:
    events = record(never_copies(model_solution)(8, 4), 8, 4, FORK_AND_WRITE)
    first = next(event for event in events if event.get("fault"))
    assert first["call"] == 4
    assert first["fault"].startswith("Token 6 of sequence 2 is lost")


def test_a_refused_call_that_changes_something_is_a_fault(model_solution: Any) -> None:
    events = record(takes_what_it_can_before_it_fails(model_solution)(4, 4), 4, 4, [("allocate", 1, 20)])
    assert faults(events) == ["A refused call must change nothing, but this one did."]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_log_can_be_made_of_any_wrong_allocator(mistake: Mistake, model_solution: Any) -> None:
    program = [*FORK_AND_WRITE, ("allocate", 1, 30), ("allocate", 3, 200), ("append", 1, 0), ("free", 2), ("free", 2)]
    events = record(mistake(model_solution)(9, 4), 9, 4, program)
    check_log(events)
    assert events[-1]["call"] == len(program)
    assert all("fault" in event for event in events if event is events[-1])


def test_a_right_allocator_has_no_fault() -> None:
    assert faults(record(Reference(4, 2), 4, 2, [*FORK_AND_WRITE, ("append", 2, 40), ("free", 7)])) == []


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 4), (4, 0), (-1, 4)])
def test_sizes_below_one_are_refused_by_name(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="num_blocks and block_size"):
        Recorder(Reference(4, 4), num_blocks, block_size)


def test_an_allocator_in_use_or_of_another_size_is_refused() -> None:
    used = Reference(4, 4)
    used.allocate(1, 1)
    with pytest.raises(ValueError, match="it has 3 free blocks"):
        Recorder(used, 4, 4)


def test_a_program_of_other_calls_is_refused_before_it_runs() -> None:
    allocator = Reference(4, 4)
    with pytest.raises(ValueError, match="'block_table'"):
        record(allocator, 4, 4, [("allocate", 1, 4), ("block_table", 1)])
    assert allocator.num_free_blocks == 4


@pytest.mark.parametrize(
    "call", [(), ("allocate",), ("allocate", 1), ("allocate", 1, 2, 3), ("fork", 1), ("free", 1, 1)]
)
def test_a_call_with_too_few_or_too_many_arguments_is_refused_and_not_left_out_of_the_log(
    call: tuple[Any, ...],
) -> None:
    allocator = Reference(8, 4)
    with pytest.raises(ValueError, match="call 1 of the program"):
        record(allocator, 8, 4, [("allocate", 0, 5), call])
    assert allocator.num_free_blocks == 8, "before anything is run"


def test_integers_may_be_whatever_index_takes_and_the_log_is_still_one() -> None:
    numbers = [np.int64(number) for number in (8, 4, 1, 6)]
    events = record(
        Reference(8, 4), numbers[0], numbers[1], [("allocate", numbers[2], numbers[3]), ("free", numbers[2])]
    )
    check_log(json.loads(json.dumps(events)))
    assert events == record(Reference(8, 4), 8, 4, [("allocate", 1, 6), ("free", 1)])


def test_an_id_that_is_no_integer_is_a_failure_in_a_log_that_can_be_played() -> None:
    events = record(Reference(8, 4), 8, 4, [("allocate", "a", 6)])
    assert (events[-1]["kind"], events[-1]["seq"]) == ("failed", None)
    check_log(events)
