"""What a state says of its blocks: each in one cell, each of one kind, and the tally beside the scheduler's own."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.event_log import Event
from reference_impl.engine.watch.letters import LETTERS, Letters
from reference_impl.engine.watch.state import (
    Kind,
    blocks_of,
    cells_of,
    counts_of,
    host_cells,
    rows_of,
    tally_of,
)
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand
from tests.reference_impl.engine.watch.logs import SIZE, forked, served, states


def kind_by_definition(state: dict[str, Any], block: int) -> Kind:
    holders = [request for request, table in state["tables"].items() if block in table]
    if holders:
        return Kind.HELD if len(holders) == 1 else Kind.SHARED
    if state["ref_counts"][block] > 0:
        return Kind.LOST
    return Kind.IDLE if block in state.get("published", []) else Kind.FREE


@given(states(), st.integers(1, 50))
def test_every_block_is_in_one_cell_and_of_the_kind_that_the_tables_say(state: dict[str, Any], most: int) -> None:
    blocks = blocks_of(state)
    kinds = [kind_by_definition(state, block) for block in range(state["num_blocks"])]
    assert [block.kind for block in blocks] == kinds
    cells = cells_of(blocks, state["block_size"], most)
    assert len(cells) <= most
    assert [place for cell in cells for place in range(cell.first, cell.first + cell.num_blocks)] == list(
        range(len(blocks))
    )
    assert len({cell.num_blocks for cell in cells[:-1]}) <= 1
    for cell in cells:
        part = blocks[cell.first : cell.first + cell.num_blocks]
        holders = {
            request
            for request, table in state["tables"].items()
            for block in table
            if block in range(cell.first, cell.first + cell.num_blocks)
        }
        assert cell.holder is None or holders == {cell.holder}
        if cell.num_blocks > 1:
            held = sum(block.kind in (Kind.HELD, Kind.SHARED, Kind.LOST) for block in part)
            idle = sum(block.kind is Kind.IDLE for block in part)
            assert (cell.eighths == 8) == (len(part) in (held, idle))
            assert (cell.eighths == 0) == (held == idle == 0)


@given(states())
def test_the_counts_are_those_of_the_tables(state: dict[str, Any]) -> None:
    counts = counts_of(blocks_of(state), state["block_size"])
    numbers = range(state["num_blocks"])
    kinds = [kind_by_definition(state, block) for block in numbers]
    assert [counts.free, counts.idle, counts.held, counts.shared, counts.lost] == [kinds.count(kind) for kind in Kind]
    held = {block for table in state["tables"].values() for block in table if block in numbers}
    size = state["block_size"]
    written = {block: min(size, max(0, state["filled"][block])) for block in held}
    assert counts.held_slots == len(held) * size
    assert counts.written_slots == sum(written.values())
    assert counts.partly == sum(slots < size for slots in written.values())
    assert counts.all_slots == len(numbers) * size


@given(states(), st.integers(1, 50))
def test_the_host_is_shown_whole_whatever_its_size(state: dict[str, Any], most: int) -> None:
    cells = host_cells(state, most)
    assert sum(cell.num_blocks for cell in cells) == max(0, state.get("num_host_blocks", 0))
    assert len(cells) <= most
    for request, ids in state.get("host", {}).items():
        for block in ids:
            for cell in cells:
                if cell.first <= block < cell.first + cell.num_blocks:
                    assert cell.eighths
                    assert cell.holder in (request, None)


def test_a_row_has_the_tokens_the_table_and_what_is_shared_of_it() -> None:
    log = forked()
    state = log.events[-1]["state"]
    rows = [(row.request, row.num_tokens, row.num_blocks, row.num_shared) for row in rows_of(state, blocks_of(state))]
    # Request 2 has copied the tail of 10 tokens; the two full blocks and the others' tail are shared still.
    assert rows == [("1", 10, 3, 3), ("2", 11, 3, 2), ("3", 10, 3, 3)]


@pytest.mark.parametrize("recovery", ["swap", "recompute"])
def test_the_tally_of_a_log_is_what_the_scheduler_counted(recovery: str) -> None:
    log, scheduler = served(recovery)
    tally, counters = tally_of(log.events, len(log.events)), scheduler.counters
    assert counters.preemptions > 0
    assert counters.reused_tokens > 0
    assert scheduler.memory.num_evicted > 0
    assert tally.admitted == counters.admitted
    assert tally.finished == counters.finished
    assert tally.preempted == counters.preemptions
    assert tally.to_host == counters.swaps_out
    assert tally.hits * SIZE == counters.reused_tokens
    assert tally.evicted == scheduler.memory.num_evicted


def test_blocks_shared_by_a_fork_are_no_hits() -> None:
    log = forked()
    tally = tally_of(log.events, len(log.events))
    assert (tally.hits, tally.copies, tally.admitted) == (0, 1, 1)


def test_evicted_are_blocks_and_not_happenings() -> None:
    log = EventLog()
    manager = KVManager(4, SIZE, prefix_cache="hash", log=log)
    for request, token in ((1, 5), (2, 6)):
        manager.admit(Demand(request, 16, 1, token_ids=array("i", [token] * 16)), 16)
        manager.commit(request, 16)
        manager.free(request)
    assert log.counts()["evict"] == 1
    assert tally_of(log.events, len(log.events)).evicted == manager.num_evicted == 4


def test_the_tally_of_the_first_events_knows_nothing_of_the_others() -> None:
    events: list[Event] = served()[0].events
    for number in (0, 1, 50):
        assert tally_of(events, number).events == number
        assert tally_of(events, number).admitted == sum(event["kind"] == "admit" for event in events[:number])


@settings(max_examples=50)
@given(st.lists(st.sets(st.integers(0, 400), max_size=70), max_size=12))
def test_a_request_keeps_its_letter_and_two_have_one_only_where_there_are_too_few(crowds: list[set[int]]) -> None:
    letters, before = Letters(), dict[str, str]()
    for crowd in crowds:
        now = letters.of(map(str, crowd))
        letters.check_invariants()
        assert now.keys() == set(map(str, crowd))
        assert set(now.values()) <= set(LETTERS)
        if len(crowd) <= len(LETTERS) and len(set(before.values())) == len(before):
            assert len(set(now.values())) == len(now)
            assert all(now[request] == letter for request, letter in before.items() if request in now)
        before = now


def test_a_letter_that_two_had_to_have_is_one_s_own_when_there_are_enough_again() -> None:
    letters = Letters()
    crowded = letters.of(map(str, range(60)))
    assert crowded["0"] == crowded["52"] == "A"
    now = letters.of(["0", "52", "3", "55"])
    letters.check_invariants()
    assert (now["0"], now["3"]) == ("A", "D")
    assert len(set(now.values())) == 4


def test_the_first_requests_have_the_first_letters() -> None:
    assert Letters().of(map(str, range(52))) == {str(number): letter for number, letter in enumerate(LETTERS)}
    assert LETTERS[:3] + LETTERS[26:29] == "ABCabc"
