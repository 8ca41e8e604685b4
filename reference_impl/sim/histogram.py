"""A distribution in bounded memory: counts in buckets whose bounds grow by a fixed factor.

Owns: the counts, and exact count, sum, minimum and maximum. Knows nothing of what is counted. A value lies within
`RELATIVE_ERROR` of the value its bucket stands for, so every quantile does too; between 1 microsecond and a year there
are about 1,600 buckets. Adding is O(1), a quantile O(buckets).
Source: Masson, Rim and Lee, DDSketch, VLDB 2019.
"""

from __future__ import annotations

import math

RELATIVE_ERROR = 0.01
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / math.log(_GROWTH)


class Histogram:
    """Non-negative numbers, each with a count."""

    __slots__ = ("_counts", "_zeros", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._zeros = 0
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = -math.inf

    def add(self, value: float, count: int = 1) -> None:
        """Count `value`, `count` times. Raises: ValueError below 0, or on what is no number."""
        if not value >= 0 or value == math.inf:
            raise ValueError(f"a histogram takes finite numbers from 0 on, got {value}")
        self.count += count
        self.total += value * count
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value
        if value == 0:
            self._zeros += count
            return
        bucket = math.ceil(math.log(value) * _PER_LOG)
        self._counts[bucket] = self._counts.get(bucket, 0) + count

    @property
    def mean(self) -> float:
        """Exact, up to rounding. Raises: ValueError if nothing was counted."""
        if not self.count:
            raise ValueError("nothing was counted, so there is no mean")
        return self.total / self.count

    def quantile(self, share: float) -> float:
        """The smallest value with at least `share` of all values at or below it, within `RELATIVE_ERROR`.

        Raises: ValueError if nothing was counted, or unless 0 <= share <= 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is a share from 0 to 1, got {share}")
        if not self.count:
            raise ValueError("nothing was counted, so there is no quantile")
        wanted = max(1, math.ceil(share * self.count))
        if wanted == self.count:
            return self.maximum
        seen = self._zeros
        if seen >= wanted:
            return 0.0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                break
        middle = 2 * _GROWTH**bucket / (_GROWTH + 1)
        return min(max(middle, self.minimum), self.maximum)

    def buckets(self) -> list[tuple[float, int]]:
        """(value, count) of every bucket with values in it, by value: what a plot of the distribution needs."""
        zeros = [(0.0, self._zeros)] if self._zeros else []
        return zeros + [(2 * _GROWTH**bucket / (_GROWTH + 1), self._counts[bucket]) for bucket in sorted(self._counts)]
