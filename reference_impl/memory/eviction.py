"""Which idle block goes next: LRU, FIFO, LFU and SLRU.

Owns: the idle blocks, contents that nobody holds but a later prompt may want, and their order. Knows nothing of
tokens, hashes, sequences or the pool. Tails go before heads under every policy: an idle block is a candidate only while
no idle block stands directly on it. A head without its tail is still a prefix; a tail without its head is out of reach.
Each policy is a rank, lowest first, taken when a block becomes idle. Candidates stand in a heap; a block that leaves
early leaves a dead record behind, and the heap is rebuilt when more than half of it is dead. So every operation is
O(log n) amortised over n idle blocks, and the heap holds O(n) records.
Source: the leaf rule and the policies follow RadixAttention (Zheng et al., NeurIPS 2024); SLRU, Karedla et al., 1994.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Protocol

from reference_impl.memory.cached_block import CachedBlock

_HEAP_SLACK = 64
"""Dead records that are never worth a rebuild."""


class EvictionPolicy(Protocol):
    """What a prefix cache tells its policy, and the one question it asks: `evict`. One policy serves one cache."""

    def __len__(self) -> int:
        """Idle blocks."""

    def published(self, entry: CachedBlock) -> None:
        """`entry` has a block from now on; a sequence holds it."""

    def hit(self, entry: CachedBlock) -> None:
        """A new sequence reuses `entry`, which is not idle (any more)."""

    def add(self, entry: CachedBlock) -> None:
        """`entry` becomes idle: its last holder lets go. Tails are added before heads."""

    def remove(self, entry: CachedBlock) -> None:
        """`entry` is idle no more: a sequence holds it. Heads are removed before tails."""

    def evict(self) -> CachedBlock:
        """The idle entry that goes next, idle no more. IndexError if none is idle."""

    def check_invariants(self) -> None:
        """AssertionError if the policy's books do not agree with its entries."""


class _Ranked(ABC):
    """The heap of candidates, common to all policies; a policy adds `_rank` and what it wants to remember."""

    def __init__(self) -> None:
        self._idle: set[CachedBlock] = set()
        self._heap: list[tuple[tuple[int, ...], int, CachedBlock]] = []
        self._candidates = 0
        self._tickets = 0
        self._clock = 0

    def __len__(self) -> int:
        return len(self._idle)

    def published(self, entry: CachedBlock) -> None:  # noqa: B027 - a policy may leave it so
        """Nothing to remember, for most policies."""

    def hit(self, entry: CachedBlock) -> None:  # noqa: B027 - a policy may leave it so
        """Nothing to remember, for most policies."""

    @abstractmethod
    def _rank(self, entry: CachedBlock) -> tuple[int, ...]:
        """Where `entry` stands among the idle ones as it becomes idle; the lowest goes first."""

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def add(self, entry: CachedBlock) -> None:
        entry.rank = self._rank(entry)
        entry.idle = True
        self._idle.add(entry)
        if entry.idle_children == 0:
            self._nominate(entry)
        parent = entry.parent
        if parent is not None:
            parent.idle_children += 1
            self._withdraw(parent)

    def remove(self, entry: CachedBlock) -> None:
        self._withdraw(entry)
        entry.idle = False
        self._idle.remove(entry)
        parent = entry.parent
        if parent is not None:
            parent.idle_children -= 1
            if parent.idle and parent.idle_children == 0:
                self._nominate(parent)

    def evict(self) -> CachedBlock:
        if not self._idle:
            raise IndexError("no idle block to evict")
        while True:
            _, ticket, entry = self._heap[0]
            if ticket == entry.ticket:
                self.remove(entry)
                return entry
            heapq.heappop(self._heap)

    def _nominate(self, entry: CachedBlock) -> None:
        entry.ticket = self._tickets
        self._tickets += 1
        self._candidates += 1
        heapq.heappush(self._heap, (entry.rank, entry.ticket, entry))

    def _withdraw(self, entry: CachedBlock) -> None:
        if entry.ticket < 0:
            return
        entry.ticket = -1
        self._candidates -= 1
        if len(self._heap) > 2 * self._candidates + _HEAP_SLACK:
            self._heap = [record for record in self._heap if record[1] == record[2].ticket]
            heapq.heapify(self._heap)

    def _rank_again(self, entry: CachedBlock) -> None:
        entry.rank = self._rank(entry)
        if entry.ticket >= 0:
            self._withdraw(entry)
            self._nominate(entry)

    def check_invariants(self) -> None:
        """Books, leaf rule and heap agree. Cost: O(idle blocks + records). AssertionError names the block."""
        waiting: dict[CachedBlock, int] = {}
        for entry in self._idle:
            assert entry.idle, f"block {entry.block} is in the books of the idle, and says that it is not idle"
            if entry.parent is not None:
                waiting[entry.parent] = waiting.get(entry.parent, 0) + 1
        live = {record[2] for record in self._heap if record[1] == record[2].ticket}
        assert len(live) == self._candidates, f"{len(live)} candidates in the heap, {self._candidates} counted"
        for entry in self._idle | waiting.keys() | live:
            on_it = waiting.get(entry, 0)
            assert entry.idle_children == on_it, f"block {entry.block}: {on_it} idle, {entry.idle_children} counted"
            is_candidate = entry.idle and on_it == 0
            assert (entry in live) == is_candidate, f"block {entry.block}: a head may not go before its tail"


class LRU(_Ranked):
    """Least recently used first: the block whose last holder let go longest ago."""

    def _rank(self, entry: CachedBlock) -> tuple[int, ...]:
        return (self._tick(),)


class FIFO(_Ranked):
    """First published first, however often it is reused."""

    def __init__(self) -> None:
        super().__init__()
        self._born: dict[CachedBlock, int] = {}

    def published(self, entry: CachedBlock) -> None:
        self._born[entry] = self._tick()

    def _rank(self, entry: CachedBlock) -> tuple[int, ...]:
        return (self._born[entry],)

    def evict(self) -> CachedBlock:
        entry = super().evict()
        del self._born[entry]
        return entry


class LFU(_Ranked):
    """Fewest hits first, least recently used among equals. An evicted block's hits are forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self._hits: dict[CachedBlock, int] = {}

    def hit(self, entry: CachedBlock) -> None:
        self._hits[entry] = self._hits.get(entry, 0) + 1

    def _rank(self, entry: CachedBlock) -> tuple[int, ...]:
        return (self._hits.get(entry, 0), self._tick())

    def evict(self) -> CachedBlock:
        entry = super().evict()
        self._hits.pop(entry, None)
        return entry


class SLRU(_Ranked):
    """Segmented LRU: blocks that were never hit go first, so that one long scan cannot wash out what is reused.

    A hit moves a block into the protected segment of at most `protected_blocks` blocks, idle or held. When it
    overflows, its least recently hit block is least protected: it falls back among the others, as the latest of them.
    """

    def __init__(self, protected_blocks: int) -> None:
        super().__init__()
        if protected_blocks < 1:
            raise ValueError(f"protected_blocks must be at least 1, got {protected_blocks}")
        self._capacity = protected_blocks
        self._protected: OrderedDict[CachedBlock, None] = OrderedDict()

    def hit(self, entry: CachedBlock) -> None:
        self._protected[entry] = None
        self._protected.move_to_end(entry)
        if len(self._protected) > self._capacity:
            demoted, _ = self._protected.popitem(last=False)
            if demoted.idle:
                self._rank_again(demoted)

    def _rank(self, entry: CachedBlock) -> tuple[int, ...]:
        return (int(entry in self._protected), self._tick())

    def evict(self) -> CachedBlock:
        entry = super().evict()
        self._protected.pop(entry, None)
        return entry
