"""Numbers: the softmax overflows nowhere, and sums are kept in float32.

Owns: logits of every size, and the bounds on the error. Knows nothing of layouts. Where logits are huge, they are made
so that float32 holds them exactly: no correct answer may depend on rounding.
"""

from __future__ import annotations

import torch

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import Content, Draw, Kind
from autograder.judge.subject import Make

GROUP = "numerics"


def with_logits(draw: Draw, kind: Kind, logits: list[list[float]]) -> Content:
    """One sequence for each list, whose scores before the softmax are these numbers exactly, for every head.

    They must be sums of few powers of two: the query is 8 in the first dimension, a key an eighth of its logit there.
    """
    content = draw.content(kind, [len(row) for row in logits], scale=1.0)
    content.query.zero_()
    content.query[..., 0] = 8
    for keys, row in zip(content.keys, logits, strict=True):
        keys[:, :, 0] = torch.tensor(row).div(8).to(kind.dtype).view(-1, 1)
    return content


def test_huge_logits_do_not_overflow(make: Make, seed: int) -> None:
    """Scores of a thousand and more give the average over the largest ones, not infinity or NaN."""
    draw = Draw(seed)
    for kind in (cases.PLAIN, cases.HALF_GROUPED):
        rows = [[1024.0, 1024.0, 0.0, -1024.0, 512.0], [4096.0] * 9, [0.0, 128.0, 128.0], [2048.0]]
        content = with_logits(draw, kind, rows)
        view.check_call(make(), draw.placed(content), content, "scores of a thousand and more")


def test_hugely_negative_logits_do_not_vanish(make: Make, seed: int) -> None:
    """If every score is far below zero, the weights still add up to one."""
    draw = Draw(seed)
    for kind in (cases.PLAIN, cases.HALF_GROUPED):
        rows = [[-1024.0] * 7, [-4096.0, -4096.0, -8192.0], [-512.0], [-256.0] * 40]
        content = with_logits(draw, kind, rows)
        view.check_call(make(), draw.placed(content), content, "scores far below zero")


def test_the_largest_score_may_come_first_or_last(make: Make, seed: int) -> None:
    """Scores that rise, fall, or jump along a sequence give the same quality: what was summed is rescaled."""
    draw = Draw(seed)
    for kind in (cases.WIDE, cases.HALF_ODD):
        rising = [float(i // 4) for i in range(100)]
        jumping = [0.0] * 40 + [24.0] + [12.0] * 20 + [25.0] + [0.0] * 15
        content = with_logits(draw, kind, [rising, rising[::-1], jumping, jumping[::-1], [0.0] * 65 + [8.0]])
        view.check_call(make(), draw.placed(content), content, "scores that rise, fall or jump")


def test_half_precision_sums_do_not_lose_small_parts(make: Make, seed: int) -> None:
    """float16 values are summed in float32: a large value that is taken back later costs nothing."""
    draw = Draw(seed)
    content = with_logits(draw, cases.HALF_ODD, [[0.0] * 320, [0.0] * 97])
    for values in content.values:
        values.mul_(0.05).add_(0.3)
        values[1], values[-2] = 1500.0, -1500.0
    view.check_call(make(), draw.placed(content), content, "float16 values that cancel")


def test_half_precision_scores_do_not_overflow(make: Make, seed: int) -> None:
    """float16 products are summed in float32: a score may pass through numbers that float16 does not have."""
    draw = Draw(seed)
    content = draw.content(cases.HALF_ODD, [30, 9, 3], scale=2.0**-12)
    content.query.add_(40)
    for keys in content.keys:
        keys.mul_(8).add_(40)
    view.check_call(make(), draw.placed(content), content, "float16 scores above 65504 before the scale")


def test_half_precision_weights_are_summed_in_float32(make: Make, seed: int) -> None:
    """The sum of many weights is kept in float32 too, so that a long average of ones is one."""
    draw = Draw(seed)
    # Each weight is 1 / e but the first: sums that float16 rounds one way again and again.
    content = with_logits(draw, cases.HALF_ODD, [[1.0] + [0.0] * 2200])
    content.values[0].fill_(1.0)
    view.check_call(make(), draw.placed(content), content, "a long average of ones")


def test_float32_is_exact_to_its_bound(make: Make, seed: int) -> None:
    """In float32 the relative error is at most 1e-5, heads of 128 and long sequences included."""
    draw = Draw(seed)
    for kind, lengths in ((cases.WIDE, [200, 31]), (cases.DEEP, [150, 64])):
        content = draw.content(kind, lengths)
        view.check_call(make(), draw.placed(content), content, "float32")


def test_a_constant_value_is_returned(make: Make, seed: int) -> None:
    """If all values are equal, so is the answer, whatever the scores: the weights add up to one."""
    draw = Draw(seed)
    for kind, lengths in ((cases.GROUPED, [1, 5, 12]), (cases.HALF_ODD, [6, 7, 29])):
        content = draw.content(kind, lengths, scale=1.0)
        for values in content.values:
            values.copy_(values[:1].clone().expand_as(values))
        view.check_call(make(), draw.placed(content), content, "equal values")
