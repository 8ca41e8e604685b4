"""Design: a heap, so that the lowest free id is always used first; O(log n) a block."""

import heapq
import operator

from labkit.contracts import OutOfBlocks


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        if num_blocks < 1 or block_size < 1:
            raise ValueError("sizes must be positive")
        self.size = operator.index(block_size)
        self.heap = list(range(num_blocks))  # sorted, so a heap already
        self.refs = {}
        self.seqs = {}  # seq -> [tokens, blocks]

    @property
    def num_free_blocks(self):
        return len(self.heap)

    def _grab(self, count):
        if count > len(self.heap):
            raise OutOfBlocks(count, len(self.heap))
        blocks = [heapq.heappop(self.heap) for _ in range(count)]
        for block in blocks:
            self.refs[block] = 1
        return blocks

    def _let_go(self, block):
        if self.refs[block] == 1:
            del self.refs[block]
            heapq.heappush(self.heap, block)
        else:
            self.refs[block] -= 1

    def _blocks(self, tokens):
        return (tokens - 1) // self.size + 1

    def allocate(self, seq, num_tokens):
        if seq in self.seqs:
            raise ValueError(f"{seq} is taken")
        if num_tokens < 1:
            raise ValueError(f"{num_tokens} tokens")
        num_tokens = operator.index(num_tokens)
        self.seqs[operator.index(seq)] = [num_tokens, self._grab(self._blocks(num_tokens))]

    def append(self, seq, num_tokens=1):
        entry = self.seqs[seq]
        if num_tokens < 1:
            raise ValueError(f"{num_tokens} tokens")
        tokens, blocks = entry
        total = tokens + operator.index(num_tokens)
        shared_tail = tokens < len(blocks) * self.size and self.refs[blocks[-1]] > 1
        fresh = self._grab(self._blocks(total) - len(blocks) + (1 if shared_tail else 0))
        copies = []
        if shared_tail:
            old = blocks.pop()
            copies = [(old, fresh[0])]
            self._let_go(old)
        blocks.extend(fresh)
        entry[0] = total
        return copies

    def fork(self, parent, child):
        tokens, blocks = self.seqs[parent]
        if child in self.seqs:
            raise ValueError(f"{child} is taken")
        self.seqs[operator.index(child)] = [tokens, blocks[:]]
        for block in blocks:
            self.refs[block] += 1

    def free(self, seq):
        _, blocks = self.seqs.pop(seq)
        for block in blocks:
            self._let_go(block)

    def block_table(self, seq):
        return self.seqs[seq][1][:]

    def num_tokens(self, seq):
        return self.seqs[seq][0]

    def slot_mapping(self, seq, start, stop):
        tokens, blocks = self.seqs[seq]
        if not 0 <= start <= stop <= tokens:
            raise ValueError("bad range")
        return [blocks[t // self.size] * self.size + t % self.size for t in range(start, stop)]
