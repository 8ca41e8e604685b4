"""The pool under any sequence of calls: counts, free list and refusals agree with a plain model, invariants hold."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from labkit.contracts import OutOfBlocks
from reference_impl.memory import BlockPool


class PoolMachine(RuleBasedStateMachine):
    """A Counter of holders is the model: a block is free exactly when it is not in it."""

    @initialize(num_blocks=st.integers(1, 12))
    def build(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.holders: Counter[int] = Counter()

    @property
    def free(self) -> int:
        return self.pool.num_blocks - len(self.holders)

    @rule(count=st.integers(0, 14))
    def take(self, count: int) -> None:
        if count > self.free:
            with pytest.raises(OutOfBlocks, match=f"{count} blocks needed, {self.free} free"):
                self.pool.take(count)
            return
        taken = self.pool.take(count)
        assert len(set(taken)) == count
        assert not self.holders.keys() & set(taken)
        self.holders.update(taken)

    @rule(choice=st.integers(0, 99))
    def share_any_block_even_a_free_one(self, choice: int) -> None:
        block = choice % self.pool.num_blocks
        self.pool.share([block])
        self.holders[block] += 1

    @precondition(lambda self: self.holders)
    @rule(choices=st.lists(st.integers(0, 99), max_size=5))
    def release_some(self, choices: list[int]) -> None:
        held = sorted(self.holders)
        blocks = [held[choice % len(held)] for choice in choices]
        if any(times > self.holders[block] for block, times in Counter(blocks).items()):
            with pytest.raises(ValueError, match="released"):
                self.pool.release(blocks)
            return
        self.pool.release(blocks)
        self.holders.subtract(blocks)
        self.holders += Counter()

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.pool.check_invariants()
        assert self.pool.num_free == self.free
        for block in range(self.pool.num_blocks):
            assert self.pool.ref_count(block) == self.holders[block]


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_blocks_are_reused_oldest_freed_first() -> None:
    pool = BlockPool(4)
    pool.release(reversed(pool.take(4)))
    assert pool.take(4) == [3, 2, 1, 0]


def test_blocks_taken_together_are_the_oldest_free_ones_wherever_the_list_was_torn() -> None:
    pool = BlockPool(6)
    pool.share([2])
    assert pool.take(3) == [0, 1, 3]
    pool.release([1, 2, 0])
    assert pool.take(0) == []
    assert pool.take(5) == [4, 5, 1, 2, 0]
    assert pool.num_free == 0
    pool.release([5, 4])
    assert pool.take(2) == [5, 4]
    pool.check_invariants()


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        BlockPool(2).take(-1)


def test_a_double_free_at_the_end_of_a_release_undoes_its_beginning() -> None:
    pool = BlockPool(4)
    pool.take(3)
    pool.share([1])
    with pytest.raises(ValueError, match="block 2 released 2 times, held 1 times"):
        pool.release([0, 1, 1, 2, 2])
    assert [pool.ref_count(block) for block in range(4)] == [1, 2, 1, 0]
    assert pool.take(1) == [3]
    pool.check_invariants()


def test_a_block_released_twice_in_one_call_is_a_double_free_and_changes_nothing() -> None:
    # vLLM #42571: each occurrence was counted down and appended, and the free count grew by two.
    pool = BlockPool(2)
    (block,) = pool.take(1)
    with pytest.raises(ValueError, match=f"block {block} released 2 times, held 1 times"):
        pool.release([block, block])
    assert (pool.num_free, pool.ref_count(block)) == (1, 1)


def test_a_free_block_is_revived_from_the_middle_of_the_free_list() -> None:
    pool = BlockPool(5)
    pool.share([2])
    assert pool.take(4) == [0, 1, 3, 4]
    pool.check_invariants()


def test_an_empty_pool_is_refused_by_its_size() -> None:
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        BlockPool(0)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda pool: pool._ref_count.__setitem__(0, 1), "I3: free block 0 has 1 holders"),
        (lambda pool: setattr(pool, "num_free", 1), "I1: 3 blocks in the free list, 1 counted"),
        (lambda pool: pool._next.__setitem__(1, 1), "I3"),
        (lambda pool: pool._unlink(2), "I3: block 2 has no holder"),
    ],
)
def test_the_invariants_name_the_offender(harm: object, words: str) -> None:
    pool = BlockPool(3)
    harm(pool)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=words):
        pool.check_invariants()
