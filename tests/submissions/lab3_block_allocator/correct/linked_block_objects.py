"""Design: an object for each block, free ones linked through the objects, num_free_blocks as an attribute."""

from operator import index

from labkit.contracts import OutOfBlocks


class Block:
    __slots__ = ("id", "next_free", "refs")

    def __init__(self, id, next_free):
        self.id = id
        self.refs = 0
        self.next_free = next_free


class Sequence:
    __slots__ = ("blocks", "tokens")

    def __init__(self, blocks, tokens):
        self.blocks = blocks
        self.tokens = tokens


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        num_blocks, block_size = index(num_blocks), index(block_size)
        if num_blocks < 1:
            raise ValueError("num_blocks")
        if block_size < 1:
            raise ValueError("block_size")
        self.block_size = block_size
        self.num_free_blocks = num_blocks
        self.first_free = None
        for id in reversed(range(num_blocks)):
            self.first_free = Block(id, self.first_free)
        self.sequences = {}

    def _pop(self):
        block = self.first_free
        self.first_free = block.next_free
        block.next_free = None
        block.refs = 1
        self.num_free_blocks -= 1
        return block

    def _drop(self, block):
        block.refs -= 1
        if not block.refs:
            block.next_free = self.first_free
            self.first_free = block
            self.num_free_blocks += 1

    def _need(self, count):
        if count > self.num_free_blocks:
            raise OutOfBlocks(count, self.num_free_blocks)

    def allocate(self, seq, num_tokens):
        if seq in self.sequences:
            raise ValueError("this sequence exists")
        if num_tokens < 1:
            raise ValueError("no tokens")
        count = (num_tokens + self.block_size - 1) // self.block_size
        self._need(count)
        self.sequences[index(seq)] = Sequence([self._pop() for _ in range(count)], index(num_tokens))

    def append(self, seq, num_tokens=1):
        sequence = self.sequences[seq]
        if num_tokens < 1:
            raise ValueError("no tokens")
        room = len(sequence.blocks) * self.block_size - sequence.tokens
        more = max(0, (num_tokens - room + self.block_size - 1) // self.block_size)
        tail = sequence.blocks[-1]
        must_copy = room > 0 and tail.refs > 1
        self._need(more + must_copy)
        copies = []
        if must_copy:
            own = self._pop()
            sequence.blocks[-1] = own
            self._drop(tail)
            copies = [(tail.id, own.id)]
        sequence.blocks += [self._pop() for _ in range(more)]
        sequence.tokens += index(num_tokens)
        return copies

    def fork(self, parent, child):
        sequence = self.sequences[parent]
        if child in self.sequences:
            raise ValueError("this sequence exists")
        for block in sequence.blocks:
            block.refs += 1
        self.sequences[index(child)] = Sequence(list(sequence.blocks), sequence.tokens)

    def free(self, seq):
        for block in self.sequences.pop(seq).blocks:
            self._drop(block)

    def block_table(self, seq):
        return [block.id for block in self.sequences[seq].blocks]

    def num_tokens(self, seq):
        return self.sequences[seq].tokens

    def slot_mapping(self, seq, start, stop):
        sequence = self.sequences[seq]
        if start < 0 or stop < start or sequence.tokens < stop:
            raise ValueError("no such tokens")
        slots = []
        for token in range(start, stop):
            number, offset = divmod(token, self.block_size)
            slots.append(sequence.blocks[number].id * self.block_size + offset)
        return slots
