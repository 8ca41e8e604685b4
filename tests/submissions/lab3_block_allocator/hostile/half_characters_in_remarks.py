"""Attack: break whoever writes the feedback down

Catalogue: D14, D17, N25
Strategy: ends in an error whose text holds lone surrogates, terminal commands and markup; what stands before it is honest
Honest part: tables, conservation, refusals, growth, sharing, copy_on_write, programs, cost
"""

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


class BlockAllocator(Honest):
    pass


raise ValueError("\ud800\x1b[2J\udfff\x00\x1b]0;owned\x07</td><script>alert(1)</script>=cmd")
