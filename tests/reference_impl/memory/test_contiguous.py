"""Contiguous memory under any sequence of calls: one unit map is the model, for first fit, best fit and buddies."""

from __future__ import annotations

from collections import deque
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from labkit.contracts import ContiguousAllocator as Contract
from labkit.contracts import OutOfMemory
from reference_impl.memory.contiguous import (
    ContiguousAllocator,
    Event,
    attack,
    external_fragmentation,
    kv_bytes_per_token,
    units_moved,
)


class UnitMap(RuleBasedStateMachine):
    """The model is a list with the owner of every unit; holes are its runs of None."""

    owners = st.integers(0, 7)

    @initialize(capacity=st.integers(1, 40), fit=st.sampled_from(["first", "best"]))
    def build(self, capacity: int, fit: str) -> None:
        self.memory = ContiguousAllocator(capacity, fit)  # type: ignore[arg-type]
        self.units: list[int | None] = [None] * capacity

    def model_holes(self) -> list[tuple[int, int]]:
        runs = groupby(range(len(self.units)), key=self.units.__getitem__)
        return [(run[0], len(run)) for owner, group in runs if owner is None and (run := list(group))]

    @rule(owner=owners, size=st.integers(1, 16))
    def allocate(self, owner: int, size: int) -> None:
        if owner in self.units:
            with pytest.raises(ValueError, match=f"owner {owner} has a range already"):
                self.memory.allocate(owner, size)
            return
        fitting = [(length, start) for start, length in self.model_holes() if length >= size]
        if not fitting:
            with pytest.raises(OutOfMemory, match=f"{size} in a row needed"):
                self.memory.allocate(owner, size)
            return
        expected = min(fitting)[1] if self.memory.fit == "best" else min(start for _, start in fitting)
        assert self.memory.allocate(owner, size) == expected
        self.units[expected : expected + size] = [owner] * size

    @rule(owner=owners)
    def free(self, owner: int) -> None:
        if owner not in self.units:
            with pytest.raises(KeyError, match=f"no owner {owner}"):
                self.memory.free(owner)
            return
        self.memory.free(owner)
        self.units = [None if unit == owner else unit for unit in self.units]

    @precondition(lambda self: any(unit is not None for unit in self.units))
    @rule(data=st.data(), size=st.integers(1, 6))
    def extend(self, data: st.DataObject, size: int) -> None:
        owner = data.draw(st.sampled_from(sorted({unit for unit in self.units if unit is not None})))
        end = len(self.units) - self.units[::-1].index(owner)
        fits = self.units[end : end + size] == [None] * size
        assert self.memory.extend(owner, size) == fits
        if fits:
            self.units[end : end + size] = [owner] * size

    @rule()
    def compact(self) -> None:
        before, held = self.units, [unit for unit in self.units if unit is not None]
        copied = list(before)
        moves = self.memory.compact()
        for move in moves:
            # Only sources still intact may be read: lowest first is a safe order.
            assert copied[move.source : move.source + move.size] == [move.owner] * move.size
            copied[move.start : move.start + move.size] = [move.owner] * move.size
        self.units = held + [None] * (len(before) - len(held))
        assert copied[: len(held)] == held
        first_hole = before.index(None) if None in before else len(before)
        assert units_moved(moves) == sum(unit is not None for unit in before[first_hole:])

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.memory.check_invariants()
        assert self.memory.holes() == self.model_holes()
        for owner in {unit for unit in self.units if unit is not None}:
            assert self.memory.range_of(owner) == (self.units.index(owner), self.units.count(owner))


TestUnitMap = UnitMap.TestCase
TestUnitMap.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_it_has_the_shape_of_the_contract() -> None:
    assert isinstance(ContiguousAllocator(1), Contract)


def test_best_fit_keeps_the_long_hole_that_first_fit_cuts() -> None:
    def holes(fit: str) -> list[tuple[int, int]]:
        memory = ContiguousAllocator(12, fit)  # type: ignore[arg-type]
        for owner, size in enumerate([6, 1, 3, 2]):
            memory.allocate(owner, size)
        memory.free(0)
        memory.free(2)
        memory.allocate(9, 3)
        return memory.holes()

    assert holes("first") == [(3, 3), (7, 3)]
    assert holes("best") == [(0, 6)]


def test_a_refusal_says_what_was_needed_and_what_was_free() -> None:
    memory = ContiguousAllocator(5)
    for owner, size in enumerate([2, 1, 2]):
        memory.allocate(owner, size)
    memory.free(0)
    memory.free(2)
    with pytest.raises(OutOfMemory, match="3 in a row needed, the largest hole is 2, 4 free in all"):
        memory.allocate(9, 3)
    assert memory.holes() == [(0, 2), (3, 2)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ContiguousAllocator(0), "capacity must be at least 1, got 0"),
        (lambda: ContiguousAllocator(4, "worst"), "fit must be 'first' or 'best', got 'worst'"),  # type: ignore[arg-type]
        (lambda: ContiguousAllocator(4).allocate(1, 0), "size must be at least 1, got 0"),
        (lambda: kv_bytes_per_token(2, 0, 64, 2), "num_kv_heads must be at least 1, got 0"),
        (lambda: attack(2, 5), "capacity must be at least 3"),
        (lambda: attack(9, 1), "max_size must be at least 2"),
    ],
)
def test_a_bad_argument_is_named(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


def test_a_size_that_is_no_integer_is_refused_and_changes_nothing() -> None:
    memory = ContiguousAllocator(4)
    with pytest.raises(TypeError):
        memory.allocate(1, 2.0)  # type: ignore[arg-type]
    assert memory.holes() == [(0, 4)]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda memory: memory._ranges.__setitem__(1, (0, 3)), "owner 2 starts at 2"),
        (lambda memory: memory._ranges.pop(1), "starts at 2"),
        (
            lambda memory: (memory._hole_starts.append(7), memory.__dict__.update(_hole_sizes=[1, 1])),
            "holes touch at 7",
        ),
    ],
)
def test_the_invariants_name_the_offender(harm: object, words: str) -> None:
    memory = ContiguousAllocator(8)
    memory.allocate(1, 2)
    memory.allocate(2, 4)
    harm(memory)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=words):
        memory.check_invariants()


@given(st.lists(st.integers(1, 50), max_size=8))
def test_external_fragmentation_is_what_lies_outside_the_largest_hole(sizes: list[int]) -> None:
    share = external_fragmentation([(100 * place, size) for place, size in enumerate(sizes)])
    assert 0 <= share < 1
    assert (share == 0) == (len(sizes) <= 1)
    if sizes:
        assert share * sum(sizes) == pytest.approx(sum(sorted(sizes)[:-1]))


def test_the_kv_of_one_token_of_opt_13b_takes_800_kib() -> None:
    # Kwon et al., section 3: 2 (key and value) x 5120 (hidden) x 40 (layers) x 2 bytes.
    assert kv_bytes_per_token(num_layers=40, num_kv_heads=40, head_dim=128, dtype_bytes=2) == 800 * 1024


def refused_with_enough_free(program: list[Event], capacity: int) -> bool:
    """Whether the last call of `program`, and no other, is refused by first fit although as much is free."""
    memory = ContiguousAllocator(capacity)
    for call, *arguments in program[:-1]:
        getattr(memory, str(call))(*arguments)
    last, owner, size = program[-1]  # type: ignore[misc]
    assert last == "allocate"
    free = sum(length for _, length in memory.holes())
    try:
        memory.allocate(owner, size)
    except OutOfMemory:
        return free >= size
    return False


@pytest.mark.parametrize("capacity", [3, 4, 5, 7, 16, 97, 100, 1024, 15_728])
@pytest.mark.parametrize("max_size", [2, 3, 4, 10, 16, 1000, 20_000])
def test_the_attack_ends_in_a_refusal_though_enough_is_free(capacity: int, max_size: int) -> None:
    program = attack(capacity, max_size)
    assert refused_with_enough_free(program, capacity)
    assert all(1 <= event[2] <= max_size for event in program if event[0] == "allocate")


def shortest_attack(capacity: int, max_size: int) -> int:
    """Calls of the shortest program there is, by breadth-first search over every state of the memory.

    A state is the row of (size, held) pieces: names of owners do not matter to first fit.
    """
    start = ((capacity, False),)
    seen, queue = {start}, deque([(start, 0)])
    while queue:
        pieces, calls = queue.popleft()
        holes = [size for size, held in pieces if not held]
        if holes and max(holes) < min(sum(holes), max_size):
            return calls + 1
        for after in successors(pieces, max_size) - seen:
            seen.add(after)
            queue.append((after, calls + 1))
    raise AssertionError("no attack")


def successors(pieces: tuple[tuple[int, bool], ...], max_size: int) -> set[tuple[tuple[int, bool], ...]]:
    found = set()
    for size in range(1, max_size + 1):
        hole = next((place for place, (length, held) in enumerate(pieces) if not held and length >= size), None)
        if hole is not None:
            rest = ((pieces[hole][0] - size, False),) if pieces[hole][0] > size else ()
            found.add((*pieces[:hole], (size, True), *rest, *pieces[hole + 1 :]))
    for place, (_, held) in enumerate(pieces):
        if held:
            row = [*pieces[:place], (pieces[place][0], False), *pieces[place + 1 :]]
            merged: list[tuple[int, bool]] = []
            for length, used in row:
                if merged and not used and not merged[-1][1]:
                    merged[-1] = (merged[-1][0] + length, False)
                else:
                    merged.append((length, used))
            found.add(tuple(merged))
    return found


@pytest.mark.parametrize("capacity", range(3, 10))
def test_no_program_is_shorter_than_the_attack(capacity: int) -> None:
    for max_size in range(2, capacity + 2):
        assert len(attack(capacity, max_size)) == shortest_attack(capacity, max_size)
