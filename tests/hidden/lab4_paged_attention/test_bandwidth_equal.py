"""Speed on a GPU, sequences of equal length: bands of the read ceiling that is measured beside it.

Owns: the bands. Decode is memory-bound, so speed is a share of what the same GPU reads in the same run. Knows nothing
of how time is taken.
"""

from __future__ import annotations

from autograder.judge.attention_speed import share
from autograder.judge.subject import Make

GROUP = "bandwidth_equal"
DEVICE = "cuda"
WHY = "the interpreter of kernels has no speed"
TIMED = True
"""Whether these tests need a clock, which a grader with a GPU has."""
SLOWER = "keys and values are read at a smaller share of what this GPU can read"


def test_equal_lengths_reach_30_percent(make: Make, seed: int) -> None:
    """With sequences of equal length, keys and values are read at 30 % of the read ceiling or more."""
    assert share(make(), "equal", seed) >= 0.3, SLOWER


def test_equal_lengths_reach_50_percent(make: Make, seed: int) -> None:
    """With sequences of equal length, keys and values are read at 50 % of the read ceiling or more."""
    assert share(make(), "equal", seed) >= 0.5, SLOWER


def test_equal_lengths_reach_65_percent(make: Make, seed: int) -> None:
    """With sequences of equal length, keys and values are read at 65 % of the read ceiling or more."""
    assert share(make(), "equal", seed) >= 0.65, SLOWER


def test_equal_lengths_reach_75_percent(make: Make, seed: int) -> None:
    """With sequences of equal length, keys and values are read at 75 % of the read ceiling or more."""
    assert share(make(), "equal", seed) >= 0.75, SLOWER
