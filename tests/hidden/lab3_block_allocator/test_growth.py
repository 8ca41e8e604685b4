"""append: how a sequence grows when it shares nothing.

Owns: when a new block is taken and when not. Knows nothing of copies but that none is needed here.
"""

from __future__ import annotations

from autograder.judge import pool_view as view
from autograder.judge.subject import Make

GROUP = "growth"


def test_append_takes_a_block_only_when_the_tail_is_full(make: Make) -> None:
    """Token by token, a new block is taken exactly when the last one is full."""
    for block_size in (1, 2, 7):
        subject = make(6, block_size)
        subject.allocate(1, 1)
        for tokens in range(2, 6 * block_size + 1):
            subject.append(1)
            needed = view.blocks_for(tokens, block_size)
            assert len(view.table(subject, 1)) == needed, "append took a block too early or too late"
            assert view.num_free(subject) == 6 - needed, "the free count does not fit the blocks that append took"


def test_append_across_several_blocks_takes_exactly_enough(make: Make) -> None:
    """One append may span several blocks and takes no more than the tokens need, from every place in the tail."""
    for start in range(1, 9):
        for more in (1, 3, 4, 5, 8, 9, 17):
            subject = make(8, 4)
            subject.allocate(1, start)
            subject.append(1, more)
            table = view.table(subject, 1)
            assert view.num_tokens(subject, 1) == start + more, "append did not count all its tokens"
            assert len(table) == view.blocks_for(start + more, 4), "a long append took too many or too few blocks"
            assert len(set(table)) == len(table), "a long append took the same block twice"
            assert view.num_free(subject) == 8 - len(table), "the free count does not fit what a long append took"


def test_append_adds_one_token_unless_told(make: Make) -> None:
    """append(seq) appends one token."""
    subject = make(4, 2)
    subject.allocate(1, 2)
    subject.append(1)
    assert view.num_tokens(subject, 1) == 3, "append without a count does not add one token"
    subject.append(1)
    assert len(view.table(subject, 1)) == 2, "append without a count took a block that one token does not need"


def test_append_keeps_the_blocks_that_are_there(make: Make) -> None:
    """append adds at the end: earlier tokens stay in their slots."""
    subject = make(12, 3)
    subject.allocate(1, 4)
    subject.allocate(2, 2)
    for more in (1, 2, 5, 1, 7):
        tokens = view.num_tokens(subject, 1)
        before = view.slots(subject, 1, 0, tokens)
        subject.append(1, more)
        assert view.slots(subject, 1, 0, tokens) == before, "append moved tokens that were there before"
    assert view.num_tokens(subject, 1) == 20, "append did not count all its tokens"


def test_append_to_a_sequence_that_shares_nothing_copies_nothing(make: Make) -> None:
    """A sequence that shares nothing needs no copy: append returns []."""
    subject = make(12, 4)
    subject.allocate(1, 1)
    subject.allocate(2, 4)
    for more in (1, 2, 1, 6, 4, 3):
        assert view.append(subject, 1, more) == [], "append to a sequence that shares nothing returned a copy"
        assert view.append(subject, 2) == [], "append to a sequence that shares nothing returned a copy"
    assert view.num_tokens(subject, 1) == 18, "append did not count all its tokens"


def test_many_small_appends_equal_one_large(make: Make) -> None:
    """Growing token by token takes as many blocks as growing at once."""
    for start, more in ((1, 11), (4, 8), (3, 2), (8, 1)):
        slow, fast = make(6, 4), make(6, 4)
        slow.allocate(1, start)
        fast.allocate(1, start)
        for _ in range(more):
            slow.append(1)
        fast.append(1, more)
        assert view.num_tokens(fast, 1) == start + more, "append did not count all its tokens"
        assert len(view.table(slow, 1)) == len(view.table(fast, 1)), "many small appends and one large differ in blocks"
        assert view.num_free(slow) == view.num_free(fast), "many small appends and one large differ in free blocks"


def test_sequences_that_grow_in_turns_stay_apart(make: Make) -> None:
    """Sequences that grow in turns never write into each other's slots."""
    subject = make(16, 2)
    for seq in range(3):
        subject.allocate(seq, seq + 1)
    written: dict[int, tuple[int, int]] = {}
    for step in range(24):
        seq = (step * 2) % 3
        tokens = view.num_tokens(subject, seq)
        subject.append(seq)
        (slot,) = view.slots(subject, seq, tokens, tokens + 1)
        assert slot not in written, "an appended token was put into a slot that is in use"
        written[slot] = (seq, tokens)


def test_an_appended_token_lies_behind_the_last(make: Make) -> None:
    """Inside a block appended tokens lie in neighbouring slots."""
    subject = make(4, 8)
    subject.allocate(1, 3)
    (last,) = view.slots(subject, 1, 2, 3)
    subject.append(1, 5)
    expected = [last + step for step in range(1, 6)]
    assert view.slots(subject, 1, 3, 8) == expected, "tokens appended into the tail do not lie behind the last token"
