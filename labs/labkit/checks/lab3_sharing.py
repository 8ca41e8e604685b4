"""Lab 3, groups sharing and copy_on_write: two sequences, one block.

Owns: small cases of fork, and of writes into blocks that a fork shares. A write is an append into a partial tail; the
allocator stores no tokens, so the copies that append returns are all that keeps one sequence from another's tokens.
Source: Kwon et al., SOSP 2023, section 4.4.
"""

from __future__ import annotations

from itertools import permutations

from labkit.checks.pool import Pool
from labkit.checks.story import Make, group


def fork_shares_every_block(make: Make) -> None:
    """A fork has its parent's tokens in its parent's blocks, the partial tail too."""
    for num_tokens in (6, 8, 1):
        pool = Pool(make, 8, 4)
        pool.allocate(1, num_tokens)
        pool.fork(1, 2)
        parent, child = pool.table(1), pool.table(2)
        pool.expect(child == parent, f"block_table(2) to be {parent} like its parent's, got {child}")
        got = pool.tokens(2)
        pool.expect(got == num_tokens, f"num_tokens(2) to be {num_tokens}, got {got}")


def fork_takes_no_block(make: Make) -> None:
    """A fork takes no free block: it works in a pool that is full."""
    pool = Pool(make, 4, 4)
    pool.allocate(1, 14)
    pool.fork(1, 2)
    pool.expect(pool.num_free == 0, f"num_free_blocks to be 0, got {pool.num_free}")
    pool.free(2)
    pool.expect(pool.num_free == 0, f"num_free_blocks to be 0 while sequence 1 lives, got {pool.num_free}")


def shared_blocks_live_until_the_last_holder_ends(make: Make) -> None:
    """A shared block is free exactly when its last holder is gone, in whatever order they go."""
    for order in permutations((1, 2, 3)):
        pool = Pool(make, 4, 4)
        pool.allocate(1, 6)
        pool.fork(1, 2)
        pool.fork(2, 3)
        table = pool.table(1)
        for seq, still_free in zip(order, (2, 2, 4), strict=True):
            pool.free(seq)
            got = pool.num_free
            pool.expect(got == still_free, f"num_free_blocks to be {still_free}, got {got}")
            for other in order[order.index(seq) + 1 :]:
                left = pool.table(other)
                pool.expect(left == table, f"block_table({other}) to stay {table}, got {left}")


def held_blocks_are_not_handed_out(make: Make) -> None:
    """A block that a fork still holds is not given to a new sequence."""
    pool = Pool(make, 4, 4)
    pool.allocate(1, 8)
    pool.fork(1, 2)
    pool.free(1)
    pool.allocate(3, 8)
    common = set(pool.table(2)) & set(pool.table(3))
    pool.expect(not common, f"sequences 2 and 3 to hold different blocks, both hold {sorted(common)}")


def fork_and_parent_grow_apart(make: Make) -> None:
    """What a fork appends is not seen by its parent, nor the other way round."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 8)
    pool.fork(1, 2)
    before = pool.table(1)
    pool.append(2, 3)
    after = pool.table(1)
    pool.expect(after == before, f"block_table(1) to stay {before}, got {after}")
    pool.append(1, 5)
    common = set(pool.table(1)[2:]) & set(pool.table(2)[2:])
    pool.expect(not common, f"sequences 1 and 2 to grow into different blocks, both grew into {sorted(common)}")
    got = pool.tokens(2)
    pool.expect(got == 11, f"num_tokens(2) to be 11, got {got}")


def first_writer_copies_the_tail(make: Make) -> None:
    """The first to write into a shared partial tail copies it, whether it is the fork or the parent."""
    for writer, other in ((2, 1), (1, 2)):
        pool = Pool(make, 4, 4)
        pool.allocate(1, 6)
        pool.fork(1, 2)
        before = pool.table(other)
        copies = pool.append(writer)
        _expect_one_copy(pool, copies, src=before[-1], dst=pool.table(writer)[-1], shared=before)
        after = pool.table(other)
        pool.expect(after == before, f"sequence {other} to keep its table {before}, got {after}")
        pool.expect(pool.num_free == 1, f"num_free_blocks to be 1 after one copy, got {pool.num_free}")


def copy_keeps_the_head_shared(make: Make) -> None:
    """A copy is of the tail alone: the full blocks before it stay shared."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 10)
    pool.fork(1, 2)
    pool.append(2)
    parent, child = pool.table(1), pool.table(2)
    pool.expect(child[:2] == parent[:2], f"both to begin with the blocks {parent[:2]}, sequence 2 has {child}")


def last_holder_writes_in_place(make: Make) -> None:
    """Once the tail is its own again, a sequence writes it in place and no copy is made."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 5)
    pool.fork(1, 2)
    pool.append(2)
    _expect_in_place(pool, 1)
    _expect_in_place(pool, 2)
    pool = Pool(make, 8, 4)
    pool.allocate(1, 5)
    pool.fork(1, 2)
    pool.free(1)
    _expect_in_place(pool, 2)


def every_holder_but_the_last_copies(make: Make) -> None:
    """With three holders of one partial tail, two writers copy it and the third does not."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 5)
    pool.fork(1, 2)
    pool.fork(2, 3)
    tail, table = pool.table(1)[-1], pool.table(1)
    for writer in (2, 3):
        copies = pool.append(writer)
        _expect_one_copy(pool, copies, src=tail, dst=pool.table(writer)[-1], shared=table)
    _expect_in_place(pool, 1)
    tails = {pool.table(seq)[-1] for seq in (1, 2, 3)}
    pool.expect(len(tails) == 3, f"three sequences with three different tails, they share {sorted(tails)}")


def full_tail_is_never_copied(make: Make) -> None:
    """A full shared tail is not written, so it is never copied: append takes a new block."""
    for block_size, num_tokens in ((4, 8), (1, 3)):
        pool = Pool(make, 8, block_size)
        pool.allocate(1, num_tokens)
        pool.fork(1, 2)
        before = pool.table(1)
        for writer in (2, 1):
            copies = pool.append(writer)
            pool.expect(copies == [], f"no copy of a full tail, got {copies}")
            table = pool.table(writer)
            pool.expect(table[:-1] == before, f"sequence {writer} to keep its blocks {before} and add one, got {table}")


def one_append_makes_one_copy(make: Make) -> None:
    """An append that spans several blocks copies the shared tail once and takes new blocks for the rest."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 6)
    pool.fork(1, 2)
    shared = pool.table(1)
    copies = pool.append(2, 7)
    table = pool.table(2)
    pool.expect(len(table) == 4, f"sequence 2 to hold 4 blocks for 13 tokens, got {table}")
    _expect_one_copy(pool, copies, src=shared[-1], dst=table[1], shared=shared)
    pool.expect(pool.num_free == 3, f"num_free_blocks to be 3, got {pool.num_free}")


def _expect_one_copy(pool: Pool, copies: list[tuple[int, int]], src: int, dst: int, shared: list[int]) -> None:
    """Exactly one copy, out of block `src` into `dst`, which is a block of the writer's own."""
    pool.expect(len(copies) == 1, f"one copy out of the shared tail, got {copies if copies else 'none'}")
    pool.expect(dst not in shared, f"the writer to get a block of its own, but it still holds the shared block {dst}")
    pool.expect(
        copies == [(src, dst)],
        f"a copy from the shared tail, block {src}, to the writer's new tail, block {dst}, got {copies}",
    )


def _expect_in_place(pool: Pool, seq: int) -> None:
    before = pool.table(seq)
    copies = pool.append(seq)
    pool.expect(copies == [], f"sequence {seq} to write its own tail in place, got the copies {copies}")
    after = pool.table(seq)
    pool.expect(after == before, f"sequence {seq} to write in place and keep the table {before}, got {after}")


SHARING = group(
    "fork",
    fork_shares_every_block,
    fork_takes_no_block,
    shared_blocks_live_until_the_last_holder_ends,
    held_blocks_are_not_handed_out,
    fork_and_parent_grow_apart,
)
COPY_ON_WRITE = group(
    "Writers copy a shared partial tail",
    first_writer_copies_the_tail,
    copy_keeps_the_head_shared,
    last_holder_writes_in_place,
    every_holder_but_the_last_copies,
    full_tail_is_never_copied,
    one_append_makes_one_copy,
)
