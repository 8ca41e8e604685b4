"""The public properties of lab 3, group by group.

Owns: what each group promises, as small cases with the answer in words. The random programs and the counted work have
their own files, `lab3_programs.py` and `lab3_cost.py`. Knows nothing of the hidden tests: they hold for the same
contract, with other cases. No property looks at which physical block comes first.
"""

from __future__ import annotations

from labkit.checks.lab3_cost import COST
from labkit.checks.lab3_programs import PROGRAMS
from labkit.checks.lab3_refusals import REFUSALS
from labkit.checks.lab3_sharing import COPY_ON_WRITE, SHARING
from labkit.checks.pool import Pool
from labkit.checks.story import Group, Make, counted, group


def table_has_just_enough_blocks(make: Make) -> None:
    """A sequence of n tokens holds exactly ceil(n / block_size) blocks."""
    for block_size in (4, 1):
        for num_tokens in range(1, 10):
            pool = Pool(make, 16, block_size)
            pool.allocate(1, num_tokens)
            _expect_block_count(pool, 1, num_tokens)


def table_names_distinct_blocks_of_the_pool(make: Make) -> None:
    """A block table holds ids from 0 to num_blocks - 1, none of them twice."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 32)
    table = pool.table(1)
    pool.expect(all(0 <= block < 8 for block in table), f"block ids from 0 to 7, got the table {table}")
    pool.expect(len(set(table)) == len(table), f"every block at most once in a table, got {table}")


def tokens_are_counted(make: Make) -> None:
    """num_tokens is what was allocated and appended."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 5)
    _expect_tokens(pool, 1, 5)
    pool.append(1, 3)
    _expect_tokens(pool, 1, 8)
    pool.append(1)
    _expect_tokens(pool, 1, 9)


def slots_follow_the_table(make: Make) -> None:
    """Token t lies in slot table[t // block_size] * block_size + t % block_size."""
    for block_size in (4, 3, 1):
        pool = Pool(make, 8, block_size)
        pool.allocate(7, 2)
        pool.allocate(1, 5)
        pool.free(7)
        pool.append(1, 2)
        _expect_block_count(pool, 1, 7)
        table, slots = pool.table(1), pool.slots(1, 0, 7)
        expected = [table[token // block_size] * block_size + token % block_size for token in range(7)]
        pool.expect(slots == expected, f"slot_mapping(1, 0, 7) of the table {table} to be {expected}, got {slots}")


def slots_of_a_part(make: Make) -> None:
    """slot_mapping gives the tokens start to stop - 1 only, and [] when start equals stop."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 10)
    whole = pool.slots(1, 0, 10)
    for start, stop in ((0, 4), (3, 5), (4, 8), (9, 10), (0, 0), (5, 5), (10, 10)):
        part = pool.slots(1, start, stop)
        pool.expect(
            part == whole[start:stop], f"slot_mapping(1, {start}, {stop}) to be {whole[start:stop]}, got {part}"
        )


def table_is_the_callers_own(make: Make) -> None:
    """block_table returns a copy: the caller may change the list it got."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 6)
    given = pool.peek("block_table", 1)
    before = pool.integers(given, "block_table(1)")
    given.clear()
    after = pool.table(1)
    pool.expect(after == before, f"block_table(1) to stay {before} after the caller cleared its list, got {after}")


def free_and_held_add_up(make: Make) -> None:
    """Free blocks and held blocks add up to num_blocks after every call."""
    pool = Pool(make, 8, 4)
    live: tuple[int, ...] = ()
    for method, *args in (
        *(("allocate", 1, 6), ("allocate", 2, 4), ("append", 1, 3), ("append", 2, 1), ("free", 1)),
        *(("allocate", 3, 9), ("append", 2, 8), ("free", 2), ("append", 3, 4), ("free", 3)),
    ):
        pool.call(str(method), *args)
        seq = int(args[0])
        live = tuple(x for x in live if x != seq) if method == "free" else (*{*live, seq},)
        _expect_conservation(pool, live)


def no_block_has_two_owners(make: Make) -> None:
    """Two sequences that were never forked hold no block in common."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 6)
    pool.allocate(2, 6)
    pool.append(1, 4)
    pool.free(2)
    pool.allocate(3, 9)
    pool.append(1, 3)
    common = set(pool.table(1)) & set(pool.table(3))
    pool.expect(not common, f"sequences 1 and 3 to hold different blocks, both hold {sorted(common)}")


def every_block_can_be_used(make: Make) -> None:
    """The last free block is as good as the first: a pool can be filled to the brim."""
    pool = Pool(make, 4, 4)
    pool.allocate(1, 15)
    pool.append(1, 1)
    _expect_free(pool, 0)
    pool.free(1)
    for seq in range(4):
        pool.allocate(seq, 1)
    held = sorted(block for seq in range(4) for block in pool.table(seq))
    pool.expect(held == [0, 1, 2, 3], f"four sequences to hold the blocks 0, 1, 2 and 3, they hold {held}")


def freed_blocks_are_used_again(make: Make) -> None:
    """Blocks of a freed sequence are free at once and can be used again, as often as you like."""
    pool = Pool(make, 3, 2)
    for round_number in range(4):
        pool.allocate(round_number, 6)
        _expect_free(pool, 0)
        pool.free(round_number)
        _expect_free(pool, 3)


def second_free_frees_nothing(make: Make) -> None:
    """Freeing a sequence twice is a KeyError, and no block becomes free twice."""
    pool = Pool(make, 4, 4)
    pool.allocate(1, 8)
    pool.allocate(2, 4)
    pool.free(1)
    pool.refused_unchanged(KeyError, (2,), "free", 1)
    pool.allocate(3, 12)
    common = set(pool.table(2)) & set(pool.table(3))
    pool.expect(not common, f"sequences 2 and 3 to hold different blocks, both hold {sorted(common)}")


def pools_share_nothing(make: Make) -> None:
    """Two allocators know nothing of each other."""
    first, second = Pool(make, 4, 4), Pool(make, 4, 4)
    first.allocate(1, 16)
    _expect_free(second, 4)
    second.refused(KeyError, "num_tokens", 1)
    second.allocate(1, 8)
    _expect_tokens(first, 1, 16)


def append_fills_the_tail_first(make: Make) -> None:
    """append takes a new block only when the last one is full."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 1)
    for num_tokens in range(2, 14):
        pool.append(1)
        _expect_block_count(pool, 1, num_tokens)
        _expect_free(pool, 8 - pool.blocks_for(num_tokens))


def append_keeps_what_is_there(make: Make) -> None:
    """append adds at the end: the blocks a sequence has stay where they are."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 6)
    pool.allocate(2, 3)
    before = pool.table(1)
    pool.append(1, 9)
    after = pool.table(1)
    pool.expect(
        after[: len(before)] == before, f"the table of sequence 1 to begin with {before} as before, got {after}"
    )


def append_of_many_tokens(make: Make) -> None:
    """One append may span several blocks, and takes no more than it needs."""
    for start, more in ((3, 9), (4, 8), (1, 3), (4, 1), (2, 15)):
        pool = Pool(make, 8, 4)
        pool.allocate(1, start)
        pool.append(1, more)
        _expect_tokens(pool, 1, start + more)
        _expect_block_count(pool, 1, start + more)
        _expect_free(pool, 8 - pool.blocks_for(start + more))


def append_alone_copies_nothing(make: Make) -> None:
    """A sequence that shares nothing needs no copy: append returns []."""
    pool = Pool(make, 8, 4)
    pool.allocate(1, 6)
    for num_tokens in (1, 1, 1, 6):
        copies = pool.append(1, num_tokens)
        pool.expect(copies == [], f"no copies, got {copies}")


def appended_tokens_get_fresh_slots(make: Make) -> None:
    """Appended tokens lie in slots that no other token of any sequence has."""
    pool = Pool(make, 6, 2)
    pool.allocate(1, 3)
    pool.allocate(2, 3)
    for seq in (1, 2, 1, 2):
        pool.append(seq)
    first, second = pool.slots(1, 0, 5), pool.slots(2, 0, 5)
    both = first + second
    pool.expect(len(set(both)) == 10, f"10 different slots, got {first} for sequence 1 and {second} for sequence 2")


def _expect_tokens(pool: Pool, seq: int, num_tokens: int) -> None:
    got = pool.tokens(seq)
    pool.expect(got == num_tokens, f"num_tokens({seq}) to be {num_tokens}, got {got}")


def _expect_block_count(pool: Pool, seq: int, num_tokens: int) -> None:
    needed, table = pool.blocks_for(num_tokens), pool.table(seq)
    pool.expect(len(table) == needed, f"{counted(needed, 'block')} for {counted(num_tokens, 'token')}, got {table}")


def _expect_free(pool: Pool, num_free: int) -> None:
    got = pool.num_free
    pool.expect(got == num_free, f"num_free_blocks to be {num_free}, got {got}")


def _expect_conservation(pool: Pool, live: tuple[int, ...]) -> None:
    held = {block for seq in live for block in pool.table(seq)}
    free = pool.num_free
    pool.expect(
        free + len(held) == pool.num_blocks,
        f"free and held blocks to add up to {pool.num_blocks}, got {free} free and {len(held)} held",
    )


GROUPS: dict[str, Group] = {
    "tables": group(
        "Tables and slots",
        table_has_just_enough_blocks,
        table_names_distinct_blocks_of_the_pool,
        tokens_are_counted,
        slots_follow_the_table,
        slots_of_a_part,
        table_is_the_callers_own,
    ),
    "conservation": group(
        "Every block is owned or free, never both",
        free_and_held_add_up,
        no_block_has_two_owners,
        every_block_can_be_used,
        freed_blocks_are_used_again,
        second_free_frees_nothing,
        pools_share_nothing,
    ),
    "refusals": REFUSALS,
    "growth": group(
        "append",
        append_fills_the_tail_first,
        append_keeps_what_is_there,
        append_of_many_tokens,
        append_alone_copies_nothing,
        appended_tokens_get_fresh_slots,
    ),
    "sharing": SHARING,
    "copy_on_write": COPY_ON_WRITE,
    "programs": PROGRAMS,
    "cost": COST,
}
"""The groups by grade_id, in the order of the notebook."""
