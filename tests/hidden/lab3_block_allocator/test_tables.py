"""Tables and slots: where the tokens of a sequence live.

Owns: the properties of block_table, num_tokens and slot_mapping while nothing goes wrong. Knows nothing of which block
comes first: any order of handing out blocks passes.
"""

from __future__ import annotations

import numpy

from autograder.judge import pool_view as view
from autograder.judge.subject import Make

GROUP = "tables"


def test_a_table_has_exactly_the_blocks_its_tokens_need(make: Make) -> None:
    """A sequence of n tokens holds exactly ceil(n / block_size) blocks."""
    for block_size in (2, 5, 16):
        for num_tokens in sorted({1, block_size - 1, block_size, block_size + 1, 3 * block_size, 3 * block_size + 1}):
            subject = make(8, block_size)
            subject.allocate(4, num_tokens)
            needed = view.blocks_for(num_tokens, block_size)
            assert len(view.table(subject, 4)) == needed, "a table has too many or too few blocks for its tokens"
            assert view.num_free(subject) == 8 - needed, "the free count does not fit the blocks that were taken"


def test_a_table_of_block_size_one_has_a_block_a_token(make: Make) -> None:
    """With block size 1 every token has a block of its own, and the slot is the block."""
    subject = make(9, 1)
    subject.allocate(1, 3)
    subject.allocate(2, 2)
    subject.append(1, 2)
    table = view.table(subject, 1)
    assert len(table) == 5, "block size 1: the table does not have one block for each token"
    assert view.slots(subject, 1, 0, 5) == table, "block size 1: the slots are not the blocks of the table"
    assert view.num_free(subject) == 2, "block size 1: the free count does not fall by one for each token"


def test_block_ids_lie_in_the_pool_and_stand_once(make: Make) -> None:
    """A table names blocks from 0 to num_blocks - 1, none of them twice."""
    subject = make(11, 3)
    subject.allocate(1, 33)
    table = view.table(subject, 1)
    assert all(0 <= block < 11 for block in table), "a block id lies outside the pool"
    assert len(set(table)) == len(table), "a block stands twice in one table"
    assert len(table) == 11, "a sequence that fills the pool does not have every block"


def test_num_tokens_follows_allocate_append_and_fork(make: Make) -> None:
    """num_tokens is what was allocated and appended; a child starts with its parent's."""
    subject = make(16, 4)
    subject.allocate(1, 6)
    subject.append(1)
    subject.append(1, 9)
    subject.fork(1, 2)
    subject.append(2, 3)
    assert view.num_tokens(subject, 1) == 16, "num_tokens of the parent is not what was allocated and appended"
    assert view.num_tokens(subject, 2) == 19, "num_tokens of the child is not the parent's plus what was appended"


def test_slots_follow_the_table_in_logical_order(make: Make) -> None:
    """Token t lies in slot table[t // block_size] * block_size + t % block_size, in a scattered pool too."""
    for block_size in (1, 3, 8):
        subject = make(24, block_size)
        for seq in range(6):
            subject.allocate(seq, 2 * block_size)
        for seq in (1, 4, 2):
            subject.free(seq)
        subject.allocate(7, block_size + 1)
        for _ in range(block_size + 2):
            subject.append(7)
            subject.append(0, 2)
        for seq in (0, 3, 7):
            tokens, table = view.num_tokens(subject, seq), view.table(subject, seq)
            expected = [table[t // block_size] * block_size + t % block_size for t in range(tokens)]
            assert view.slots(subject, seq, 0, tokens) == expected, "the slots do not follow the block table"


def test_slots_of_every_range(make: Make) -> None:
    """slot_mapping(start, stop) gives the slots of tokens start to stop - 1, and [] when start equals stop."""
    subject = make(8, 3)
    subject.allocate(5, 8)
    whole = view.slots(subject, 5, 0, 8)
    assert len(whole) == 8, "slot_mapping of the whole sequence does not give one slot a token"
    for start in range(9):
        for stop in range(start, 9):
            part = view.slots(subject, 5, start, stop)
            assert part == whole[start:stop], "slot_mapping of a part is not that part of the whole"


def test_the_caller_may_ruin_the_lists_it_gets(make: Make) -> None:
    """What the caller does to a returned list changes nothing inside the allocator."""
    subject = make(12, 4)
    subject.allocate(1, 10)
    subject.fork(1, 2)
    for method, args in (("block_table", (1,)), ("block_table", (2,)), ("slot_mapping", (1, 0, 10))):
        before = view.snapshot(subject, (1, 2))
        subject.scribbled(method, *args)
        assert view.snapshot(subject, (1, 2)) == before, "changing a returned list changed the allocator"
    subject.scribbled("append", 2)
    before = view.snapshot(subject, (1, 2))
    copies = view.append(subject, 2)
    assert copies == [], "changing the list that append returned changed what the next append returns"
    subject.free(1)
    subject.free(2)
    assert view.num_free(subject) == 12, "after a caller changed its lists, blocks were lost or freed twice"
    assert before[1][2][0] == 11, "num_tokens of the child is not the parent's plus what was appended"


def test_two_calls_give_two_lists(make: Make) -> None:
    """A table taken before an append still shows what was there when it was taken."""
    subject = make(6, 2)
    subject.allocate(1, 2)
    earlier = subject.block_table(1)
    kept = list(earlier)
    subject.append(1, 4)
    assert list(earlier) == kept, "a list that was returned earlier changed by itself"
    assert len(view.table(subject, 1)) == 3, "the table did not grow by the blocks that were appended"


def test_any_integer_may_name_a_sequence(make: Make) -> None:
    """Sequence ids are any integers: large, negative and zero ones too."""
    subject = make(8, 4)
    names = (0, -3, 10**12, 7)
    for seq in names:
        subject.allocate(seq, 5)
    assert len(view.held(subject, names)) == 8, "sequences with large or negative ids do not hold blocks of their own"
    for seq in names:
        subject.free(seq)
    assert view.num_free(subject) == 8, "freeing sequences with large or negative ids did not free their blocks"


def test_integers_of_numpy_are_integers(make: Make) -> None:
    """Integers are whatever operator.index takes, numpy's integers included."""
    subject = make(numpy.int64(8), numpy.int64(4))
    subject.allocate(numpy.int64(3), numpy.int64(5))
    subject.append(numpy.int64(3), numpy.int64(4))
    subject.fork(numpy.int64(3), numpy.int64(4))
    assert view.num_tokens(subject, 3) == 9, "a sequence made with an integer of numpy is not found by its number"
    assert len(view.slots(subject, numpy.int64(4), numpy.int64(2), numpy.int64(7))) == 5, (
        "slot_mapping with integers of numpy does not give the range"
    )
    subject.free(numpy.int64(3))
    subject.free(4)
    assert view.num_free(subject) == 8, "integers of numpy left blocks behind"


def test_the_free_count_is_an_integer_at_every_moment(make: Make) -> None:
    """num_free_blocks can be read as an attribute at any time and is an integer."""
    subject = make(5, 2)
    assert view.num_free(subject) == 5, "a fresh pool is not entirely free"
    subject.allocate(1, 3)
    assert view.num_free(subject) == 3, "num_free_blocks does not follow allocate"
    subject.fork(1, 2)
    assert view.num_free(subject) == 3, "num_free_blocks does not stay at a fork"
    subject.append(2)
    assert view.num_free(subject) == 2, "num_free_blocks does not follow append"
    subject.free(1)
    assert view.num_free(subject) == 3, "num_free_blocks does not follow free"
