"""How fast lab 4 is: the shapes that are timed, and the share of the read ceiling over all of them.

Owns: hidden decode steps drawn from a seed, equal and unequal, and one number for several of them. Knows nothing of
clocks: a subject on a GPU has one (`timed`). Keys and values of a case are far larger than a GPU's cache.

What decides how fast a kernel can be (how many sequences, how many tokens, how long the longest) hardly depends on the
seed, so that nobody's kernel stands a band higher for its luck; which lengths they are does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from autograder.gpu.timed import TimedCase

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, DTYPE = 32, 8, 128, 16, "float16"
"""One kind for all: a GPU compiles one kernel more."""
TOKENS = 100_000
"""About so many in each case: 400 MB of keys and values."""


def equal_cases(seed: int) -> tuple[TimedCase, ...]:
    """Batches of few and of many sequences, all of about one length."""
    draw = random.Random(seed)
    sizes = [draw.randint(20, 22), draw.randint(62, 66), draw.randint(126, 132)]
    return tuple(_case([max(1, TOKENS // size - draw.randrange(17))] * size) for size in sizes)


def unequal_cases(seed: int) -> tuple[TimedCase, ...]:
    """Lengths as users have them, a few long ones among many short, and one that is longer than all others together."""
    draw = random.Random(seed)
    # One from each 64th of the distribution: all draws have much the same total, and the same longest.
    users = NormalDist(7, 1)
    spread = [int(min(10_000, math.exp(users.inv_cdf((rank + draw.uniform(0.01, 0.99)) / 64)))) for rank in range(64)]
    few_long = [draw.randint(15_000, 17_000) for _ in range(4)] + [draw.randint(1, 800) for _ in range(60)]
    one_long = [draw.randint(52_000, 56_000)] + [draw.randint(300, 700) for _ in range(63)]
    for lengths in (spread, few_long, one_long):
        draw.shuffle(lengths)
    return tuple(_case(lengths) for lengths in (spread, few_long, one_long))


CASES = {"equal": equal_cases, "unequal": unequal_cases}


def share(subject: Any, kind: str, seed: int) -> float:
    """The share of the read ceiling that `subject` reaches, as the geometric mean over the cases of one kind.

    The other kinds are named too, so that one worker records all of them and one process times them.
    Raises: whatever ends a test, such as a wrong answer among the timed ones.
    """
    drawn = {name: draw(seed) for name, draw in CASES.items()}
    cases = drawn.pop(kind)
    timings = subject.timed(cases, seed, along=list(drawn.values()))
    return math.exp(sum(math.log(timing.share) for timing in timings) / len(timings))


def _case(lengths: Sequence[int]) -> TimedCase:
    return TimedCase(tuple(lengths), HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, DTYPE)
