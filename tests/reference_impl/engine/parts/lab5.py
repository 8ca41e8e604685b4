"""A lab 5 as somebody might write it: the whole beginning is the key, and the oldest tail is looked for among all."""

from labkit.contracts import OutOfBlocks


class PrefixCache:
    def __init__(self, num_blocks, block_size):
        if num_blocks < 1 or block_size < 1:
            raise ValueError("sizes must be at least 1")
        self.block_size = block_size
        self.blank = list(range(num_blocks))
        self.of_key = {}
        self.key_of = {}
        self.holders = dict.fromkeys(range(num_blocks), 0)
        self.released = {}
        self.clock = 0
        self.live = {}

    @property
    def num_free_blocks(self):
        return len(self.blank) + sum(1 for block in self.key_of if not self.holders[block])

    def _keys(self, tokens, salt, count):
        return [(salt, tuple(tokens[: (number + 1) * self.block_size])) for number in range(count)]

    def acquire(self, seq, tokens, salt=""):
        if seq in self.live:
            raise ValueError(f"{seq} exists")
        if not tokens:
            raise ValueError("no tokens")
        hits = []
        for key in self._keys(tokens, salt, (len(tokens) - 1) // self.block_size):
            if key not in self.of_key:
                break
            hits.append(self.of_key[key])
        needed = -(-len(tokens) // self.block_size) - len(hits)
        room = self.num_free_blocks - sum(1 for block in hits if not self.holders[block])
        if needed > room:
            raise OutOfBlocks(needed, room)
        for block in hits:
            self.holders[block] += 1
        table = hits + [self._new_block() for _ in range(needed)]
        for block in table[len(hits) :]:
            self.holders[block] = 1
        self.live[seq] = (list(tokens), salt, table)
        return len(hits) * self.block_size

    def _new_block(self):
        if self.blank:
            return self.blank.pop(0)
        block = min((block for block in self.key_of if not self.holders[block]), key=lambda block: self.released[block])
        del self.of_key[self.key_of.pop(block)]
        return block

    def commit(self, seq, num_tokens):
        tokens, salt, table = self.live[seq]
        if not 0 <= num_tokens <= len(tokens):
            raise ValueError(f"{num_tokens} of {len(tokens)} tokens")
        for number, key in enumerate(self._keys(tokens, salt, num_tokens // self.block_size)):
            if key not in self.of_key:
                self.of_key[key] = table[number]
                self.key_of[table[number]] = key

    def release(self, seq):
        _, _, table = self.live.pop(seq)
        for block in reversed(table):
            self.clock += 1
            self.released[block] = self.clock
            self.holders[block] -= 1
            if not self.holders[block] and block not in self.key_of:
                self.blank.append(block)

    def block_table(self, seq):
        return list(self.live[seq][2])
