"""What is not there is not read: tails of blocks, free blocks, unused entries of tables.

Owns: the poison, in slots and tables, and that it reaches no answer. Knows nothing of groups or layouts.
"""

from __future__ import annotations

from dataclasses import replace

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import HUGE, Draw, Layout
from autograder.judge.subject import Make

GROUP = "ragged_tails"
NAN = float("nan")
POISONED = Layout(key_poison=NAN, value_poison=NAN)
FAR = 2**31 - 1


def test_every_tail_of_a_block_is_right(make: Make, seed: int) -> None:
    """Every length from 1 to beyond two blocks, in one batch."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, list(range(1, 11)))
    view.check_call(make(), draw.placed(content, POISONED), content, "a batch with every tail")
    content = draw.content(cases.PAIRS, [2, 7, 15, 18, 31, 32, 33, 47])
    view.check_call(make(), draw.placed(content, POISONED), content, "a batch with many tails")


def test_a_tail_in_a_large_block_is_right(make: Make, seed: int) -> None:
    """A block of 256 tokens may be full, nearly full, or hold one token."""
    draw = Draw(seed)
    content = draw.content(cases.LARGE_BLOCKS, [1, 2, 100, 255, 256, 257])
    view.check_call(make(), draw.placed(content, replace(POISONED, spare_blocks=1)), content, "blocks of 256")


def test_unwritten_keys_are_not_read(make: Make, seed: int) -> None:
    """NaN in unwritten key slots and free blocks reaches no answer."""
    draw = Draw(seed)
    for kind, lengths in ((cases.PLAIN, [1, 3, 5, 9]), (cases.HALF_GROUPED, [1, 17, 30])):
        content = draw.content(kind, lengths)
        layout = Layout(key_poison=NAN, value_poison=0.0)
        view.check_call(make(), draw.placed(content, layout), content, "NaN in unwritten key slots")


def test_unwritten_values_are_not_read(make: Make, seed: int) -> None:
    """NaN or infinity in unwritten value slots and free blocks reaches no answer, not even as 0 times NaN."""
    draw = Draw(seed)
    for kind, lengths in ((cases.PLAIN, [1, 3, 5, 9]), (cases.HALF_GROUPED, [1, 17, 30])):
        content = draw.content(kind, lengths)
        for poison in (NAN, float("inf")):
            layout = Layout(key_poison=0.0, value_poison=poison)
            view.check_call(make(), draw.placed(content, layout), content, "NaN or infinity in unwritten value slots")


def test_what_stands_in_unwritten_slots_changes_no_bit(make: Make, seed: int) -> None:
    """NaN and huge numbers in unwritten slots give the same bits."""
    for kind, lengths in ((cases.PLAIN, [2, 7, 12]), (cases.HALF_ODD, [3, 8, 20]), (cases.PAIRS, [5, 18])):
        answers = []
        for poison in (NAN, HUGE[kind.dtype], -HUGE[kind.dtype]):
            draw = Draw(seed)
            content = draw.content(kind, lengths)
            layout = Layout(key_poison=poison, value_poison=poison)
            answers.append(draw.placed(content, layout).run(make()))
        view.check(answers[0], content.answer(), "NaN in unwritten slots")
        for answer in answers[1:]:
            assert view.same_bits(answers[0], answer), "what stands in an unwritten slot changes the answer"


def test_entries_of_minus_one_are_no_blocks(make: Make, seed: int) -> None:
    """-1 behind the last block of a table is not looked up, as the last block of the cache say."""
    draw = Draw(seed)
    for kind, lengths in ((cases.PLAIN, [1, 4, 6, 13]), (cases.WIDE, [15, 16, 40])):
        content = draw.content(kind, lengths)
        view.check_call(make(), draw.placed(content, Layout(pads=(-1,))), content, "-1 in unused table entries")


def test_garbage_in_unused_entries_is_never_an_address(make: Make, seed: int) -> None:
    """Unused table entries may hold anything, such as numbers far outside of the cache."""
    draw = Draw(seed)
    for kind, lengths in ((cases.PLAIN, [1, 4, 6, 13]), (cases.HALF_GROUPED, [15, 16, 40])):
        content = draw.content(kind, lengths)
        for pads in ((FAR, -FAR), (10**6, -(10**6))):
            view.check_call(make(), draw.placed(content, Layout(pads=pads)), content, "garbage in unused table entries")


def test_blocks_of_others_in_unused_entries_are_not_read(make: Make, seed: int) -> None:
    """Unused entries may name blocks of other sequences, which are not read either."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, [2, 11, 4, 7])
    call = draw.placed(content, Layout(pads=(0, 1, 2), key_poison=1.0, value_poison=100.0))
    view.check_call(make(), call, content, "unused table entries that name blocks in use")


def test_a_sequence_that_shrank_forgets_its_end(make: Make, seed: int) -> None:
    """Only context_lens says how long a sequence is: blocks behind it may be full of another's tokens."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, [14, 9])
    call = draw.placed(content)
    subject = make()
    for shorter in (13, 12, 8, 5, 4, 1):
        call.context_lens[0] = shorter
        part = cases.Content(
            content.kind,
            content.query,
            (content.keys[0][:shorter], content.keys[1]),
            (content.values[0][:shorter], content.values[1]),
            content.scale,
        )
        view.check_call(subject, call, part, "a sequence shorter than its blocks")
