"""bfloat16, where hardware computes it.

Owns: the same properties for the third type. Needs a GPU: Triton's interpreter computes bfloat16 wrongly, and an honest
kernel must not pay for that.
"""

from __future__ import annotations

from autograder.judge import attention_cases as cases
from autograder.judge import attention_view as view
from autograder.judge.attention_cases import Draw
from autograder.judge.subject import Make

GROUP = "numerics"
DEVICE = "cuda"
WHY = "the interpreter of kernels computes bfloat16 wrongly"


def test_bfloat16_is_right(make: Make, seed: int) -> None:
    """bfloat16 keys, values and queries give the answer within 1e-2, for groups of 4 and of 8."""
    draw = Draw(seed)
    for kind, lengths in ((cases.BRAIN, [0, 1, 15, 16, 17, 300]), (cases.BRAIN_DEEP, [1, 33, 128])):
        content = draw.content(kind, lengths)
        view.check_call(make(), draw.placed(content), content, "bfloat16")


def test_bfloat16_sums_are_kept_in_float32(make: Make, seed: int) -> None:
    """A large value that is taken back later costs nothing in bfloat16 either."""
    draw = Draw(seed)
    content = draw.content(cases.BRAIN, [320], scale=0.0)
    for values in content.values:
        values.mul_(0.05).add_(0.3)
        values[1], values[-2] = 1024.0, -1024.0
    view.check_call(make(), draw.placed(content), content, "bfloat16 values that cancel")
