"""Every block is owned or free, never both.

Owns: the properties that count: nothing is lost, nothing is made, nothing is handed out twice. Knows nothing of
copies or of refused calls, but for the second free, which is the oldest way to make a block out of nothing.
"""

from __future__ import annotations

import random
from itertools import permutations

from autograder.judge import pool_view as view
from autograder.judge.subject import Make, refuses

GROUP = "conservation"


def test_a_fresh_pool_is_entirely_free(make: Make) -> None:
    """A new pool has all its blocks free, whatever its size."""
    for num_blocks, block_size in ((1, 1), (1, 16), (7, 3), (100, 1)):
        assert view.num_free(make(num_blocks, block_size)) == num_blocks, "a fresh pool is not entirely free"


def test_free_and_held_blocks_add_up_after_every_call(make: Make) -> None:
    """Free blocks and blocks held by at least one sequence add up to num_blocks after every call."""
    subject = make(20, 4)
    live: set[int] = set()
    program = (
        *(("allocate", 1, 6), ("allocate", 2, 4), ("fork", 1, 3), ("append", 3, 1), ("append", 1, 3), ("fork", 2, 4)),
        *(("append", 4, 5), ("free", 1), ("fork", 3, 5), ("free", 3), ("append", 5, 2), ("allocate", 6, 9)),
        *(("append", 2, 8), ("free", 2), ("free", 4), ("append", 6, 4), ("free", 5), ("free", 6)),
    )
    for method, seq, *rest in program:
        getattr(subject, method)(seq, *rest)
        live |= {rest[0] if method == "fork" else seq}
        live -= {seq} if method == "free" else set()
        total = view.num_free(subject) + len(view.held(subject, live))
        assert total == 20, "free and held blocks do not add up to the pool"


def test_no_block_has_two_owners(make: Make) -> None:
    """Sequences that were never forked have no block in common, however they grow and end."""
    subject = make(30, 2)
    for seq in range(5):
        subject.allocate(seq, 3)
    for step in range(40):
        subject.append(step % 5)
        if step % 8 == 7:
            seq = (step // 8) % 5
            subject.free(seq)
            subject.allocate(seq, 2)
        blocks = [block for seq in range(5) for block in view.table(subject, seq)]
        assert len(set(blocks)) == len(blocks), "a block stands in the tables of two sequences that share nothing"


def test_no_slot_belongs_to_two_tokens(make: Make) -> None:
    """The slots of all tokens of sequences that share nothing are all different."""
    subject = make(12, 4)
    for seq, tokens in ((1, 5), (2, 4), (3, 9)):
        subject.allocate(seq, tokens)
    subject.free(2)
    for _ in range(7):
        subject.append(1)
        subject.append(3, 2)
    slots = [slot for seq in (1, 3) for slot in view.slots(subject, seq, 0, view.num_tokens(subject, seq))]
    assert len(set(slots)) == len(slots), "two tokens lie in the same slot"
    assert len(slots) == 12 + 23, "not every token has a slot"


def test_the_last_block_can_be_allocated(make: Make) -> None:
    """A pool can be filled to its last block by allocate, in one call or in many."""
    subject = make(6, 4)
    subject.allocate(1, 24)
    assert sorted(view.table(subject, 1)) == list(range(6)), "one sequence could not hold every block of the pool"
    subject.free(1)
    for seq in range(6):
        subject.allocate(seq, 4)
    assert view.held(subject, range(6)) == set(range(6)), "many sequences could not hold every block of the pool"
    assert view.num_free(subject) == 0, "a full pool does not have 0 free blocks"


def test_the_last_block_can_be_appended(make: Make) -> None:
    """A pool can be filled to its last block by append."""
    subject = make(5, 3)
    subject.allocate(1, 1)
    subject.append(1, 11)
    subject.append(1, 3)
    assert sorted(view.table(subject, 1)) == list(range(5)), "append could not take the last block of the pool"
    assert view.num_free(subject) == 0, "a full pool does not have 0 free blocks"


def test_a_pool_of_one_block_works(make: Make) -> None:
    """A pool of a single block can be taken, grown in, shared and given back."""
    subject = make(1, 4)
    for seq in range(3):
        subject.allocate(seq, 1)
        subject.append(seq, 3)
        subject.fork(seq, 9)
        subject.free(seq)
        assert view.num_free(subject) == 0, "the only block counts as free while a sequence holds it"
        assert view.table(subject, 9) == [0], "the only block is not in the table of the sequence that holds it"
        subject.free(9)
        assert view.num_free(subject) == 1, "the only block did not come back"


def test_freed_blocks_are_used_again_and_again(make: Make) -> None:
    """Blocks of a freed sequence are free at once; a pool never wears out."""
    subject = make(4, 2)
    for seq in range(25):
        subject.allocate(seq, 3)
        subject.append(seq, 5)
        assert sorted(view.table(subject, seq)) == [0, 1, 2, 3], "after blocks were freed the pool cannot be filled"
        subject.free(seq)
        assert view.num_free(subject) == 4, "a freed sequence did not give all its blocks back"


def test_every_order_of_freeing_gives_every_block_back(make: Make) -> None:
    """Whatever order sequences end in, every block comes back, once."""
    for order in permutations(range(4)):
        subject = make(8, 2)
        for seq in range(4):
            subject.allocate(seq, 3)
        for count, seq in enumerate(order, 1):
            subject.free(seq)
            assert view.num_free(subject) == 2 * count, "a freed sequence did not give exactly its blocks back"
        subject.allocate(5, 16)
        assert sorted(view.table(subject, 5)) == list(range(8)), "after freeing, the pool does not hold each block once"


def test_a_freed_id_may_be_used_again(make: Make) -> None:
    """An id that was freed starts afresh: by allocate or as a child, with nothing left of its first life."""
    subject = make(10, 4)
    subject.allocate(1, 13)
    subject.allocate(2, 6)
    subject.free(1)
    subject.allocate(1, 3)
    assert view.num_tokens(subject, 1) == 3, "an id used again remembers the tokens of its first life"
    assert len(view.table(subject, 1)) == 1, "an id used again remembers the blocks of its first life"
    subject.free(1)
    subject.fork(2, 1)
    assert view.table(subject, 1) == view.table(subject, 2), "an id used again as a child does not share its parent"
    subject.free(2)
    subject.free(1)
    assert view.num_free(subject) == 10, "an id used again lost blocks"


def test_a_second_free_frees_nothing(make: Make) -> None:
    """Freeing a sequence twice is a KeyError, and no block becomes free twice."""
    subject = make(6, 4)
    subject.allocate(1, 8)
    subject.allocate(2, 4)
    subject.free(1)
    with refuses(KeyError, "a sequence was freed twice"):
        subject.free(1)
    assert view.num_free(subject) == 5, "a second free changed the free count"
    subject.allocate(3, 20)
    assert not set(view.table(subject, 2)) & set(view.table(subject, 3)), "after a second free a block has two owners"


def test_a_second_free_of_a_shared_sequence_frees_nothing(make: Make) -> None:
    """Freeing a child twice takes nothing from its parent."""
    subject = make(6, 4)
    subject.allocate(1, 10)
    subject.fork(1, 2)
    subject.free(2)
    with refuses(KeyError, "a forked sequence was freed twice"):
        subject.free(2)
    before = view.table(subject, 1)
    subject.allocate(3, 12)
    assert not set(before) & set(view.table(subject, 3)), "after a second free the parent's blocks were handed out"
    subject.free(1)
    subject.free(3)
    assert view.num_free(subject) == 6, "after a second free the pool lost or gained blocks"


def test_two_allocators_share_no_state(make: Make) -> None:
    """Two allocators know nothing of each other's blocks, sequences and counts."""
    first, second = make(4, 4), make(6, 2)
    first.allocate(1, 16)
    assert view.num_free(second) == 6, "blocks taken in one allocator are missing in another"
    with refuses(KeyError, "a sequence of one allocator was found in another"):
        second.num_tokens(1)
    second.allocate(1, 11)
    second.fork(1, 2)
    third = make(3, 3)
    assert view.num_free(third) == 3, "a new allocator does not start with all its blocks"
    first.free(1)
    assert view.num_free(first) == 4, "freeing in one allocator after a fork in another lost blocks"
    assert view.num_tokens(second, 1) == 11, "freeing in one allocator changed another"
    second.free(1)
    assert view.num_free(second) == 0, "freeing in one allocator freed blocks that a fork in another holds"
    second.free(2)
    assert view.num_free(second) == 6, "one allocator counted the holders of another's blocks"


def test_a_random_life_leaves_the_pool_whole(make: Make, seed: int) -> None:
    """After a few hundred random calls and the end of every sequence, each block is free once."""
    dice = random.Random(seed)
    subject = make(64, 4)
    live: list[int] = []
    for seq in range(120):
        if live and dice.random() < 0.5 and view.num_free(subject) >= 4:
            subject.append(dice.choice(live), dice.randint(1, 8))
        if live and dice.random() < 0.5:
            subject.fork(dice.choice(live), seq)
            live.append(seq)
        elif view.num_free(subject) >= 4:
            subject.allocate(seq, dice.randint(1, 16))
            live.append(seq)
        while live and (view.num_free(subject) < 8 or dice.random() < 0.2):
            subject.free(live.pop(dice.randrange(len(live))))
        total = view.num_free(subject) + len(view.held(subject, live))
        assert total == 64, "free and held blocks do not add up to the pool"
    for seq in live:
        subject.free(seq)
    subject.allocate(-1, 64 * 4)
    assert sorted(view.table(subject, -1)) == list(range(64)), (
        "after every sequence ended, a block is missing or double"
    )
