"""Design: ids that were never used come from a counter, returned ones from a stack; nothing is built in advance."""

from operator import index

from labkit.contracts import OutOfBlocks


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        if num_blocks < 1:
            raise ValueError("at least one block")
        if block_size < 1:
            raise ValueError("at least one token in a block")
        self.limit = index(num_blocks)
        self.width = index(block_size)
        self.next_id = 0
        self.recycled = []
        self.sharers = {}  # block -> holders, for blocks with more than one
        self.tables = {}
        self.sizes = {}

    @property
    def num_free_blocks(self):
        return self.limit - self.next_id + len(self.recycled)

    def _draw(self):
        if self.recycled:
            return self.recycled.pop()
        self.next_id += 1
        return self.next_id - 1

    def _leave(self, block):
        holders = self.sharers.get(block, 1)
        if holders == 1:
            self.recycled.append(block)
        elif holders == 2:
            del self.sharers[block]
        else:
            self.sharers[block] = holders - 1

    def allocate(self, seq, num_tokens):
        if seq in self.tables:
            raise ValueError("exists")
        if num_tokens < 1:
            raise ValueError("num_tokens")
        blocks = -(-index(num_tokens) // self.width)
        if self.num_free_blocks < blocks:
            raise OutOfBlocks(blocks, self.num_free_blocks)
        self.tables[index(seq)] = [self._draw() for _ in range(blocks)]
        self.sizes[index(seq)] = index(num_tokens)

    def append(self, seq, num_tokens=1):
        table, size = self.tables[seq], self.sizes[seq]
        if num_tokens < 1:
            raise ValueError("num_tokens")
        new_size = size + index(num_tokens)
        fresh = -(-new_size // self.width) - len(table)
        writes_shared = size % self.width > 0 and table[-1] in self.sharers
        if self.num_free_blocks < fresh + writes_shared:
            raise OutOfBlocks(fresh + writes_shared, self.num_free_blocks)
        copies = []
        if writes_shared:
            mine = self._draw()
            copies.append((table[-1], mine))
            self._leave(table[-1])
            table[-1] = mine
        for _ in range(fresh):
            table.append(self._draw())
        self.sizes[seq] = new_size
        return copies

    def fork(self, parent, child):
        table = self.tables[parent]
        if child in self.tables:
            raise ValueError("exists")
        for block in table:
            self.sharers[block] = self.sharers.get(block, 1) + 1
        self.tables[index(child)] = table.copy()
        self.sizes[index(child)] = self.sizes[parent]

    def free(self, seq):
        table = self.tables.pop(seq)
        del self.sizes[seq]
        while table:
            self._leave(table.pop())

    def block_table(self, seq):
        return self.tables[seq].copy()

    def num_tokens(self, seq):
        return self.sizes[seq]

    def slot_mapping(self, seq, start, stop):
        table = self.tables[seq]
        if not (0 <= start <= stop <= self.sizes[seq]):
            raise ValueError("range")
        return [table[t // self.width] * self.width + t % self.width for t in range(start, stop)]
