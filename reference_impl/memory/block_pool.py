"""The physical blocks: who holds how many references to each, and which are free.

Owns: the reference count of every block and the free list. Knows nothing of tokens, sequences or torch.
Invariants: I1 free + held == total, I3 a reference count is 0 exactly when the block is in the free list, exactly once.
Every operation is O(blocks touched). The free list is intrusive, two arrays of neighbours closed to a ring by one
sentinel entry, so that a block can leave its middle in O(1): a prefix hit revives a free block wherever it stands.
Source: Kwon et al., SOSP 2023, section 4.3; reference counts, section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from labkit.contracts import OutOfBlocks


class BlockPool:
    """`num_blocks` blocks, ids 0 .. num_blocks - 1, handed out oldest-freed first."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self._ref_count = [0] * num_blocks
        # Entry num_blocks is the sentinel: its next is the head of the free list, its previous the tail.
        self._next = [*range(1, num_blocks + 1), 0]
        self._previous = [num_blocks, *range(num_blocks)]

    def ref_count(self, block: int) -> int:
        """How many holders `block` has; 0 when it is free."""
        return self._ref_count[block]

    def take(self, count: int) -> list[int]:
        """`count` free blocks, each with one holder now. OutOfBlocks, with nothing changed, if fewer are free."""
        if count > self.num_free:
            raise OutOfBlocks(count, self.num_free)
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        # The list is walked once and its head cut off behind the last block: a call for each block would cost more.
        following, ref_count, sentinel = self._next, self._ref_count, self.num_blocks
        taken = []
        block = sentinel
        for _ in range(count):
            block = following[block]
            ref_count[block] = 1
            taken.append(block)
        head = following[block]
        following[sentinel] = head
        self._previous[head] = sentinel
        self.num_free -= count
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each block. A free block is revived: it leaves the free list."""
        for block in blocks:
            if self._ref_count[block] == 0:
                self._unlink(block)
            self._ref_count[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder fewer for each block; a block without holders goes to the tail of the free list.

        Raises: ValueError, with nothing changed, if that would free a block more often than it is held (a double free).
        """
        blocks = list(blocks)
        ref_count = self._ref_count
        freed = []
        for place, block in enumerate(blocks):
            count = ref_count[block]
            if count == 1:
                ref_count[block] = 0
                freed.append(block)
            elif count > 1:
                ref_count[block] = count - 1
            else:
                self._undo_release(blocks[:place])
                raise ValueError(f"block {block} released {blocks.count(block)} times, held {ref_count[block]} times")
        self._link_last(freed)

    def _undo_release(self, blocks: list[int]) -> None:
        for block in blocks:
            self._ref_count[block] += 1

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
        self.num_free -= 1

    def _link_last(self, blocks: list[int]) -> None:
        following, previous, sentinel = self._next, self._previous, self.num_blocks
        last = previous[sentinel]
        for block in blocks:
            following[last] = block
            previous[block] = last
            last = block
        following[last] = sentinel
        previous[sentinel] = last
        self.num_free += len(blocks)

    def check_invariants(self) -> None:
        """I1 and I3 by walking the free list. Cost: O(num_blocks). AssertionError names the block."""
        sentinel = self.num_blocks
        seen: set[int] = set()
        block = self._next[sentinel]
        while block != sentinel:
            assert block not in seen, f"I3: block {block} stands twice in the free list"
            assert self._ref_count[block] == 0, f"I3: free block {block} has {self._ref_count[block]} holders"
            assert self._previous[self._next[block]] == block, f"I3: the free list is torn at block {block}"
            seen.add(block)
            block = self._next[block]
        assert len(seen) == self.num_free, f"I1: {len(seen)} blocks in the free list, {self.num_free} counted"
        for block, count in enumerate(self._ref_count):
            assert count >= 0, f"I3: block {block} has {count} holders"
            assert count > 0 or block in seen, f"I3: block {block} has no holder and is not in the free list"
