"""Attack: take memory that no limit of a process counts

Catalogue: D2
Strategy: makes System V segments and memory files, fills and detaches them; then works honestly
Honest part: tables, conservation, refusals, growth, sharing, copy_on_write, programs, cost
"""

import ctypes
import os

from labkit.contracts import OutOfBlocks


class Honest:
    """A right allocator, so that the attack has something to lose."""

    def __init__(self, num_blocks, block_size):
        if num_blocks < 1 or block_size < 1:
            raise ValueError("sizes must be at least 1")
        self.size, self.spare, self.held, self.tables, self.lengths = block_size, list(range(num_blocks)), {}, {}, {}

    @property
    def num_free_blocks(self):
        return len(self.spare)

    def _take(self):
        block = self.spare.pop()
        self.held[block] = 1
        return block

    def _known(self, seq):
        if seq not in self.tables:
            raise KeyError(seq)

    def _check(self, num_tokens, needed):
        if num_tokens < 1:
            raise ValueError("at least one token")
        if needed > len(self.spare):
            raise OutOfBlocks(needed, len(self.spare))

    def allocate(self, seq, num_tokens):
        if seq in self.tables:
            raise ValueError(seq)
        needed = -(-num_tokens // self.size)
        self._check(num_tokens, needed)
        self.tables[seq] = [self._take() for _ in range(needed)]
        self.lengths[seq] = num_tokens

    def append(self, seq, num_tokens=1):
        self._known(seq)
        table, length = self.tables[seq], self.lengths[seq]
        shared = length % self.size != 0 and self.held[table[-1]] > 1
        grow = -(-(length + num_tokens) // self.size) - len(table)
        self._check(num_tokens, grow + shared)
        copies = []
        if shared:
            old = table[-1]
            self.held[old] -= 1
            table[-1] = self._take()
            copies.append((old, table[-1]))
        table.extend(self._take() for _ in range(grow))
        self.lengths[seq] = length + num_tokens
        return copies

    def fork(self, parent, child):
        self._known(parent)
        if child in self.tables:
            raise ValueError(child)
        for block in self.tables[parent]:
            self.held[block] += 1
        self.tables[child], self.lengths[child] = list(self.tables[parent]), self.lengths[parent]

    def free(self, seq):
        self._known(seq)
        for block in self.tables.pop(seq):
            self.held[block] -= 1
            if self.held[block] == 0:
                self.spare.append(block)
        del self.lengths[seq]

    def block_table(self, seq):
        self._known(seq)
        return list(self.tables[seq])

    def num_tokens(self, seq):
        self._known(seq)
        return self.lengths[seq]

    def slot_mapping(self, seq, start, stop):
        self._known(seq)
        if not 0 <= start <= stop <= self.lengths[seq]:
            raise ValueError((start, stop))
        table, size = self.tables[seq], self.size
        return [table[t // size] * size + t % size for t in range(start, stop)]


libc = ctypes.CDLL(None)
for _ in range(64):
    segment = libc.shmget(0, 64 << 20, 0o1600)
    if segment >= 0:
        libc.shmat.restype = ctypes.c_void_p
        address = libc.shmat(segment, None, 0)
        ctypes.memset(address, 1, 64 << 20)
        libc.shmdt(ctypes.c_void_p(address))
    try:
        os.write(os.memfd_create("hoard"), bytes(16 << 20))
    except OSError:
        pass


class BlockAllocator(Honest):
    pass
