"""Bugs of pools, tables and allocators: blocks freed twice, lost, or still on a list they had left.

The threads named are where engines met them. See `mutants.py` for what becomes of MUTANTS.
"""

from __future__ import annotations

from itertools import permutations

import pytest

from labkit.contracts import OutOfBlocks
from reference_impl.memory import BlockAllocator, BlockPool, BlockTable
from tests.bugs.mutants import Mutant


@pytest.mark.parametrize("order", list(permutations((1, 2, 3, 4))), ids=str)
def test_bug_01_forks_end_in_any_order_and_each_block_is_free_exactly_once(order: tuple[int, ...]) -> None:
    # vLLM #1556 and #1930: "Double free!" when the members of a beam ended, or a long request was cancelled.
    allocator = BlockAllocator(8, 2)
    allocator.allocate(1, 5)
    for child in (2, 3, 4):
        allocator.fork(1, child)
    allocator.append(2)
    for ended, seq in enumerate(order, start=1):
        allocator.free(seq)
        allocator.check_invariants()
        with pytest.raises(KeyError):
            allocator.free(seq)
        assert (allocator.num_free_blocks == 8) == (ended == 4)
    allocator.allocate(5, 16)
    assert sorted(allocator.block_table(5)) == list(range(8))


def test_bug_02_a_block_named_twice_in_one_release_is_freed_once_or_refused() -> None:
    # vLLM #42571: free_blocks([b, b]) went below zero, and put the block into the free list twice.
    pool = BlockPool(3)
    (block,) = pool.take(1)
    with pytest.raises(ValueError, match=f"block {block} released 2 times, held 1 times"):
        pool.release([block, block])
    assert (pool.ref_count(block), pool.num_free) == (1, 2)
    pool.share([block])
    pool.release([block, block])
    assert (pool.ref_count(block), pool.num_free) == (0, 3)
    pool.check_invariants()
    assert sorted(pool.take(3)) == [0, 1, 2]


@pytest.mark.parametrize("revived", [0, 1, 4, 5, 7])
def test_bug_03_a_block_that_leaves_the_middle_of_the_free_list_takes_no_other_with_it(revived: int) -> None:
    # vllm-ascend #15990 and UCM #1053: the list was torn, and an assertion far from the cause found out much later.
    pool = BlockPool(8)
    pool.release(pool.take(5))
    pool.share([revived])
    pool.check_invariants()
    pool.share([(revived + 1) % 8])
    pool.check_invariants()
    pool.release([revived])
    pool.check_invariants()
    assert pool.num_free == 7
    assert sorted([*pool.take(7), (revived + 1) % 8]) == list(range(8))
    with pytest.raises(OutOfBlocks):
        pool.take(1)


def test_bug_10_what_is_erased_from_a_table_is_gone_from_it_and_not_from_a_copy() -> None:
    # attention-gym, PagedAttention.erase: the assignment went into a copy, and the old map stayed as it was.
    table = BlockTable(2, [6, 3, 5], 5)
    assert table.truncate(2) == [3, 5]
    assert table.blocks == [6]
    with pytest.raises(ValueError, match="tokens 2"):
        table.slot_mapping(2, 3)
    table.check_invariants()


def test_bug_13_a_tail_that_was_given_up_for_a_copy_is_not_given_up_again_at_the_end() -> None:
    # sglang-jax #982 and #994: two ways to release, and both released the last block of a decode.
    allocator = BlockAllocator(4, 2)
    allocator.allocate(1, 1)
    allocator.fork(1, 2)
    assert allocator.append(2) == [(0, 1)]
    allocator.free(2)
    allocator.check_invariants()
    assert allocator.num_free_blocks == 3
    assert allocator.append(1) == []
    allocator.free(1)
    assert allocator.num_free_blocks == 4


POOL = "reference_impl.memory.block_pool"
TABLE = "reference_impl.memory.block_table"
ALLOCATOR = "reference_impl.memory.block_allocator"

MUTANTS = [
    Mutant(
        "fork counts no holder",
        test_bug_01_forks_end_in_any_order_and_each_block_is_free_exactly_once,
        ALLOCATOR,
        (("        self._pool.share(table.blocks)\n", ""),),
    ),
    Mutant(
        "an ended sequence is not forgotten",
        test_bug_01_forks_end_in_any_order_and_each_block_is_free_exactly_once,
        ALLOCATOR,
        (("        del self._tables[index(seq)]\n", ""),),
    ),
    Mutant(
        "no guard in release",
        test_bug_02_a_block_named_twice_in_one_release_is_freed_once_or_refused,
        POOL,
        (
            ("                self._undo_release(blocks[:place])\n", "                freed.append(block)\n"),
            (
                '                raise ValueError(f"block {block} released {blocks.count(block)} times, '
                'held {ref_count[block]} times")\n',
                "",
            ),
        ),
    ),
    Mutant(
        "refused, and half of it done",
        test_bug_02_a_block_named_twice_in_one_release_is_freed_once_or_refused,
        POOL,
        (("                self._undo_release(blocks[:place])\n", ""),),
    ),
    Mutant(
        "a neighbour still points back",
        test_bug_03_a_block_that_leaves_the_middle_of_the_free_list_takes_no_other_with_it,
        POOL,
        (("        self._previous[after] = before\n        self.num_free -= 1", "        self.num_free -= 1"),),
    ),
    Mutant(
        "the count is forgotten",
        test_bug_03_a_block_that_leaves_the_middle_of_the_free_list_takes_no_other_with_it,
        POOL,
        (
            (
                "        self._previous[after] = before\n        self.num_free -= 1",
                "        self._previous[after] = before",
            ),
        ),
    ),
    Mutant(
        "erased from a copy",
        test_bug_10_what_is_erased_from_a_table_is_gone_from_it_and_not_from_a_copy,
        TABLE,
        (("        del self.blocks[keep:]\n", "        del self.blocks[:][keep:]\n"),),
    ),
    Mutant(
        "the old tail stays in the table",
        test_bug_13_a_tail_that_was_given_up_for_a_copy_is_not_given_up_again_at_the_end,
        ALLOCATOR,
        (("            table.blocks[-1] = own_tail\n", ""),),
    ),
]
