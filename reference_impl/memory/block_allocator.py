"""Blocks for sequences: the reference for lab 3.

Owns: the block tables of the live sequences, and what is checked before anything changes. Knows nothing of the free
list's order (that is `BlockPool`) or of a table's inside (`BlockTable`).
Every call checks ids, then values, then blocks, and only then changes anything, so a failed call leaves no trace.
Invariants: I2 a block's reference count is the number of tables that hold it, I4 no table holds a free block.
Source: Kwon et al., SOSP 2023, sections 4.3 (tables), 4.4 (sharing, copy-on-write).
"""

from __future__ import annotations

from collections import Counter
from operator import index

from labkit.contracts import OutOfBlocks
from reference_impl.memory.block_pool import BlockPool
from reference_impl.memory.block_table import BlockTable, blocks_for
from reference_impl.memory.contiguous import at_least_one


class BlockAllocator:
    """The contract of `labkit.contracts.BlockAllocator`, where every method's errors and cost are stated."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = at_least_one("num_blocks", num_blocks)
        self.block_size = at_least_one("block_size", block_size)
        self._pool = BlockPool(self.num_blocks)
        self._tables: dict[int, BlockTable] = {}

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free

    def allocate(self, seq: int, num_tokens: int) -> None:
        seq = self._unused_id(seq)
        num_tokens = at_least_one("num_tokens", num_tokens)
        blocks = self._pool.take(blocks_for(num_tokens, self.block_size))
        self._tables[seq] = BlockTable(self.block_size, blocks, num_tokens)

    def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
        table = self._table(seq)
        num_tokens = at_least_one("num_tokens", num_tokens)
        copy_tail = table.tail_is_partial and self._pool.ref_count(table.blocks[-1]) > 1
        num_new = table.blocks_to_grow(num_tokens)
        # One request for the copy and the growth together: either all of it fits or nothing changes.
        needed = num_new + copy_tail
        if needed > self._pool.num_free:
            raise OutOfBlocks(needed, self._pool.num_free)
        copies: list[tuple[int, int]] = []
        if copy_tail:
            shared_tail = table.blocks[-1]
            (own_tail,) = self._pool.take(1)
            self._pool.release([shared_tail])
            table.blocks[-1] = own_tail
            copies.append((shared_tail, own_tail))
        table.blocks.extend(self._pool.take(num_new))
        table.num_tokens += num_tokens
        return copies

    def fork(self, parent: int, child: int) -> None:
        table = self._table(parent)
        child = self._unused_id(child)
        self._pool.share(table.blocks)
        self._tables[child] = table.copy()

    def free(self, seq: int) -> None:
        table = self._table(seq)
        # Tail first, so that the heads of sequences, which others may want again, are reused last.
        self._pool.release(reversed(table.blocks))
        del self._tables[index(seq)]

    def block_table(self, seq: int) -> list[int]:
        return list(self._table(seq).blocks)

    def num_tokens(self, seq: int) -> int:
        return self._table(seq).num_tokens

    def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
        return self._table(seq).slot_mapping(index(start), index(stop))

    def _table(self, seq: int) -> BlockTable:
        table = self._tables.get(index(seq))
        if table is None:
            raise KeyError(f"no sequence {seq}")
        return table

    def _unused_id(self, seq: int) -> int:
        seq = index(seq)
        if seq in self._tables:
            raise ValueError(f"sequence {seq} exists already")
        return seq

    def check_invariants(self) -> None:
        """I1 to I5 over pool and tables. Cost: O(num_blocks + blocks held). AssertionError names the offender."""
        self._pool.check_invariants()
        holders: Counter[int] = Counter()
        for table in self._tables.values():
            table.check_invariants()
            holders.update(table.blocks)
        for block in range(self.num_blocks):
            count = self._pool.ref_count(block)
            assert count == holders[block], f"I2: block {block} counts {count} holders, {holders[block]} tables hold it"
