"""Speed on a GPU, sequences of very unequal lengths: bands of the read ceiling that is measured beside it.

Owns: the bands. Decode is memory-bound, so speed is a share of what the same GPU reads in the same run. Knows nothing
of how time is taken.
"""

from __future__ import annotations

from autograder.judge.attention_speed import share
from autograder.judge.subject import Make

GROUP = "bandwidth_unequal"
DEVICE = "cuda"
WHY = "the interpreter of kernels has no speed"
TIMED = True
"""Whether these tests need a clock, which a grader with a GPU has."""
SLOWER = "keys and values are read at a smaller share of what this GPU can read"


def test_unequal_lengths_reach_10_percent(make: Make, seed: int) -> None:
    """With sequences of very unequal lengths, keys and values are read at 10 % of the read ceiling or more."""
    assert share(make(), "unequal", seed) >= 0.1, SLOWER


def test_unequal_lengths_reach_30_percent(make: Make, seed: int) -> None:
    """With sequences of very unequal lengths, keys and values are read at 30 % of the read ceiling or more."""
    assert share(make(), "unequal", seed) >= 0.3, SLOWER


def test_unequal_lengths_reach_45_percent(make: Make, seed: int) -> None:
    """With sequences of very unequal lengths, keys and values are read at 45 % of the read ceiling or more."""
    assert share(make(), "unequal", seed) >= 0.45, SLOWER


def test_unequal_lengths_reach_60_percent(make: Make, seed: int) -> None:
    """With sequences of very unequal lengths, keys and values are read at 60 % of the read ceiling or more."""
    assert share(make(), "unequal", seed) >= 0.6, SLOWER
