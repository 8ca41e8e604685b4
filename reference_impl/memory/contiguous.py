"""One contiguous range for each owner: memory before paging, and the reference for lab 2.

Owns: which range belongs to whom, the holes between them, and the moves that would close the holes. Knows nothing of
tokens, requests or blocks: a unit is whatever the caller counts.
Invariant: ranges and holes tile [0, capacity), and no two holes touch.
Cost: with h holes, a search is O(h), every change of the list O(log h) plus a shift of at most h entries.
Source: Knuth, The Art of Computer Programming, volume 1, section 2.5 (first fit, best fit, boundary coalescing);
Kwon et al., SOSP 2023, section 3.1, for KV memory under it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import index
from typing import Literal, NamedTuple

from labkit.contracts import OutOfMemory

Fit = Literal["first", "best"]
Event = tuple[Literal["allocate"], int, int] | tuple[Literal["free"], int]
"""("allocate", owner, size) or ("free", owner): one call of a program for an allocator."""


class Move(NamedTuple):
    """One range to be copied down from `source` to `start`; the two may overlap."""

    owner: int
    source: int
    start: int
    size: int


class ContiguousAllocator:
    """The contract of `labkit.contracts.ContiguousAllocator`, with best fit as a choice.

    First fit takes the lowest hole that is long enough, best fit the shortest one, the lowest of equals.
    """

    def __init__(self, capacity: int, fit: Fit = "first") -> None:
        """Raises: ValueError on a capacity below 1 or a fit other than "first" and "best"."""
        if fit not in ("first", "best"):
            raise ValueError(f"fit must be 'first' or 'best', got {fit!r}")
        self.capacity = at_least_one("capacity", capacity)
        self.fit = fit
        self._ranges: dict[int, tuple[int, int]] = {}
        # Two lists in step, by start: the search for a neighbour bisects the first.
        self._hole_starts = [0]
        self._hole_sizes = [self.capacity]

    @property
    def longest_possible(self) -> int:
        """The longest range that an empty memory could give."""
        return self.capacity

    def allocate(self, owner: int, size: int) -> int:
        """The start of a new range. ValueError on an owner that has one, or a size below 1; OutOfMemory. O(holes)."""
        owner, size = self._unused_id(owner), at_least_one("size", size)
        hole = self._choose(size)
        if hole is None:
            raise OutOfMemory(size, max(self._hole_sizes, default=0), sum(self._hole_sizes))
        start = self._hole_starts[hole]
        self._shorten(hole, size)
        self._ranges[owner] = (start, size)
        return start

    def extend(self, owner: int, size: int) -> bool:
        """Lengthen the range of `owner` by `size` units where it lies; False, with nothing changed, if it cannot.

        Raises: KeyError on an unknown owner, ValueError on a size below 1. Cost: O(log holes) and a shift.
        """
        start, length = self.range_of(owner)
        size = at_least_one("size", size)
        hole = bisect_left(self._hole_starts, start + length)
        touches = hole < len(self._hole_starts) and self._hole_starts[hole] == start + length
        if not touches or self._hole_sizes[hole] < size:
            return False
        self._shorten(hole, size)
        self._ranges[index(owner)] = (start, length + size)
        return True

    def free(self, owner: int) -> None:
        """Return the range of `owner`. KeyError if it has none. Cost: O(log holes) and a shift."""
        start, size = self.range_of(owner)
        del self._ranges[index(owner)]
        starts, sizes = self._hole_starts, self._hole_sizes
        hole = bisect_left(starts, start)
        if hole < len(starts) and start + size == starts[hole]:
            size += sizes[hole]
            del starts[hole], sizes[hole]
        if hole > 0 and starts[hole - 1] + sizes[hole - 1] == start:
            sizes[hole - 1] += size
        else:
            starts.insert(hole, start)
            sizes.insert(hole, size)

    def holes(self) -> list[tuple[int, int]]:
        """Every hole as (start, size), by start."""
        return list(zip(self._hole_starts, self._hole_sizes, strict=True))

    def range_of(self, owner: int) -> tuple[int, int]:
        """(start, size) of the range of `owner`. KeyError if it has none."""
        found = self._ranges.get(index(owner))
        if found is None:
            raise KeyError(f"no owner {owner}")
        return found

    def compact(self) -> list[Move]:
        """Slide every range down until one hole is left; the moves, lowest first, which is the order to copy them in.

        The cost of compaction is `units_moved` of the answer: that much memory is read and written while nobody can
        use it. Bookkeeping: O(owners log owners).
        """
        moves = []
        end = 0
        for owner, (start, size) in sorted(self._ranges.items(), key=lambda item: item[1]):
            if start != end:
                moves.append(Move(owner, start, end, size))
                self._ranges[owner] = (end, size)
            end += size
        left = self.capacity - end
        self._hole_starts, self._hole_sizes = ([end], [left]) if left else ([], [])
        return moves

    def check_invariants(self) -> None:
        """Ranges and holes tile the memory, holes do not touch. O(n log n). AssertionError names the place."""
        pieces = [(start, size, f"owner {owner}") for owner, (start, size) in self._ranges.items()]
        pieces += [(start, size, "hole") for start, size in self.holes()]
        end, before = 0, ""
        for start, size, name in sorted(pieces):
            assert size > 0, f"{name} at {start} has {size} units"
            assert start == end, f"{name} starts at {start}, what stands before it ends at {end}"
            assert not name == before == "hole", f"two holes touch at {start}"
            end, before = start + size, name
        assert end == self.capacity, f"ranges and holes end at {end} of {self.capacity}"

    def _choose(self, size: int) -> int | None:
        fitting = (hole for hole, length in enumerate(self._hole_sizes) if length >= size)
        if self.fit == "first":
            return next(fitting, None)
        return min(fitting, key=self._hole_sizes.__getitem__, default=None)

    def _shorten(self, hole: int, size: int) -> None:
        if self._hole_sizes[hole] == size:
            del self._hole_starts[hole], self._hole_sizes[hole]
        else:
            self._hole_starts[hole] += size
            self._hole_sizes[hole] -= size

    def _unused_id(self, owner: int) -> int:
        owner = index(owner)
        if owner in self._ranges:
            raise ValueError(f"owner {owner} has a range already")
        return owner


def units_moved(moves: Iterable[Move]) -> int:
    """What a compaction costs: the units that change their place."""
    return sum(move.size for move in moves)


def external_fragmentation(holes: Iterable[tuple[int, int]]) -> float:
    """Share of the free units outside the largest hole, `1 - largest / total`; 0 when nothing is free."""
    sizes = [size for _, size in holes]
    total = sum(sizes)
    return 1 - max(sizes) / total if total else 0.0


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype_bytes: int) -> int:
    """Bytes of KV memory for one token: a key and a value in every layer. ValueError unless all are at least 1."""
    return (
        2
        * at_least_one("num_layers", num_layers)
        * at_least_one("num_kv_heads", num_kv_heads)
        * at_least_one("head_dim", head_dim)
        * at_least_one("dtype_bytes", dtype_bytes)
    )


def attack(capacity: int, max_size: int) -> list[Event]:
    """A shortest program whose last allocate first fit refuses though enough is free; no size above `max_size`.

    The refused size s is at most M = max_size, so every hole must end up below M, the untouched end of the memory
    too. First fit on an empty memory fills it from below, at most M units a call, and without a free there is one hole
    only. So the cheapest plan has two holes: n allocates that stop short of the end by at most M - 1, and one free
    of the first of them, itself of at most M - 1. That needs (M - 1) + (n - 1) M + (M - 1) >= capacity, which is
    n >= (capacity + 2) / M - 1, and n >= 2 so that a wall stands between the holes. A second free costs a call
    more and covers no more than the tail did. Of the programs of this length the one here leaves most free: both
    holes M - 1 where there is room, and the refused size is one above the larger hole.
    n + 2 calls; tests compare that with every shorter program at small capacities.
    Raises: ValueError if capacity < 3 or max_size < 2, where no such program exists.
    """
    capacity, max_size = index(capacity), index(max_size)
    if capacity < 3:
        raise ValueError(f"capacity must be at least 3 for two holes and a wall between them, got {capacity}")
    if max_size < 2:
        raise ValueError(f"max_size must be at least 2, because size 1 fits any hole, got {max_size}")
    walls = max(2, -(-(capacity + 2) // max_size) - 1) - 1
    free = min(2 * (max_size - 1), capacity - walls)
    hole, wall_units = free // 2, capacity - free
    sizes = [hole, *(wall_units // walls + (wall < wall_units % walls) for wall in range(walls))]
    program: list[Event] = [("allocate", owner, size) for owner, size in enumerate(sizes)]
    return [*program, ("free", 0), ("allocate", len(sizes), free - hole + 1)]


def at_least_one(name: str, value: int) -> int:
    """`value` as an integer. ValueError, with the name, below 1."""
    value = index(value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
