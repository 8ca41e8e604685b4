"""Design: reference counts and the stack of free ids in NumPy arrays, whole tables at once."""

from operator import index

import numpy as np
from labkit.contracts import OutOfBlocks


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        if num_blocks < 1 or block_size < 1:
            raise ValueError("num_blocks and block_size must be >= 1")
        self.block_size = index(block_size)
        self.stack = np.arange(num_blocks, dtype=np.int64)
        self.top = index(num_blocks)  # stack[:top] is free
        self.refs = np.zeros(num_blocks, dtype=np.int64)
        self.tables = {}
        self.lengths = {}

    @property
    def num_free_blocks(self):
        return self.top

    def _take(self, count):
        self.top -= count
        blocks = self.stack[self.top : self.top + count].tolist()
        self.refs[blocks] = 1
        return blocks

    def _release(self, blocks):
        blocks = np.asarray(blocks, dtype=np.int64)
        self.refs[blocks] -= 1
        freed = blocks[self.refs[blocks] == 0]
        self.stack[self.top : self.top + len(freed)] = freed
        self.top += len(freed)

    def allocate(self, seq, num_tokens):
        if seq in self.tables:
            raise ValueError("sequence exists")
        if num_tokens < 1:
            raise ValueError("num_tokens < 1")
        count = -(-index(num_tokens) // self.block_size)
        if count > self.top:
            raise OutOfBlocks(count, self.top)
        self.tables[index(seq)] = self._take(count)
        self.lengths[index(seq)] = index(num_tokens)

    def append(self, seq, num_tokens=1):
        table = self.tables[seq]
        if num_tokens < 1:
            raise ValueError("num_tokens < 1")
        length = self.lengths[seq]
        count = -(-(length + index(num_tokens)) // self.block_size) - len(table)
        copy = bool(length % self.block_size and self.refs[table[-1]] > 1)
        if count + copy > self.top:
            raise OutOfBlocks(count + copy, self.top)
        copies = []
        if copy:
            source = table[-1]
            (table[-1],) = self._take(1)
            self._release([source])
            copies = [(source, table[-1])]
        if count:
            table += self._take(count)
        self.lengths[seq] = length + index(num_tokens)
        return copies

    def fork(self, parent, child):
        table = self.tables[parent]
        if child in self.tables:
            raise ValueError("sequence exists")
        self.refs[table] += 1
        self.tables[index(child)] = list(table)
        self.lengths[index(child)] = self.lengths[parent]

    def free(self, seq):
        self._release(self.tables.pop(seq))
        del self.lengths[seq]

    def block_table(self, seq):
        return list(self.tables[seq])

    def num_tokens(self, seq):
        return self.lengths[seq]

    def slot_mapping(self, seq, start, stop):
        table = self.tables[seq]
        if not 0 <= start <= stop <= self.lengths[seq]:
            raise ValueError("range")
        tokens = np.arange(start, stop)
        blocks = np.array(table)[tokens // self.block_size]
        return (blocks * self.block_size + tokens % self.block_size).tolist()
