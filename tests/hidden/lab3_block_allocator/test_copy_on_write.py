"""Writers copy a shared partial tail.

Owns: when append returns a copy, from where, to where, and who holds what afterwards. The engine carries the copies out
before it writes, so a wrong pair is a wrong text: the last tests here read the text back.
"""

from __future__ import annotations

from autograder.judge import pool_view as view
from autograder.judge.subject import Make, Subject

GROUP = "copy_on_write"


def writes_with_a_copy(subject: Subject, writer: int, others: tuple[int, ...], tokens: int = 1) -> None:
    """`writer` appends and must copy its shared tail: the writer gets dst, `others` keep what they have."""
    before, free = view.table(subject, writer), view.num_free(subject)
    owned = view.held(subject, (writer, *others))
    kept = {seq: (view.num_tokens(subject, seq), view.table(subject, seq)) for seq in others}
    copies = view.append(subject, writer, tokens)
    assert len(copies) > 0, "append into a shared partial tail returned no copy"
    assert len(copies) == 1, "one append returned more than one copy"
    (src, dst), after = copies[0], view.table(subject, writer)
    assert src == before[-1], "the copy does not start from the shared tail"
    assert dst not in owned, "the copy goes to a block that was held already"
    assert after[: len(before)] == [*before[:-1], dst], "the writer does not hold dst in the place of the shared tail"
    for seq in others:
        now = (view.num_tokens(subject, seq), view.table(subject, seq))
        assert now == kept[seq], "a write of one holder changed another holder"
    taken = 1 + len(after) - len(before)
    assert view.num_free(subject) == free - taken, (
        "a copying append took more or fewer blocks than copy and growth need"
    )


def writes_in_place(subject: Subject, writer: int, tokens: int = 1) -> None:
    """`writer` appends and must neither copy nor leave its tail."""
    before = view.table(subject, writer)
    assert view.append(subject, writer, tokens) == [], "append that may write in place returned a copy"
    assert view.table(subject, writer)[: len(before)] == before, "append that may write in place changed the table"


def test_a_child_that_writes_first_copies_the_tail(make: Make) -> None:
    """The child writes into the shared partial tail first: it gets dst, the parent keeps src."""
    for tokens in (1, 5, 7):
        subject = make(8, 4)
        subject.allocate(1, tokens)
        subject.fork(1, 2)
        writes_with_a_copy(subject, 2, (1,))


def test_a_parent_that_writes_first_copies_the_tail(make: Make) -> None:
    """The parent writes into the shared partial tail first: it gets dst, the child keeps src."""
    for tokens in (1, 5, 7):
        subject = make(8, 4)
        subject.allocate(1, tokens)
        subject.fork(1, 2)
        writes_with_a_copy(subject, 1, (2,))


def test_the_last_holder_writes_in_place(make: Make) -> None:
    """Once every other holder has copied or ended, the last one writes in place."""
    for first, last in ((1, 2), (2, 1)):
        subject = make(8, 4)
        subject.allocate(1, 6)
        subject.fork(1, 2)
        writes_with_a_copy(subject, first, (last,))
        writes_in_place(subject, last)
        subject = make(8, 4)
        subject.allocate(1, 6)
        subject.fork(1, 2)
        subject.free(first)
        writes_in_place(subject, last)


def test_all_holders_but_the_last_copy(make: Make) -> None:
    """With four holders of one partial tail three writers copy it and the fourth does not."""
    for order in ((1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3)):
        subject = make(10, 4)
        subject.allocate(1, 6)
        for child in (2, 3, 4):
            subject.fork(1, child)
        for writer in order[:3]:
            writes_with_a_copy(subject, writer, tuple({1, 2, 3, 4} - {writer}))
        writes_in_place(subject, order[3])
        assert len(view.held(subject, order)) == 5, "four holders that wrote do not hold one head and four tails"


def test_writers_among_forks_of_forks_copy(make: Make) -> None:
    """In a chain of forks every writer but the last copies, also after some have ended."""
    subject = make(12, 4)
    subject.allocate(1, 7)
    for child in (2, 3, 4, 5):
        subject.fork(child - 1, child)
    subject.free(3)
    writes_with_a_copy(subject, 2, (1, 4, 5))
    subject.fork(2, 6)
    writes_with_a_copy(subject, 5, (1, 2, 4, 6))
    subject.free(1)
    writes_in_place(subject, 4)


def test_a_copy_is_made_once(make: Make) -> None:
    """After its copy the writer owns its tail and goes on in place."""
    subject = make(8, 8)
    subject.allocate(1, 3)
    subject.fork(1, 2)
    writes_with_a_copy(subject, 2, (1,))
    for _ in range(4):
        writes_in_place(subject, 2)
    writes_in_place(subject, 1, 5)


def test_a_tail_shared_again_is_copied_again(make: Make) -> None:
    """A tail that was copied and is then forked is shared again: the next writer copies again."""
    subject = make(8, 8)
    subject.allocate(1, 3)
    subject.fork(1, 2)
    writes_with_a_copy(subject, 2, (1,))
    subject.fork(2, 3)
    writes_with_a_copy(subject, 2, (1, 3))
    writes_in_place(subject, 3)
    writes_in_place(subject, 1)


def test_a_full_shared_tail_is_never_copied(make: Make) -> None:
    """A full shared tail is not written, so it stays shared: append only takes new blocks."""
    for block_size, tokens in ((4, 8), (4, 4), (1, 3), (1, 1)):
        subject = make(12, block_size)
        subject.allocate(1, tokens)
        subject.fork(1, 2)
        shared = view.table(subject, 1)
        for writer in (2, 1):
            assert view.append(subject, writer, 2) == [], "append behind a full shared tail returned a copy"
            assert view.table(subject, writer)[: len(shared)] == shared, "append behind a full tail left a shared block"
            assert view.num_tokens(subject, writer) == tokens + 2, "append behind a full tail did not count its tokens"


def test_only_the_tail_is_copied(make: Make) -> None:
    """Full blocks before the tail stay shared when a writer copies its tail."""
    subject = make(12, 2)
    subject.allocate(1, 9)
    subject.fork(1, 2)
    subject.fork(1, 3)
    writes_with_a_copy(subject, 3, (1, 2))
    heads = {tuple(view.table(subject, seq)[:4]) for seq in (1, 2, 3)}
    assert len(heads) == 1, "a writer that copied its tail left the shared blocks before it"


def test_one_append_makes_at_most_one_copy(make: Make) -> None:
    """An append over several blocks copies the shared tail once, in its place, and takes new blocks behind it."""
    for more in (3, 6, 7, 10):
        subject = make(12, 4)
        subject.allocate(1, 6)
        subject.fork(1, 2)
        writes_with_a_copy(subject, 2, (1,), more)
        table = view.table(subject, 2)
        assert len(table) == view.blocks_for(6 + more, 4), "a copying append took too many or too few blocks"
        assert len(set(table)) == len(table), "a copying append put a block into its table twice"


def test_a_copy_that_just_fills_the_tail_takes_no_more(make: Make) -> None:
    """An append that fills the copied tail exactly takes one block, the copy, and no other."""
    subject = make(3, 4)
    subject.allocate(1, 5)
    subject.fork(1, 2)
    writes_with_a_copy(subject, 2, (1,), 3)
    assert view.num_free(subject) == 0, "an append that just fills its copied tail did not take exactly one block"
    writes_in_place(subject, 1, 3)


def test_a_copied_tail_is_given_up_not_freed(make: Make) -> None:
    """The block a writer copied from stays the others' and is free when they end, not before."""
    subject = make(6, 4)
    subject.allocate(1, 6)
    subject.fork(1, 2)
    writes_with_a_copy(subject, 2, (1,))
    subject.free(2)
    assert view.num_free(subject) == 4, "the end of a writer did not free exactly its copy"
    subject.allocate(3, 16)
    assert not set(view.table(subject, 1)) & set(view.table(subject, 3)), (
        "a block copied from was handed out while held"
    )
    subject.free(1)
    assert view.num_free(subject) == 2, "the block copied from was not free after its last holder ended"


def test_beams_read_back_what_they_wrote(make: Make) -> None:
    """Beams that fork, write and end read back their own text after every copy is carried out."""
    block_size = 3
    subject, memory, texts = make(24, block_size), {}, {0: "prompt!"}
    subject.allocate(0, 7)
    for slot, letter in zip(view.slots(subject, 0, 0, 7), texts[0], strict=True):
        memory[slot] = letter
    beams, next_id = [0], 1
    for step in range(12):
        for parent in list(beams):
            if len(beams) < 3:
                subject.fork(parent, next_id)
                texts[next_id] = texts[parent]
                beams.append(next_id)
                next_id += 1
        for beam in beams:
            at = len(texts[beam])
            for src, dst in view.append(subject, beam):
                for offset in range(block_size):
                    memory[dst * block_size + offset] = memory.get(src * block_size + offset, "?")
            (slot,) = view.slots(subject, beam, at, at + 1)
            memory[slot] = chr(ord("a") + (step * 5 + beam) % 26)
            texts[beam] += memory[slot]
        for beam in beams:
            read = "".join(memory.get(slot, "?") for slot in view.slots(subject, beam, 0, len(texts[beam])))
            assert read == texts[beam], "a beam does not read back the text it wrote"
        subject.free(beams.pop(step % len(beams)))
