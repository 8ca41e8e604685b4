"""How fast lab 4 is: the shapes that are timed, and the share of the read ceiling over all of them.

Owns: hidden decode steps drawn from a seed, equal and unequal, and one number for several of them. Knows nothing of
clocks: a subject on a GPU has one (`timed`). Keys and values of a case are far larger than a GPU's cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from autograder.gpu.timed import TimedCase

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, DTYPE = 32, 8, 128, 16, "float16"
"""One kind for all: a GPU compiles one kernel more."""
TOKENS = 100_000
"""About so many in each case: 400 MB of keys and values."""


def equal_cases(seed: int) -> tuple[TimedCase, ...]:
    """Batches of few and of many sequences, all of about one length."""
    draw = random.Random(seed)
    sizes = [draw.randint(18, 24), draw.randint(60, 70), draw.randint(120, 140)]
    return tuple(_case([max(1, TOKENS // size - draw.randrange(17))] * size) for size in sizes)


def unequal_cases(seed: int) -> tuple[TimedCase, ...]:
    """Lengths as users have them, a few long ones among many short, and one that is longer than all others together."""
    draw = random.Random(seed)
    spread = [int(min(16_384, max(1, draw.lognormvariate(7, 1)))) for _ in range(64)]
    few_long = [draw.randint(12_000, 20_000) for _ in range(4)] + [draw.randint(1, 800) for _ in range(60)]
    one_long = [draw.randint(48_000, 60_000)] + [draw.randint(300, 700) for _ in range(63)]
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
