"""Tables as rows that are kept: whatever happens to a table between two steps, its row is the table."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reference_impl.engine.table_rows import TableRows

BLOCKS, SIZE = 40, 4


class Told:
    """A memory whose tables are what a test says."""

    num_blocks, block_size = BLOCKS, SIZE

    def __init__(self, tables: dict[int, list[int]]) -> None:
        self.tables = tables

    def block_table(self, request: int) -> list[int]:
        return list(self.tables[request])


def rows_of(tables: dict[int, list[int]]) -> TableRows:
    return TableRows(Told(tables))  # type: ignore[arg-type]


def test_rows_hold_the_blocks_of_the_first_tokens_and_nothing_behind_them() -> None:
    rows = rows_of({7: [3, 1, 4], 8: [5], 9: [9, 2, 6]})
    assert rows.of([7, 9, 8], [9, 5, 4]).tolist() == [[3, 1, 4], [9, 2, -1], [5, -1, -1]]


def test_what_was_given_out_is_the_callers_own() -> None:
    rows = rows_of({7: [3, 1]})
    given = rows.of([7], [8])
    given[:] = 0
    assert rows.of([7], [8]).tolist() == [[3, 1]]


def test_a_block_that_was_copied_is_another_in_a_table_of_the_same_length() -> None:
    tables = {7: [3, 1]}
    rows = rows_of(tables)
    rows.of([7], [6])
    tables[7] = [3, 2]
    assert rows.of([7], [7]).tolist() == [[3, 2]]


def test_a_memory_that_gives_out_its_own_list_is_not_compared_with_itself() -> None:
    memory = Told({7: [3]})
    memory.block_table = lambda request: memory.tables[request]  # type: ignore[method-assign]
    rows = TableRows(memory)  # type: ignore[arg-type]
    assert rows.of([7], [4]).tolist() == [[3]]
    memory.tables[7].append(1)
    memory.tables[7][0] = 2
    assert rows.of([7], [8]).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([3, 1], "request 7: 2 blocks of 4 have no slot for token 8"),
        ([3, 1, 40], "request 7 was given block 40; there are 0 to 39"),
        ([3, 1, -1], "request 7 was given block -1; there are 0 to 39"),
        ([-2, 1, 5], "request 7 was given block -2; there are 0 to 39"),
    ],
)
@pytest.mark.parametrize("before", [[], [3, 1], [8, 8, 8, 8]], ids=["new", "grown", "other"])
def test_a_table_that_cannot_be_is_named_and_leaves_the_rows_true(
    table: list[int], before: list[int], said: str
) -> None:
    tables = {7: before, 8: [5]}
    rows = rows_of(tables)
    if before:
        rows.of([7, 8], [len(before) * SIZE, 1])
    tables[7] = table
    with pytest.raises(ValueError, match=said):
        rows.of([8, 7], [1, 9])
    rows.check_invariants()
    tables[7] = [3, 1, 4]
    assert rows.of([8, 7], [1, 9]).tolist() == [[5, -1, -1], [3, 1, 4]]


def test_a_request_that_memory_does_not_know_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="6"):
        rows_of({}).of([6], [1])


def test_rows_of_those_who_are_gone_do_not_pile_up() -> None:
    tables = {request: [request % BLOCKS] for request in range(10_000)}
    rows = rows_of(tables)
    for request in range(10_000):
        rows.of([request], [1])
        rows.check_invariants() if request % 500 == 0 else None
    assert len(rows._rows) <= 256


class Steps(RuleBasedStateMachine):
    """Tables grow, lose their tail, are written anew, end and come back; steps ask for some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, list[int]] = {}
        self.rows = rows_of(self.tables)

    @rule(request=st.integers(0, 4), blocks=st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=12))
    def is_another(self, request: int, blocks: list[int]) -> None:
        self.tables[request] = blocks

    @rule(data=st.data(), blocks=st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=9))
    def grows(self, data: st.DataObject, blocks: list[int]) -> None:
        if self.tables:
            self.tables[data.draw(st.sampled_from(sorted(self.tables)))] += blocks

    @rule(data=st.data(), block=st.integers(0, BLOCKS - 1))
    def copies_its_tail(self, data: st.DataObject, block: int) -> None:
        if self.tables:
            self.tables[data.draw(st.sampled_from(sorted(self.tables)))][-1] = block

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        if self.tables:
            del self.tables[data.draw(st.sampled_from(sorted(self.tables)))]

    @rule(data=st.data())
    def a_step(self, data: st.DataObject) -> None:
        some = st.lists(st.sampled_from(sorted(self.tables)), unique=True) if self.tables else st.just([])
        requests: list[Any] = data.draw(some)
        counts = [data.draw(st.integers(1, len(self.tables[request]))) for request in requests]
        tokens = [count * SIZE - data.draw(st.integers(0, SIZE - 1)) for count in counts]
        width = max(counts, default=0)
        expected = [
            self.tables[request][:count] + [-1] * (width - count)
            for request, count in zip(requests, counts, strict=True)
        ]
        assert self.rows.of(requests, tokens).tolist() == expected

    @invariant()
    def holds(self) -> None:
        self.rows.check_invariants()


Steps.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_rows_are_the_tables_whatever_happens_between_two_steps = Steps.TestCase
