"""The buddy system under any sequence of calls: aligned powers of two, merged as far as they can be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from labkit.contracts import OutOfMemory
from reference_impl.memory.buddy import BuddyAllocator
from reference_impl.memory.contiguous import ContiguousAllocator


class BuddyMachine(RuleBasedStateMachine):
    """The model is who asked for how much; tiling, alignment and merging are the allocator's own invariants."""

    owners = st.integers(0, 7)

    @initialize(capacity=st.integers(1, 70))
    def build(self, capacity: int) -> None:
        self.memory = BuddyAllocator(capacity)
        self.empty = self.memory.holes()
        self.asked: dict[int, int] = {}

    @rule(owner=owners, size=st.integers(1, 40))
    def allocate(self, owner: int, size: int) -> None:
        before = self.memory.holes()
        if owner in self.asked:
            with pytest.raises(ValueError, match=f"owner {owner} has a range already"):
                self.memory.allocate(owner, size)
        elif max((length for _, length in before), default=0) < size:
            # A free range of at least `size` units is at least the next power of two: both are powers or the root.
            with pytest.raises(OutOfMemory, match="in a row needed"):
                self.memory.allocate(owner, size)
        else:
            start = self.memory.allocate(owner, size)
            smallest = min(length for _, length in before if length >= size)
            assert start == min(place for place, length in before if length == smallest)
            self.asked[owner] = size
            return
        assert self.memory.holes() == before

    @rule(owner=owners)
    def free(self, owner: int) -> None:
        if owner not in self.asked:
            with pytest.raises(KeyError, match=f"no owner {owner}"):
                self.memory.free(owner)
            return
        self.memory.free(owner)
        del self.asked[owner]

    @invariant()
    def a_range_is_less_than_twice_what_was_asked(self) -> None:
        self.memory.check_invariants()
        for owner, size in self.asked.items():
            assert size <= self.memory.range_of(owner)[1] < 2 * size

    @invariant()
    def nothing_is_left_split_when_nobody_holds_anything(self) -> None:
        if not self.asked:
            assert self.memory.holes() == self.empty


TestBuddy = BuddyMachine.TestCase
TestBuddy.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.integers(1, 10_000))
def test_an_empty_memory_is_the_binary_digits_of_its_capacity(capacity: int) -> None:
    memory = BuddyAllocator(capacity)
    sizes = [size for _, size in memory.holes()]
    assert sum(sizes) == capacity
    assert len(sizes) == capacity.bit_count()
    assert sizes == sorted(sizes, reverse=True)
    assert memory.longest_possible == sizes[0]


def test_neighbours_that_are_no_buddies_stay_apart_where_first_fit_would_join_them() -> None:
    buddies, first_fit = BuddyAllocator(8), ContiguousAllocator(8)
    for memory in (buddies, first_fit):
        for owner in range(4):
            memory.allocate(owner, 2)
        memory.free(1)
        memory.free(2)
    assert first_fit.holes() == [(2, 4)]
    assert buddies.holes() == [(2, 2), (4, 2)]
    first_fit.allocate(9, 4)
    with pytest.raises(OutOfMemory, match="4 in a row needed, the largest hole is 2, 4 free in all"):
        buddies.allocate(9, 3)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda memory: memory._free[2].append(0), "starts at 0"),
        (lambda memory: memory._ranges.__setitem__(1, (1, 1)), "starts at"),
        (lambda memory: memory._ranges.pop(1), "starts at 2"),
        (lambda memory: (memory._ranges.pop(1), memory._free[1].insert(0, 0)), "free buddies apart at 0"),
    ],
)
def test_the_invariants_name_the_offender(harm: object, words: str) -> None:
    memory = BuddyAllocator(8)
    memory.allocate(1, 2)
    harm(memory)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=words):
        memory.check_invariants()


def test_an_empty_memory_is_refused_by_its_size() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        BuddyAllocator(0)
