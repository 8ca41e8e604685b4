"""The block table of one sequence: where its tokens live.

Owns: the order of one sequence's blocks and how many of their slots hold tokens. Knows nothing of reference counts or
of other sequences: whether a block may be written is for the allocator to say.
Invariants: I5 len(blocks) == ceil(num_tokens / block_size), I8 slot(t) == blocks[t // bs] * bs + t % bs.
Source: Kwon et al., SOSP 2023, section 4.3 and figure 6.
"""

from __future__ import annotations


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that `num_tokens` tokens need: ceil(num_tokens / block_size)."""
    return -(-num_tokens // block_size)


class BlockTable:
    """Physical block ids in logical order, and the number of tokens in them."""

    __slots__ = ("block_size", "blocks", "num_tokens")

    def __init__(self, block_size: int, blocks: list[int], num_tokens: int) -> None:
        self.block_size = block_size
        self.blocks = blocks
        self.num_tokens = num_tokens

    def copy(self) -> BlockTable:
        """The same blocks in a list of its own. Cost: O(blocks)."""
        return BlockTable(self.block_size, list(self.blocks), self.num_tokens)

    @property
    def tail_is_partial(self) -> bool:
        """Whether the last block has a slot left, so that the next token is written into it."""
        return self.num_tokens % self.block_size != 0

    def blocks_to_grow(self, num_tokens: int) -> int:
        """New blocks that `num_tokens` more tokens need."""
        return blocks_for(self.num_tokens + num_tokens, self.block_size) - len(self.blocks)

    def truncate(self, num_tokens: int) -> list[int]:
        """Keep the first `num_tokens` tokens; returns the blocks that fall off, in logical order, for the pool.

        Raises: ValueError unless 0 <= num_tokens <= those it holds. Cost: O(blocks that fall off).
        """
        if not 0 <= num_tokens <= self.num_tokens:
            raise ValueError(f"num_tokens must be 0 to {self.num_tokens}, got {num_tokens}")
        keep = blocks_for(num_tokens, self.block_size)
        fallen = self.blocks[keep:]
        del self.blocks[keep:]
        self.num_tokens = num_tokens
        return fallen

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        """Cache slots of tokens start..stop-1, `block * block_size + offset`.

        Raises: ValueError unless 0 <= start <= stop <= num_tokens. Cost: O(stop - start).
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise ValueError(f"tokens {start}..{stop} of a sequence of {self.num_tokens} tokens")
        size = self.block_size
        return [self.blocks[token // size] * size + token % size for token in range(start, stop)]

    def check_invariants(self) -> None:
        """I5, and no block twice in one table (else I8's slots would not be unique)."""
        expected = blocks_for(self.num_tokens, self.block_size)
        assert len(self.blocks) == expected, f"I5: {len(self.blocks)} blocks hold {self.num_tokens} tokens"
        assert len(set(self.blocks)) == len(self.blocks), f"I8: a block stands twice in the table {self.blocks}"
