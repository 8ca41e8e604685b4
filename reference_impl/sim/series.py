"""How quantities went over time, in bounded memory, and their means over time.

Owns: bins of equal width, each with the mean over its time; when more are needed than there may be, neighbours are
joined and bins are twice as wide. Knows nothing of what the quantities are. The overall means are exact. Cost: O(number
of quantities) a call, and O(bins) once in as many calls as halving happens.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_BINS = 512
_FIRST_WIDTH_S = 1e-3


class Series:
    """Named quantities that stay what they are until they are said anew."""

    def __init__(self, names: Sequence[str], most_bins: int = MOST_BINS) -> None:
        if most_bins < 2 or most_bins % 2:
            raise ValueError(f"most_bins must be even and at least 2, got {most_bins}")
        self.names = tuple(names)
        self.bin_s = _FIRST_WIDTH_S
        self._most_bins = most_bins
        self._bins: list[list[float]] = []
        self._seconds: list[float] = []
        self._sums = [0.0] * len(self.names)
        self._clock_s = 0.0

    @property
    def duration_s(self) -> float:
        """Seconds covered so far."""
        return self._clock_s

    def hold(self, values: Sequence[float], seconds: float) -> None:
        """For the next `seconds` the quantities are `values`. Raises: ValueError on another number of values."""
        if len(values) != len(self.names):
            raise ValueError(f"{len(values)} values for {len(self.names)} quantities")
        if seconds <= 0:
            return
        self._sums = [total + value * seconds for total, value in zip(self._sums, values, strict=True)]
        end_s = self._clock_s + seconds
        while end_s > self._most_bins * self.bin_s:
            self._join_neighbours()
        place = int(self._clock_s / self.bin_s)
        while self._clock_s < end_s:
            until_s = min(end_s, (place + 1) * self.bin_s)
            self._put(min(place, self._most_bins - 1), values, until_s - self._clock_s)
            self._clock_s, place = until_s, place + 1

    def means(self) -> dict[str, float]:
        """Mean over all time covered; 0 for everything before any time has passed."""
        return {
            name: total / self._clock_s if self._clock_s else 0.0
            for name, total in zip(self.names, self._sums, strict=True)
        }

    def columns(self) -> dict[str, list[float]]:
        """`time_s` (the middle of each bin) and each quantity's mean in each bin that has any time."""
        filled = [place for place, seconds in enumerate(self._seconds) if seconds > 0]
        columns = {"time_s": [(place + 0.5) * self.bin_s for place in filled]}
        for row, name in enumerate(self.names):
            columns[name] = [self._bins[place][row] / self._seconds[place] for place in filled]
        return columns

    def _put(self, place: int, values: Sequence[float], seconds: float) -> None:
        while len(self._bins) <= place:
            self._bins.append([0.0] * len(self.names))
            self._seconds.append(0.0)
        sums = self._bins[place]
        for row, value in enumerate(values):
            sums[row] += value * seconds
        self._seconds[place] += max(seconds, 0.0)

    def _join_neighbours(self) -> None:
        if len(self._bins) % 2:
            self._bins.append([0.0] * len(self.names))
            self._seconds.append(0.0)
        pairs = range(0, len(self._bins), 2)
        self._bins = [[a + b for a, b in zip(self._bins[i], self._bins[i + 1], strict=True)] for i in pairs]
        self._seconds = [self._seconds[i] + self._seconds[i + 1] for i in pairs]
        self.bin_s *= 2
