"""Attack: break the parser on the other side

Catalogue: D17, R18
Strategy: answers with endless nesting, huge numbers, huge lists, cycles and objects that raise when looked at
Honest part: nothing
"""


class Bomb(int):
    def __int__(self):
        raise RuntimeError("boom")

    def __index__(self):
        raise RuntimeError("boom")


class BlockAllocator:
    def __init__(self, num_blocks, block_size):
        self.calls = 0

    @property
    def num_free_blocks(self):
        return 10**5000

    def allocate(self, seq, num_tokens):
        return Bomb(1)

    def append(self, seq, num_tokens=1):
        cycle = []
        cycle.append(cycle)
        return cycle

    def fork(self, parent, child):
        deep = []
        for _ in range(100_000):
            deep = [deep]
        return deep

    def free(self, seq):
        return {"tuple": {"dict": "opaque"}}

    def block_table(self, seq):
        return [0] * 50_000_000

    def num_tokens(self, seq):
        return float("nan")

    def slot_mapping(self, seq, start, stop):
        return "9" * (32 << 20)
