"""What was hoped for, as data: a figure is held against it, and missing it is a result like any other.

Owns: the goals and how they are compared. Knows nothing of how a figure came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Figure = Literal["rate", "per_operation_s", "median_s", "ratio"]
"""Operations a second; seconds of one operation; seconds of a whole round; the cost of one case over another's."""


@dataclass(frozen=True)
class Goal:
    """`figure` at least, or at most, `value`."""

    figure: Figure
    value: float

    @property
    def at_least(self) -> bool:
        """Whether more is better: of rates alone."""
        return self.figure == "rate"

    def is_met(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value


POOL = Goal("rate", 2e6)
"""Blocks taken and given back in batches, a second."""
GROW = Goal("per_operation_s", 0.6e-6)
"""One token more in a block that has room for it: a simulator asks this millions of times."""
DECODE = Goal("per_operation_s", 2e-6)
"""One running decode in one step, scheduled and finished: 256 of them cost half a millisecond."""
MOONCAKE = Goal("median_s", 60.0)
"""The trace of 12,031 requests, replayed on one core."""
FLAT = Goal("ratio", 2.0)
"""An operation that should not depend on the size: its cost at the largest size over that at the smallest. The larger
arrays do not fit into the caches, so a ratio of 1 is not to be had."""
