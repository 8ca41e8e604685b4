"""The right error, and nothing changed.

Owns: every call that must be refused, which error it is, in which order things are checked, and that a refused call
leaves no trace: not in what can be seen, and not in what the allocator does next. Also the other side: a call that can
be met is never refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autograder.judge import pool_view as view
from autograder.judge.subject import Make, Subject, refuses
from labkit.contracts import OutOfBlocks

GROUP = "refusals"


def refused_without_a_trace(
    subject: Subject, seqs: Iterable[int], error: type[Exception], what: str, method: str, *args: Any
) -> None:
    """The call raises `error` and all that can be seen of `seqs` stays as it was."""
    seqs = tuple(seqs)
    before = view.snapshot(subject, seqs)
    with refuses(error, what):
        getattr(subject, method)(*args)
    after = view.snapshot(subject, seqs)
    assert after[0] == before[0], f"{what}: it was refused, but the free count changed"
    assert after[1] == before[1], f"{what}: it was refused, but a sequence changed"


def whole_afterwards(subject: Subject, seqs: Iterable[int], num_blocks: int, block_size: int) -> None:
    """The pool still works: its free blocks can all be taken, are nobody else's, and everything comes back."""
    seqs = tuple(seqs)
    free, owned, spare = view.num_free(subject), view.held(subject, seqs), 10**6
    if free:
        subject.allocate(spare, free * block_size)
        assert not owned & set(view.table(subject, spare)), "after a refused call a block was handed out twice"
        subject.free(spare)
    for seq in seqs:
        subject.free(seq)
    assert view.num_free(subject) == num_blocks, "after a refused call not every block came back"


def test_sizes_below_one_are_refused(make: Make) -> None:
    """BlockAllocator with no blocks or no tokens in a block is a ValueError."""
    for num_blocks, block_size in ((0, 4), (-1, 4), (4, 0), (4, -2), (0, 0)):
        with refuses(ValueError, "an allocator with a size below 1 was built"):
            make(num_blocks, block_size)


def test_unknown_sequences_are_refused_by_every_call(make: Make) -> None:
    """Every call on an unknown sequence is a KeyError and changes nothing."""
    subject = make(8, 4)
    subject.allocate(1, 6)
    subject.fork(1, 2)
    calls = (
        *(("append", 9), ("append", 9, 5), ("fork", 9, 3), ("free", 9)),
        *(("block_table", 9), ("num_tokens", 9), ("slot_mapping", 9, 0, 1), ("slot_mapping", 9, 0, 0)),
    )
    for method, *args in calls:
        refused_without_a_trace(subject, (1, 2), KeyError, f"{method} took an unknown sequence", method, *args)
    subject.allocate(9, 1)
    subject.fork(1, 3)
    whole_afterwards(subject, (1, 2, 3, 9), 8, 4)


def test_freed_sequences_are_unknown_to_every_call(make: Make) -> None:
    """A sequence that was freed is unknown: every call on it is a KeyError and changes nothing."""
    subject = make(8, 4)
    subject.allocate(1, 6)
    subject.fork(1, 2)
    subject.free(1)
    calls = (
        *(("free", 1), ("append", 1), ("fork", 1, 3)),
        *(("block_table", 1), ("num_tokens", 1), ("slot_mapping", 1, 0, 1)),
    )
    for method, *args in calls:
        refused_without_a_trace(subject, (2,), KeyError, f"{method} took a freed sequence", method, *args)
    whole_afterwards(subject, (2,), 8, 4)


def test_existing_ids_are_refused(make: Make) -> None:
    """allocate and fork onto an id that exists are ValueErrors; the sequence keeps its blocks."""
    subject = make(8, 4)
    subject.allocate(1, 6)
    subject.allocate(2, 3)
    for what, method, *args in (
        ("allocate took an id that exists", "allocate", 1, 4),
        ("fork took a child that exists", "fork", 1, 2),
        ("fork took a parent as its own child", "fork", 1, 1),
    ):
        refused_without_a_trace(subject, (1, 2), ValueError, str(what), str(method), *args)
    whole_afterwards(subject, (1, 2), 8, 4)


def test_token_counts_below_one_are_refused(make: Make) -> None:
    """allocate and append of fewer than one token are ValueErrors and change nothing."""
    subject = make(8, 4)
    subject.allocate(1, 6)
    subject.fork(1, 2)
    for num_tokens in (0, -1, -9):
        refused_without_a_trace(subject, (1, 2), ValueError, "allocate took no tokens", "allocate", 3, num_tokens)
        refused_without_a_trace(subject, (1, 2), ValueError, "append took no tokens", "append", 1, num_tokens)
    with refuses(KeyError, "a refused allocate left its id behind"):
        subject.num_tokens(3)
    whole_afterwards(subject, (1, 2), 8, 4)


def test_ranges_outside_the_sequence_are_refused(make: Make) -> None:
    """slot_mapping is a ValueError unless 0 <= start <= stop <= num_tokens."""
    subject = make(8, 4)
    subject.allocate(1, 6)
    for start, stop in ((-1, 3), (-2, -1), (4, 3), (0, 7), (7, 7), (6, 8), (7, 6), (0, 8), (-1, -1)):
        what = "slot_mapping took a range outside the sequence"
        refused_without_a_trace(subject, (1,), ValueError, what, "slot_mapping", 1, start, stop)


def test_ids_are_checked_before_values(make: Make) -> None:
    """With an unknown sequence and a bad value in one call, the KeyError comes first."""
    subject = make(4, 4)
    subject.allocate(1, 6)
    for method, *args in (("append", 9, 0), ("append", 9, -4), ("slot_mapping", 9, 5, 2), ("slot_mapping", 9, -1, 0)):
        what = f"{method} looked at its values before its sequence"
        refused_without_a_trace(subject, (1,), KeyError, what, method, *args)


def test_ids_are_checked_before_blocks(make: Make) -> None:
    """With a wrong id and too few blocks in one call, the id is what is refused."""
    subject = make(4, 4)
    subject.allocate(1, 6)
    what = "allocate counted blocks before it looked at the id"
    refused_without_a_trace(subject, (1,), ValueError, what, "allocate", 1, 400)
    what = "append counted blocks before it looked for the sequence"
    refused_without_a_trace(subject, (1,), KeyError, what, "append", 9, 400)


def test_values_are_checked_before_blocks(make: Make) -> None:
    """In a full pool a token count below one is still a ValueError, not OutOfBlocks."""
    subject = make(3, 4)
    subject.allocate(1, 10)
    subject.fork(1, 2)
    for num_tokens in (0, -1):
        what = "in a full pool allocate took no tokens"
        refused_without_a_trace(subject, (1, 2), ValueError, what, "allocate", 3, num_tokens)
        what = "in a full pool append took no tokens"
        refused_without_a_trace(subject, (1, 2), ValueError, what, "append", 1, num_tokens)


def test_allocate_without_enough_blocks_changes_nothing(make: Make) -> None:
    """allocate that needs more blocks than are free is OutOfBlocks; no block and no id is taken."""
    subject = make(5, 4)
    subject.allocate(1, 9)
    for num_tokens in (9, 12, 400):
        what = "allocate took more blocks than are free"
        refused_without_a_trace(subject, (1,), OutOfBlocks, what, "allocate", 2, num_tokens)
    with refuses(KeyError, "a refused allocate left its id behind"):
        subject.block_table(2)
    subject.allocate(2, 8)
    whole_afterwards(subject, (1, 2), 5, 4)


def test_append_without_enough_blocks_changes_nothing(make: Make) -> None:
    """append that needs more blocks than are free is OutOfBlocks; not even the tail is filled."""
    for tokens, more in ((9, 12), (9, 400), (12, 9), (8, 17)):
        subject = make(5, 4)
        subject.allocate(1, tokens)
        what = "append took more blocks than are free"
        refused_without_a_trace(subject, (1,), OutOfBlocks, what, "append", 1, more)
        subject.append(1, 20 - tokens)
        assert view.num_free(subject) == 0, "after a refused append the rest of the pool could not be used"
        whole_afterwards(subject, (1,), 5, 4)


def test_append_that_needs_a_copy_without_a_block_changes_nothing(make: Make) -> None:
    """append into a shared partial tail of a full pool is OutOfBlocks; everything stays shared."""
    for writer in (1, 2):
        subject = make(2, 4)
        subject.allocate(1, 6)
        subject.fork(1, 2)
        what = "append wrote into a shared tail without a block for the copy"
        refused_without_a_trace(subject, (1, 2), OutOfBlocks, what, "append", writer)
        subject.free(3 - writer)
        assert view.append(subject, writer) == [], "after a refused copy the last holder does not write in place"
        whole_afterwards(subject, (writer,), 2, 4)


def test_append_that_needs_a_copy_and_a_new_block_needs_both(make: Make) -> None:
    """With one block free, append that needs a copy and a new block is OutOfBlocks and changes nothing."""
    for writer in (1, 2):
        subject = make(3, 4)
        subject.allocate(1, 6)
        subject.fork(1, 2)
        what = "append needed a copy and a new block with one block free"
        refused_without_a_trace(subject, (1, 2), OutOfBlocks, what, "append", writer, 3)
        copies = view.append(subject, writer, 2)
        assert len(copies) == 1, "after a refused append a smaller one does not copy the tail that is still shared"
        whole_afterwards(subject, (1, 2), 3, 4)


def test_exactly_enough_blocks_are_enough(make: Make) -> None:
    """A call that needs exactly the free blocks succeeds."""
    subject = make(4, 4)
    subject.allocate(1, 16)
    subject.free(1)
    subject.allocate(1, 2)
    subject.append(1, 14)
    subject.free(1)
    subject.allocate(1, 6)
    subject.fork(1, 2)
    assert len(view.append(subject, 2, 6)) == 1, "append with exactly enough blocks for copy and growth does not copy"
    assert view.num_free(subject) == 0, "a pool filled exactly does not have 0 free blocks"
    assert view.append(subject, 1, 2) == [], "append inside the own tail of a full pool does not write in place"


def test_a_full_pool_still_serves_calls_that_need_no_block(make: Make) -> None:
    """With no block free, append inside an own tail, fork, and slot_mapping still work."""
    subject = make(3, 4)
    subject.allocate(1, 9)
    assert view.append(subject, 1, 3) == [], "append inside an own tail of a full pool returned a copy"
    subject.fork(1, 2)
    assert len(view.slots(subject, 2, 0, 12)) == 12, "slot_mapping does not work in a full pool"
    subject.free(1)
    subject.free(2)
    assert view.num_free(subject) == 3, "a full pool did not come back whole"


def test_many_refusals_wear_nothing_out(make: Make) -> None:
    """Fifty refused calls of every kind leave the pool as it was."""
    subject = make(4, 2)
    subject.allocate(1, 5)
    subject.fork(1, 2)
    before = view.snapshot(subject, (1, 2))
    for _ in range(10):
        for error, method, *args in (
            (OutOfBlocks, "allocate", 3, 5),
            (OutOfBlocks, "append", 2, 4),
            (KeyError, "free", 3),
            (ValueError, "fork", 1, 2),
            (ValueError, "append", 1, 0),
        ):
            with refuses(error, f"{method} was not refused"):
                getattr(subject, method)(*args)
    assert view.snapshot(subject, (1, 2)) == before, "many refused calls changed the allocator"
    whole_afterwards(subject, (1, 2), 4, 2)
