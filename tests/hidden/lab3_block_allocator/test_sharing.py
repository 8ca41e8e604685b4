"""fork: two sequences hold the same blocks.

Owns: what a fork costs (nothing), what it shares (everything) and when a shared block is free (when nobody holds it).
Knows nothing of copies: the sequences here grow from full tails only.
"""

from __future__ import annotations

from itertools import permutations

from autograder.judge import pool_view as view
from autograder.judge.subject import Make

GROUP = "sharing"


def test_a_child_holds_the_very_blocks_of_its_parent(make: Make) -> None:
    """A child has its parent's table, tokens and slots, the partial tail too."""
    for tokens in (1, 4, 7, 8):
        subject = make(8, 4)
        subject.allocate(1, tokens)
        subject.fork(1, 2)
        assert view.table(subject, 2) == view.table(subject, 1), "a child does not hold its parent's blocks in order"
        assert view.num_tokens(subject, 2) == tokens, "a child does not have its parent's tokens"
        assert view.slots(subject, 2, 0, tokens) == view.slots(subject, 1, 0, tokens), (
            "a child does not have its parent's slots"
        )


def test_a_fork_takes_no_block(make: Make) -> None:
    """fork takes no free block, in an empty pool or a full one."""
    for num_blocks in (3, 4, 9):
        subject = make(num_blocks, 4)
        subject.allocate(1, 11)
        subject.fork(1, 2)
        subject.fork(2, 3)
        assert view.num_free(subject) == num_blocks - 3, "fork changed the number of free blocks"


def test_over_half_of_memory_can_be_forked(make: Make) -> None:
    """A sequence over half of memory can be forked many times: memory is really shared."""
    subject = make(16, 4)
    subject.allocate(0, 13 * 4)
    for child in range(1, 30):
        subject.fork(0, child)
    assert view.num_free(subject) == 3, "forks of a large sequence changed the number of free blocks"
    assert len(view.held(subject, range(30))) == 13, "forks of a large sequence do not hold the same blocks"
    subject.allocate(99, 12)
    assert view.num_free(subject) == 0, "blocks that no fork holds could not be used"


def test_shared_blocks_live_until_their_last_holder_ends(make: Make) -> None:
    """In whatever order holders end, a shared block is free only after the last."""
    for order in permutations((1, 2, 3, 4)):
        subject = make(6, 4)
        subject.allocate(1, 10)
        subject.fork(1, 2)
        subject.fork(1, 3)
        subject.fork(3, 4)
        shared = view.table(subject, 1)
        for count, seq in enumerate(order, 1):
            subject.free(seq)
            assert view.num_free(subject) == (6 if count == 4 else 3), "a shared block was freed too early or too late"
            if count < 4:
                assert view.table(subject, order[3]) == shared, "the end of one holder changed another's table"


def test_blocks_that_somebody_holds_are_not_handed_out(make: Make) -> None:
    """After the end of a parent, new sequences never get the blocks its child still holds."""
    subject = make(6, 4)
    subject.allocate(1, 10)
    subject.fork(1, 2)
    subject.free(1)
    kept = set(view.table(subject, 2))
    subject.allocate(3, 12)
    assert not kept & set(view.table(subject, 3)), "a block that a child holds was handed out to another sequence"
    subject.free(2)
    subject.allocate(4, 12)
    assert set(view.table(subject, 4)) == kept, "blocks were not free after their last holder ended"


def test_the_end_of_a_child_takes_nothing_from_its_parent(make: Make) -> None:
    """After the end of a child, its parent's blocks are still the parent's."""
    subject = make(5, 4)
    subject.allocate(1, 8)
    subject.fork(1, 2)
    subject.free(2)
    assert view.num_free(subject) == 3, "the end of a child freed blocks that its parent holds"
    subject.allocate(3, 12)
    assert not set(view.table(subject, 1)) & set(view.table(subject, 3)), "a block of the parent was handed out"


def test_forks_of_forks_share_with_all(make: Make) -> None:
    """A chain of forks holds one set of blocks, and any of them may go first."""
    subject = make(4, 4)
    subject.allocate(0, 16)
    for child in range(1, 12):
        subject.fork(child - 1, child)
    tables = {tuple(view.table(subject, seq)) for seq in range(12)}
    assert len(tables) == 1, "forks of forks do not have the same table"
    for seq in (5, 0, 11, 3, 1, 2, 4, 6, 10, 8, 9):
        subject.free(seq)
        assert view.num_free(subject) == 0, "a block was freed although a fork of a fork holds it"
    subject.free(7)
    assert view.num_free(subject) == 4, "the last fork did not free the blocks"


def test_parent_and_child_grow_apart(make: Make) -> None:
    """After a fork, growth of one is not seen in the other's table and tokens."""
    subject = make(10, 4)
    subject.allocate(1, 8)
    subject.fork(1, 2)
    shared = view.table(subject, 1)
    subject.append(1, 5)
    assert view.table(subject, 2) == shared, "growth of the parent changed the child's table"
    assert view.num_tokens(subject, 2) == 8, "growth of the parent changed the child's tokens"
    grown = view.table(subject, 1)
    subject.append(2, 9)
    assert view.table(subject, 1) == grown, "growth of the child changed the parent's table"
    assert view.num_tokens(subject, 1) == 13, "growth of the child changed the parent's tokens"
    assert not set(grown[2:]) & set(view.table(subject, 2)[2:]), "parent and child grew into the same block"


def test_own_and_shared_blocks_end_apart(make: Make) -> None:
    """A sequence that ends frees the blocks it alone holds and keeps the shared ones for others."""
    subject = make(10, 4)
    subject.allocate(1, 8)
    subject.fork(1, 2)
    subject.append(2, 9)
    subject.fork(2, 3)
    subject.append(1, 4)
    subject.free(1)
    assert view.num_free(subject) == 5, "the end of a parent did not free exactly the blocks it alone held"
    subject.free(2)
    assert view.num_free(subject) == 5, "the end of a sequence freed blocks that its fork holds"
    subject.free(3)
    assert view.num_free(subject) == 10, "the last holder did not free the blocks"


def test_an_id_can_be_forked_onto_again_and_again(make: Make) -> None:
    """Forking, ending and forking onto the same id loses nothing."""
    subject = make(4, 4)
    subject.allocate(1, 7)
    for _ in range(20):
        subject.fork(1, 2)
        assert view.num_tokens(subject, 2) == 7, "a child that is forked again does not start with its parent's tokens"
        subject.free(2)
        assert view.num_free(subject) == 2, "forking and ending changed the number of free blocks"
    subject.free(1)
    assert view.num_free(subject) == 4, "forking and ending many times lost a block"
