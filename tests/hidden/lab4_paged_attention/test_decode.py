"""Decode: one query token for each sequence, one query head for each KV head.

Owns: the lengths round a block's end, the zero context, the scale, and that every call stands alone. Knows nothing of
groups of heads.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import Draw, Layout
from autograder.judge.subject import Make

GROUP = "decode"


def lengths_round(block_size: int, many: int) -> list[int]:
    """0, 1 and all that is next to a multiple of the block size, the longest last."""
    return sorted({0, 1, block_size - 1, block_size, block_size + 1, 2 * block_size, 2 * block_size + 1, many})


def test_every_length_round_a_block_is_right(make: Make, seed: int) -> None:
    """Lengths of 0, 1, one less than a block, a block, one more, and many tokens give attention's answer."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, lengths_round(4, 23))
    view.check_call(make(), draw.placed(content), content, "float32 in blocks of 4")


def test_larger_blocks_are_right(make: Make, seed: int) -> None:
    """The same in blocks of 16 and heads of 64."""
    draw = Draw(seed)
    content = draw.content(cases.WIDE, lengths_round(16, 77))
    view.check_call(make(), draw.placed(content), content, "float32 in blocks of 16")


def test_a_block_size_that_is_no_power_of_two_is_right(make: Make, seed: int) -> None:
    """The same in float16, in blocks of 7 and heads of 128."""
    draw = Draw(seed)
    content = draw.content(cases.HALF_ODD, lengths_round(7, 40))
    view.check_call(make(), draw.placed(content), content, "float16 in blocks of 7")


def test_blocks_of_one_token_are_right(make: Make, seed: int) -> None:
    """Every token in a block of its own."""
    draw = Draw(seed)
    content = draw.content(cases.SINGLE, [0, 1, 2, 3, 17, 33])
    view.check_call(make(), draw.placed(content), content, "float32 in blocks of 1")


def test_no_context_gives_zeros(make: Make, seed: int) -> None:
    """A context of 0 gives zeros, alone or between others, whatever stood in out."""
    draw = Draw(seed)
    for lengths in ([0], [0, 0, 0], [5, 0, 3, 0]):
        content = draw.content(cases.PLAIN, lengths)
        for fill in (float("nan"), 3.0):
            call = draw.placed(content, Layout(out_fill=fill))
            view.check_call(make(), call, content, "a batch with a context of 0")


def test_one_token_of_context_gives_its_value(make: Make, seed: int) -> None:
    """With one token of context the answer is that token's value."""
    draw = Draw(seed)
    content = draw.content(cases.WIDE, [1, 1, 1])
    out = draw.placed(content).run(make())
    want = torch.stack([value[0] for value in content.values]).double()
    view.check(out, want, "a context of one token")


def test_the_scale_is_the_one_given(make: Make, seed: int) -> None:
    """The scores are multiplied by the scale of the call, whatever it is."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, [9, 4, 13])
    for scale in (1.0, 0.01, 0.0, -0.5):
        other = replace(content, scale=scale)
        view.check_call(make(), draw.placed(other), other, "another scale than 1 / sqrt(head_dim)")


def test_the_order_of_sequences_is_the_order_of_answers(make: Make, seed: int) -> None:
    """A batch in another order gives the same answers in that order."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, [3, 11, 0, 6, 1])
    for order in (draw.order(5), [4, 3, 2, 1, 0]):
        other = replace(
            content,
            query=content.query[order],
            keys=tuple(content.keys[i] for i in order),
            values=tuple(content.values[i] for i in order),
        )
        view.check_call(make(), draw.placed(other), other, "a batch in another order")


def test_a_sequence_alone_is_a_batch(make: Make, seed: int) -> None:
    """A batch may be one sequence."""
    draw = Draw(seed)
    for kind, length in ((cases.PLAIN, 10), (cases.HALF_ODD, 22)):
        content = draw.content(kind, [length])
        view.check_call(make(), draw.placed(content), content, "one sequence alone")


def test_a_batch_of_many_sequences_is_right(make: Make, seed: int) -> None:
    """A batch may have any number of sequences: nothing depends on a power of two."""
    draw = Draw(seed)
    content = draw.content(cases.PLAIN, [1 + i % 6 for i in range(19)])
    view.check_call(make(), draw.placed(content), content, "a batch of many sequences")


def test_what_was_stored_is_attended_to(make: Make, seed: int) -> None:
    """Token after token: what store_kv wrote is what paged_attention reads."""
    draw = Draw(seed)
    subject = make()
    content = draw.content(cases.PLAIN, [6])
    call = draw.placed(content)
    call.key_cache.zero_()
    call.value_cache.zero_()
    for token in range(6):
        slot = int(call.block_tables[0, token // 4]) * 4 + token % 4
        part = slice(token, token + 1)
        new = (content.keys[0][part], content.values[0][part])
        subject.store_kv(*new, call.key_cache, call.value_cache, torch.tensor([slot]))
        call.context_lens[0] = token + 1
        so_far = replace(content, keys=(content.keys[0][: token + 1],), values=(content.values[0][: token + 1],))
        view.check_call(subject, call, so_far, "a sequence that grows token by token")


def test_every_call_stands_alone(make: Make, seed: int) -> None:
    """The same tensors with other numbers in them give another answer."""
    draw = Draw(seed)
    subject = make()
    content = draw.content(cases.PLAIN, [7, 12])
    call = draw.placed(content)
    view.check_call(subject, call, content, "the first call")
    for _ in range(2):
        other = replace(content, query=draw.normal(*content.query.shape))
        call.query.copy_(other.query)
        view.check_call(subject, call, other, "a second call with another query in the same tensors")
    call.value_cache.mul_(2)
    view.check_call(
        subject, call, replace(other, values=tuple(2 * v for v in content.values)), "a call with other values"
    )
    call.context_lens.copy_(torch.tensor([3, 12], dtype=torch.int32))
    shorter = replace(
        other,
        keys=(content.keys[0][:3], content.keys[1]),
        values=tuple(2 * v for v in (content.values[0][:3], content.values[1])),
    )
    view.check_call(subject, call, shorter, "a call with other context lengths")
