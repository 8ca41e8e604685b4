"""Long contexts, also beside short ones, whether or not they are split into parts that are merged.

Owns: lengths at which splitting pays, parts without tokens, and parts whose scores differ much. Knows nothing of how
many parts there are: a kernel that splits nothing is as right as any.
"""

from __future__ import annotations

import torch

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import Content, Draw, Kind, Layout
from autograder.judge.subject import Make

GROUP = "split_kv"


def stepped(draw: Draw, kind: Kind, steps: list[float], length: int) -> Content:
    """One sequence whose scores are the numbers of `steps`, each for an equal part of its tokens, exactly."""
    content = draw.content(kind, [length], scale=1.0)
    content.query.zero_()
    content.query[..., 0] = 8
    parts = torch.tensor(steps).repeat_interleave(-(-length // len(steps)))[:length]
    content.keys[0][:, :, 0] = parts.div(8).to(kind.dtype).view(-1, 1)
    return content


def test_a_long_sequence_is_right(make: Make, seed: int) -> None:
    """One long sequence, alone in its batch, in float32 and in float16."""
    draw = Draw(seed)
    for kind, length in ((cases.WIDE, 700), (cases.HALF_GROUPED, 515)):
        content = draw.content(kind, [length])
        view.check_call(make(), draw.placed(content), content, "one long sequence")


def test_very_unequal_lengths_are_right(make: Make, seed: int) -> None:
    """A long sequence beside ones of 0, 1 and a few tokens: most parts of the short ones are empty."""
    draw = Draw(seed)
    for kind, lengths in ((cases.WIDE, [600, 0, 1, 5]), (cases.PAIRS, [1, 2, 0, 17, 290])):
        content = draw.content(kind, lengths)
        view.check_call(make(), draw.placed(content), content, "very unequal lengths")


def test_lengths_round_powers_of_two_are_right(make: Make, seed: int) -> None:
    """Lengths that fill parts exactly, miss one token, or begin one more part."""
    draw = Draw(seed)
    content = draw.content(cases.WIDE, [31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257])
    view.check_call(make(), draw.placed(content), content, "lengths round a part's end")


def test_parts_with_other_scores_are_merged_by_their_weight(make: Make, seed: int) -> None:
    """The largest scores may all lie in the first part, in the last or in the middle: merging rescales the others."""
    draw = Draw(seed)
    for kind in (cases.WIDE, cases.HALF_ODD):
        for steps in ([64.0, 0.0, -64.0, 32.0], [-32.0, 0.0, 8.0], [0.0, 3.0, 2.0, 0.0, 1.0], [-1024.0, -1152.0]):
            content = stepped(draw, kind, steps, 280)
            view.check_call(make(), draw.placed(content), content, "parts with very different scores")


def test_poison_reaches_no_part(make: Make, seed: int) -> None:
    """Unwritten slots and garbage entries stay unread in long sequences too."""
    draw = Draw(seed)
    content = draw.content(cases.HALF_GROUPED, [301, 3, 0, 130])
    nan = float("nan")
    layout = Layout(key_poison=nan, value_poison=nan, pads=(2**31 - 1, -1), spare_blocks=5)
    view.check_call(make(), draw.placed(content, layout), content, "long sequences among unwritten slots")


def test_blocks_of_one_token_in_a_long_sequence_are_right(make: Make, seed: int) -> None:
    """A table with hundreds of entries, each a block of one token."""
    draw = Draw(seed)
    content = draw.content(cases.SINGLE, [150, 3])
    view.check_call(make(), draw.placed(content), content, "hundreds of blocks of one token")


def test_a_long_sequence_in_large_blocks_is_right(make: Make, seed: int) -> None:
    """Several blocks of 256, the last one nearly empty."""
    draw = Draw(seed)
    content = draw.content(cases.LARGE_BLOCKS, [769, 300])
    view.check_call(make(), draw.placed(content, Layout(spare_blocks=1)), content, "several blocks of 256")


def test_calls_of_other_lengths_leave_nothing_behind(make: Make, seed: int) -> None:
    """A short call after a long one is right: nothing of the long one is merged into it."""
    draw = Draw(seed)
    subject = make()
    for lengths in ([300, 280], [3, 2], [0, 150], [290, 1]):
        content = draw.content(cases.WIDE, lengths)
        view.check_call(subject, draw.placed(content), content, "a call after one with other lengths")
