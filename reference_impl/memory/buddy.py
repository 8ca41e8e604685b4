"""The buddy system: ranges in powers of two, so that a freed range finds its neighbour by one bit.

Owns: the free ranges of each size, and who holds which. Knows nothing of tokens or requests. It trades external
fragmentation for internal: a request of 2**k + 1 units takes 2**(k + 1).
A capacity that is no power of two is a row of roots, the binary digits of the capacity, largest first; roots never
merge, so no range is longer than the largest root. The buddy of (start, size) is start ^ size.
Invariants: ranges and free ranges tile [0, capacity); each is aligned to its size; no two free buddies stay apart.
Cost: O(log capacity) splits or merges a call, each one bisection in a sorted list.
Source: Knowlton, CACM 8(10), 1965; Knuth, The Art of Computer Programming, volume 1, section 2.5.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import index

from labkit.contracts import OutOfMemory
from reference_impl.memory.contiguous import at_least_one


class BuddyAllocator:
    """The surface of `ContiguousAllocator`; `range_of` tells what a range really takes."""

    def __init__(self, capacity: int) -> None:
        """Raises: ValueError on a capacity below 1."""
        self.capacity = at_least_one("capacity", capacity)
        self._ranges: dict[int, tuple[int, int]] = {}
        # Entry k: the starts of the free ranges of 2**k units, ascending.
        self._free: list[list[int]] = [[] for _ in range(self.capacity.bit_length())]
        start = 0
        for order in reversed(range(self.capacity.bit_length())):
            if self.capacity >> order & 1:
                self._free[order].append(start)
                start += 1 << order

    @property
    def longest_possible(self) -> int:
        """The longest range that an empty memory could give: the largest power of two in the capacity."""
        return 1 << self.capacity.bit_length() - 1

    def allocate(self, owner: int, size: int) -> int:
        """The start of a range of the next power of two, from the smallest free range that has it, the lowest of those.

        Raises: ValueError on an owner that has a range, or a size below 1; OutOfMemory, with nothing changed.
        """
        owner, size = index(owner), at_least_one("size", size)
        if owner in self._ranges:
            raise ValueError(f"owner {owner} has a range already")
        wanted = (size - 1).bit_length()
        order = next((k for k in range(wanted, len(self._free)) if self._free[k]), None)
        if order is None:
            sizes = [length for _, length in self.holes()]
            raise OutOfMemory(1 << wanted, max(sizes, default=0), sum(sizes))
        start = self._free[order].pop(0)
        while order > wanted:
            # The lower half is split on, the upper half stays free.
            order -= 1
            insort(self._free[order], start + (1 << order))
        self._ranges[owner] = (start, wanted)
        return start

    def free(self, owner: int) -> None:
        """Return the range of `owner` and merge it with its buddy as often as that is free. KeyError if unknown."""
        start, order = self._range(owner)
        del self._ranges[index(owner)]
        while (place := self._place(order, start ^ (1 << order))) is not None:
            del self._free[order][place]
            start &= ~(1 << order)
            order += 1
        insort(self._free[order], start)

    def holes(self) -> list[tuple[int, int]]:
        """Every free range as (start, size), by start. Neighbours may touch: only buddies can be used together."""
        return sorted((start, 1 << order) for order, starts in enumerate(self._free) for start in starts)

    def range_of(self, owner: int) -> tuple[int, int]:
        """(start, size) of the range of `owner`, a power of two. KeyError if it has none."""
        start, order = self._range(owner)
        return start, 1 << order

    def check_invariants(self) -> None:
        """Tiling, alignment, no free buddies apart. O(n log n). AssertionError names the place."""
        pieces = [(start, 1 << order, f"owner {owner}") for owner, (start, order) in self._ranges.items()]
        pieces += [(start, size, "free range") for start, size in self.holes()]
        end = 0
        for start, size, name in sorted(pieces):
            assert start == end, f"{name} starts at {start}, what stands before it ends at {end}"
            assert start % size == 0, f"{name} of {size} units starts at {start}, no multiple of its size"
            end = start + size
        assert end == self.capacity, f"ranges and free ranges end at {end} of {self.capacity}"
        for order, starts in enumerate(self._free):
            assert starts == sorted(set(starts)), f"free ranges of {1 << order} units out of order: {starts}"
            for start in starts:
                assert self._place(order, start ^ (1 << order)) is None, f"free buddies apart at {start}"

    def _range(self, owner: int) -> tuple[int, int]:
        found = self._ranges.get(index(owner))
        if found is None:
            raise KeyError(f"no owner {owner}")
        return found

    def _place(self, order: int, start: int) -> int | None:
        if order >= len(self._free):
            return None
        place = bisect_left(self._free[order], start)
        return place if place < len(self._free[order]) and self._free[order][place] == start else None
