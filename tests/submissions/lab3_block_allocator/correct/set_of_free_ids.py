"""Design: free ids in a set, holders of a block as a set of sequences; a dataclass for each sequence."""

from dataclasses import dataclass, field
from operator import index

from labkit.contracts import OutOfBlocks


@dataclass
class Sequence:
    tokens: int = 0
    blocks: list = field(default_factory=list)


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        num_blocks, block_size = index(num_blocks), index(block_size)
        if num_blocks < 1 or block_size < 1:
            raise ValueError("sizes start at 1")
        self.block_size = block_size
        self.free_ids = set(range(num_blocks))
        self.holders = {}
        self.sequences = {}

    @property
    def num_free_blocks(self):
        return len(self.free_ids)

    def _find(self, seq):
        try:
            return self.sequences[index(seq)]
        except KeyError:
            raise KeyError(f"no sequence {seq}") from None

    def _plan(self, sequence, num_tokens):
        """Blocks to add and whether the tail must be copied; raises what the contract says."""
        if num_tokens < 1:
            raise ValueError("at least one token")
        end = sequence.tokens + num_tokens
        grow = -(-end // self.block_size) - len(sequence.blocks)
        partial = sequence.tokens % self.block_size != 0
        copy = partial and len(self.holders[sequence.blocks[-1]]) > 1
        if grow + copy > len(self.free_ids):
            raise OutOfBlocks(grow + copy, len(self.free_ids))
        return grow, copy

    def _give(self, seq):
        block = self.free_ids.pop()
        self.holders[block] = {seq}
        return block

    def _take_back(self, seq, block):
        self.holders[block].remove(seq)
        if not self.holders[block]:
            del self.holders[block]
            self.free_ids.add(block)

    def allocate(self, seq, num_tokens):
        seq, num_tokens = index(seq), index(num_tokens)
        if seq in self.sequences:
            raise ValueError(f"sequence {seq} exists")
        sequence = Sequence()
        grow, _ = self._plan(sequence, num_tokens)
        sequence.blocks = [self._give(seq) for _ in range(grow)]
        sequence.tokens = num_tokens
        self.sequences[seq] = sequence

    def append(self, seq, num_tokens=1):
        sequence, seq, num_tokens = self._find(seq), index(seq), index(num_tokens)
        grow, copy = self._plan(sequence, num_tokens)
        copies = []
        if copy:
            src, dst = sequence.blocks[-1], self._give(seq)
            self._take_back(seq, src)
            sequence.blocks[-1] = dst
            copies.append((src, dst))
        sequence.blocks.extend(self._give(seq) for _ in range(grow))
        sequence.tokens += num_tokens
        return copies

    def fork(self, parent, child):
        source, child = self._find(parent), index(child)
        if child in self.sequences:
            raise ValueError(f"sequence {child} exists")
        self.sequences[child] = Sequence(source.tokens, source.blocks.copy())
        for block in source.blocks:
            self.holders[block].add(child)

    def free(self, seq):
        sequence = self._find(seq)
        for block in sequence.blocks:
            self._take_back(index(seq), block)
        del self.sequences[index(seq)]

    def block_table(self, seq):
        return self._find(seq).blocks.copy()

    def num_tokens(self, seq):
        return self._find(seq).tokens

    def slot_mapping(self, seq, start, stop):
        sequence = self._find(seq)
        if not 0 <= start <= stop <= sequence.tokens:
            raise ValueError("not inside the sequence")
        return [
            sequence.blocks[token // self.block_size] * self.block_size + token % self.block_size
            for token in range(start, stop)
        ]
