"""Attack: make the judge hold gigabytes

Catalogue: D2, D17
Strategy: answers with as many different integers as may cross, wherever the caller keeps many answers
Honest part: tables, conservation, refusals, growth, copy_on_write
"""

from collections import Counter
from operator import index

from labkit.contracts import OutOfBlocks


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        num_blocks, block_size = index(num_blocks), index(block_size)
        if num_blocks < 1 or block_size < 1:
            raise ValueError("num_blocks and block_size must be at least 1")
        self.block_size = block_size
        self.free_ids = list(range(num_blocks))
        self.holders = Counter()
        self.tables = {}
        self.tokens = {}

    @property
    def num_free_blocks(self):
        return len(self.free_ids)

    def _take(self):
        block = self.free_ids.pop()
        self.holders[block] = 1
        return block

    def _release(self, block):
        self.holders[block] -= 1
        if self.holders[block] == 0:
            self.free_ids.append(block)

    def _check(self, seq):
        if seq not in self.tables:
            raise KeyError(seq)

    def allocate(self, seq, num_tokens):
        seq, num_tokens = index(seq), index(num_tokens)
        if seq in self.tables:
            raise ValueError(f"sequence {seq} exists")
        if num_tokens < 1:
            raise ValueError("num_tokens must be at least 1")
        needed = -(-num_tokens // self.block_size)
        if needed > len(self.free_ids):
            raise OutOfBlocks(needed, len(self.free_ids))
        self.tables[seq] = [self._take() for _ in range(needed)]
        self.tokens[seq] = num_tokens

    def append(self, seq, num_tokens=1):
        self._check(seq)
        num_tokens = index(num_tokens)
        if num_tokens < 1:
            raise ValueError("num_tokens must be at least 1")
        table = self.tables[seq]
        grow = -(-(self.tokens[seq] + num_tokens) // self.block_size) - len(table)
        copy = self.tokens[seq] % self.block_size != 0 and self.holders[table[-1]] > 1
        if grow + copy > len(self.free_ids):
            raise OutOfBlocks(grow + copy, len(self.free_ids))
        copies = []
        if copy:
            src, dst = table[-1], self._take()
            self._release(src)
            table[-1] = dst
            copies.append((src, dst))
        for _ in range(grow):
            table.append(self._take())
        self.tokens[seq] += num_tokens
        return copies

    def fork(self, parent, child):
        self._check(parent)
        child = index(child)
        if child in self.tables:
            raise ValueError(f"sequence {child} exists")
        self.tables[child] = self.tables[parent].copy()
        self.tokens[child] = self.tokens[parent]
        for block in self.tables[child]:
            self.holders[block] += 1

    def free(self, seq):
        self._check(seq)
        for block in self.tables.pop(seq):
            self._release(block)
        del self.tokens[seq]

    def block_table(self, seq):
        self._check(seq)
        return self.tables[seq].copy()

    def num_tokens(self, seq):
        self._check(seq)
        return self.tokens[seq]

    def slot_mapping(self, seq, start, stop):
        self._check(seq)
        if not 0 <= start <= stop <= self.tokens[seq]:
            raise ValueError(f"tokens {start} to {stop} of {self.tokens[seq]}")
        size, table = self.block_size, self.tables[seq]
        return [table[t // size] * size + t % size for t in range(start, stop)]


import struct
import sys

_wire = sys.modules["__main__"].wire
_pack = _wire.pack
_BIG = 800_000
_turn = 0


class _Marker:
    pass


def _big_pack(message):
    global _turn
    if message.get("ok") == "BIG":
        start = 100_000_000 + _turn * _BIG
        _turn += 1
        body = b'{"id":%d,"ok":[%s]}' % (message["id"], ",".join(map(str, range(start, start + _BIG))).encode())
        return struct.pack("!I", len(body)) + body
    return _pack(message)


_wire.pack = _big_pack


class BlockAllocator(BlockAllocator):
    def block_table(self, seq):
        if len(self.tables) >= 30:
            return "BIG"
        return super().block_table(seq)
