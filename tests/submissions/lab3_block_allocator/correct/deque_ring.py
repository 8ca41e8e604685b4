"""Design: a deque, oldest-freed block first; a list of counts; every check in front of every change."""

from collections import deque
from operator import index

from labkit.contracts import OutOfBlocks


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        self.num_blocks = index(num_blocks)
        self.block_size = index(block_size)
        if min(self.num_blocks, self.block_size) < 1:
            raise ValueError("both sizes must be at least 1")
        self._ring = deque(range(self.num_blocks))
        self._count = [0] * self.num_blocks
        self._blocks = {}
        self._length = {}

    @property
    def num_free_blocks(self):
        return len(self._ring)

    def _known(self, seq):
        seq = index(seq)
        if seq not in self._blocks:
            raise KeyError(f"unknown sequence {seq}")
        return seq

    def _new(self, seq):
        seq = index(seq)
        if seq in self._blocks:
            raise ValueError(f"sequence {seq} exists")
        return seq

    def _amount(self, num_tokens):
        num_tokens = index(num_tokens)
        if num_tokens < 1:
            raise ValueError(f"{num_tokens} tokens")
        return num_tokens

    def _reserve(self, needed):
        if needed > len(self._ring):
            raise OutOfBlocks(needed, len(self._ring))

    def _next(self):
        block = self._ring.popleft()
        self._count[block] = 1
        return block

    def _minus(self, block):
        self._count[block] -= 1
        if self._count[block] == 0:
            self._ring.append(block)

    def allocate(self, seq, num_tokens):
        seq, num_tokens = self._new(seq), self._amount(num_tokens)
        full, rest = divmod(num_tokens, self.block_size)
        needed = full + bool(rest)
        self._reserve(needed)
        self._blocks[seq] = [self._next() for _ in range(needed)]
        self._length[seq] = num_tokens

    def append(self, seq, num_tokens=1):
        seq, num_tokens = self._known(seq), self._amount(num_tokens)
        blocks, used = self._blocks[seq], self._length[seq] % self.block_size
        room = self.block_size - used if used else 0
        beyond = max(num_tokens - room, 0)
        needed = -(-beyond // self.block_size)
        splits = bool(used) and self._count[blocks[-1]] > 1
        self._reserve(needed + splits)
        copies = []
        if splits:
            shared = blocks[-1]
            blocks[-1] = self._next()
            self._minus(shared)
            copies.append((shared, blocks[-1]))
        blocks.extend(self._next() for _ in range(needed))
        self._length[seq] += num_tokens
        return copies

    def fork(self, parent, child):
        parent, child = self._known(parent), self._new(child)
        self._blocks[child] = list(self._blocks[parent])
        self._length[child] = self._length[parent]
        for block in self._blocks[child]:
            self._count[block] += 1

    def free(self, seq):
        seq = self._known(seq)
        for block in reversed(self._blocks.pop(seq)):
            self._minus(block)
        del self._length[seq]

    def block_table(self, seq):
        return list(self._blocks[self._known(seq)])

    def num_tokens(self, seq):
        return self._length[self._known(seq)]

    def slot_mapping(self, seq, start, stop):
        seq = self._known(seq)
        if start < 0 or start > stop or stop > self._length[seq]:
            raise ValueError(f"{start}..{stop} of {self._length[seq]} tokens")
        blocks = self._blocks[seq]
        return [blocks[t // self.block_size] * self.block_size + t % self.block_size for t in range(start, stop)]
