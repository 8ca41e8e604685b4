"""Lab 3, group refusals: the right error, and nothing changed.

Owns: small cases in which a call must be refused, and what must be the same afterwards. Ids are checked first, then
values, then blocks, so that the reader of an error learns the first thing that is wrong.
"""

from __future__ import annotations

from labkit.checks.pool import Pool
from labkit.checks.story import Broken, Make, NotWritten, group
from labkit.contracts import OutOfBlocks


def sizes_below_one_are_refused(make: Make) -> None:
    """A pool without blocks, or blocks without slots, is a ValueError."""
    for sizes in ((0, 4), (4, 0), (-1, 4), (4, -2)):
        told = f"BlockAllocator({sizes[0]}, {sizes[1]})"
        try:
            make(*sizes)
        except ValueError:
            continue
        except NotImplementedError:
            # Building a pool that is allowed names the stub that is in the way.
            Pool(make, 1, 1)
            raise NotWritten("__init__") from None
        except Exception as raised:
            raise Broken(f"{told}: expected ValueError, got {type(raised).__name__}.") from None
        raise Broken(f"{told}: expected ValueError, nothing was raised.")


def unknown_sequences_are_key_errors(make: Make) -> None:
    """Every method that is given a sequence nobody started raises KeyError."""
    for method, *args in (
        *(("append", 9), ("append", 9, 2), ("fork", 9, 2), ("free", 9)),
        *(("block_table", 9), ("num_tokens", 9), ("slot_mapping", 9, 0, 0)),
    ):
        pool = Pool(make, 4, 4)
        pool.allocate(1, 4)
        pool.refused_unchanged(KeyError, (1,), str(method), *args)


def existing_ids_are_value_errors(make: Make) -> None:
    """allocate and fork refuse an id that is in use with ValueError, and the sequence that has it is unharmed."""
    for method, *args in (("allocate", 1, 4), ("fork", 1, 2), ("fork", 1, 1)):
        pool = Pool(make, 8, 4)
        pool.allocate(1, 6)
        pool.allocate(2, 3)
        pool.refused_unchanged(ValueError, (1, 2), str(method), *args)


def fewer_than_one_token_is_a_value_error(make: Make) -> None:
    """allocate and append refuse 0 and fewer tokens with ValueError."""
    for num_tokens in (0, -3):
        pool = Pool(make, 4, 4)
        pool.allocate(1, 6)
        pool.refused_unchanged(ValueError, (1,), "append", 1, num_tokens)
        pool.refused_unchanged(ValueError, (1,), "allocate", 2, num_tokens)
        pool.refused(KeyError, "num_tokens", 2)


def slot_ranges_are_checked(make: Make) -> None:
    """slot_mapping refuses a range that is not 0 <= start <= stop <= num_tokens with ValueError."""
    for start, stop in ((-1, 2), (3, 2), (0, 7), (7, 7), (-2, -1)):
        pool = Pool(make, 4, 4)
        pool.allocate(1, 6)
        pool.refused(ValueError, "slot_mapping", 1, start, stop)


def ids_then_values_then_blocks(make: Make) -> None:
    """Ids are checked before values, and values before blocks."""
    pool = Pool(make, 2, 4)
    pool.allocate(1, 8)
    pool.refused_unchanged(KeyError, (1,), "append", 9, 0)
    pool.refused_unchanged(KeyError, (1,), "slot_mapping", 9, 3, 1)
    pool.refused_unchanged(ValueError, (1,), "allocate", 1, 400)
    pool.refused_unchanged(ValueError, (1,), "allocate", 2, 0)
    pool.refused_unchanged(ValueError, (1,), "append", 1, -1)


def failed_allocate_changes_nothing(make: Make) -> None:
    """An allocate that does not fit raises OutOfBlocks, starts no sequence and takes no block."""
    pool = Pool(make, 4, 4)
    pool.allocate(1, 6)
    pool.refused_unchanged(OutOfBlocks, (1,), "allocate", 2, 9)
    pool.refused(KeyError, "num_tokens", 2)
    pool.allocate(2, 8)
    pool.expect(pool.num_free == 0, f"num_free_blocks to be 0, got {pool.num_free}")


def failed_append_changes_nothing(make: Make) -> None:
    """An append that does not fit raises OutOfBlocks and does not even fill the tail."""
    pool = Pool(make, 4, 4)
    pool.allocate(1, 6)
    pool.allocate(2, 4)
    pool.refused_unchanged(OutOfBlocks, (1, 2), "append", 1, 7)
    pool.append(1, 6)
    pool.expect(pool.num_free == 0, f"num_free_blocks to be 0, got {pool.num_free}")


def failed_copy_changes_nothing(make: Make) -> None:
    """An append that needs a copy and a new block, with one block free, raises OutOfBlocks and changes nothing."""
    pool = Pool(make, 3, 4)
    pool.allocate(1, 6)
    pool.fork(1, 2)
    pool.refused_unchanged(OutOfBlocks, (1, 2), "append", 2, 3)
    copies = pool.append(2, 2)
    pool.expect(len(copies) == 1, f"the one free block to be taken for a copy, got the copies {copies}")


def exactly_enough_is_enough(make: Make) -> None:
    """OutOfBlocks is raised only when blocks are really short."""
    pool = Pool(make, 4, 4)
    pool.allocate(1, 5)
    pool.append(1, 11)
    pool.free(1)
    pool.allocate(2, 16)
    pool.free(2)
    pool.allocate(3, 3)
    pool.fork(3, 4)
    pool.append(4, 9)
    pool.expect(pool.num_free == 0, f"num_free_blocks to be 0, got {pool.num_free}")


def numpy_integers_are_integers(make: Make) -> None:
    """Any integer will do, numpy.int64 too, and names the same sequence as the int."""
    import numpy as np

    pool = Pool(make, 4, 4)
    pool.call("allocate", np.int64(1), np.int64(6))
    pool.call("append", 1, np.int64(1))
    pool.call("fork", np.int64(1), np.int64(2))
    slots = pool.integers(pool.call("slot_mapping", 2, np.int64(0), np.int64(7)), "slot_mapping")
    pool.expect(slots == pool.slots(1, 0, 7), f"the fork to have its parent's slots, got {slots}")
    pool.refused_unchanged(ValueError, (1, 2), "allocate", 2, 1)


REFUSALS = group(
    "The right error, and nothing changed",
    sizes_below_one_are_refused,
    unknown_sequences_are_key_errors,
    existing_ids_are_value_errors,
    fewer_than_one_token_is_a_value_error,
    slot_ranges_are_checked,
    ids_then_values_then_blocks,
    failed_allocate_changes_nothing,
    failed_append_changes_nothing,
    failed_copy_changes_nothing,
    exactly_enough_is_enough,
    numpy_integers_are_integers,
)
