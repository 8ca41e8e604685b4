"""What the properties of lab 3 ask an allocator, and what they may conclude from the answers.

Owns: the told calls with their answers checked for shape (lists, integers, pairs), and what can be seen from outside:
tables, token counts, free blocks. Knows nothing of how blocks are chosen: it decides nothing, it only looks.
"""

from __future__ import annotations

from operator import index
from typing import Any

from labkit.checks.story import Make, Story, counted, shown

State = tuple[int, dict[int, tuple[int, list[int]]]]
"""Free blocks, and for each sequence its token count and block table."""


class Pool(Story):
    """An allocator of `num_blocks` blocks of `block_size` tokens whose every change is told."""

    def __init__(self, make: Make, num_blocks: int, block_size: int) -> None:
        opening = f"With {counted(num_blocks, 'block')} of {counted(block_size, 'token')}"
        super().__init__(make, "BlockAllocator", (num_blocks, block_size), opening)
        self.num_blocks = num_blocks
        self.block_size = block_size

    def allocate(self, seq: int, num_tokens: int) -> None:
        self.call("allocate", seq, num_tokens)

    def append(self, seq: int, *num_tokens: int) -> list[tuple[int, int]]:
        """The copies, checked to be a list of pairs of block ids."""
        return self.copies(self.call("append", seq, *num_tokens))

    def fork(self, parent: int, child: int) -> None:
        self.call("fork", parent, child)

    def free(self, seq: int) -> None:
        self.call("free", seq)

    @property
    def num_free(self) -> int:
        return self.get("num_free_blocks")

    def table(self, seq: int) -> list[int]:
        """The table of a living sequence, which is never empty: it has a token at least."""
        table = self.integers(self.peek("block_table", seq), f"block_table({seq})")
        self.expect(bool(table), f"block_table({seq}) to name at least one block, got []")
        return table

    def tokens(self, seq: int) -> int:
        value = self.peek("num_tokens", seq)
        try:
            return index(value)
        except TypeError:
            self.broken(f"num_tokens({seq}) to be an integer, got {shown(value)}")

    def slots(self, seq: int, start: int, stop: int) -> list[int]:
        return self.integers(self.peek("slot_mapping", seq, start, stop), f"slot_mapping({seq}, {start}, {stop})")

    def state(self, *seqs: int) -> State:
        """All that can be seen of `seqs`. Two equal states with nothing but a refusal between them: nothing changed."""
        return self.num_free, {seq: (self.tokens(seq), self.table(seq)) for seq in seqs}

    def blocks_for(self, num_tokens: int) -> int:
        """ceil(num_tokens / block_size)."""
        return -(-num_tokens // self.block_size)

    def refused_unchanged(self, error: type[Exception], seqs: tuple[int, ...], method: str, *args: Any) -> None:
        """The call must raise `error` and leave the visible state of `seqs` and the free count as they were."""
        before = self.state(*seqs)
        self.refused(error, method, *args)
        after = self.state(*seqs)
        self.expect(
            after[0] == before[0],
            f"a refused call to change nothing, but num_free_blocks went from {before[0]} to {after[0]}",
        )
        for seq in seqs:
            self.expect(
                after[1][seq] == before[1][seq],
                f"a refused call to change nothing, but sequence {seq} went from {_told(before[1][seq])}"
                f" to {_told(after[1][seq])}",
            )

    def integers(self, value: object, name: str) -> list[int]:
        """`value` as a list of plain integers; Broken unless it is a list of integers."""
        try:
            if not isinstance(value, list):
                raise TypeError(name)
            return [index(item) for item in value]
        except TypeError:
            self.broken(f"{name} to be a list of integers, got {shown(value)}")

    def copies(self, value: object) -> list[tuple[int, int]]:
        """`value` as a list of (src, dst); Broken unless it is one, with both in the pool."""
        pairs = []
        if not isinstance(value, list):
            self.broken(f"append to return a list of copies, got {shown(value)}")
        for pair in value:
            try:
                src, dst = map(index, pair)
            except (TypeError, ValueError):
                self.broken(f"append to return pairs (src, dst) of block ids, got {shown(value)}")
            self.expect(
                0 <= src < self.num_blocks and 0 <= dst < self.num_blocks,
                f"copies between blocks 0 to {self.num_blocks - 1}, got {shown(value)}",
            )
            pairs.append((src, dst))
        return pairs


def _told(seen: tuple[int, list[int]]) -> str:
    return f"{counted(seen[0], 'token')} in blocks {shown(seen[1])}"
