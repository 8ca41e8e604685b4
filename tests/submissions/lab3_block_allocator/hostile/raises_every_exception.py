"""Attack: raise everything there is

Catalogue: D17, R18
Strategy: raises each built-in exception in turn, base exceptions and groups that take arguments included
Honest part: nothing
"""

import builtins

E = [v for v in vars(builtins).values() if isinstance(v, type) and issubclass(v, BaseException)]
N = 0


def nxt():
    global N
    N += 1
    t = E[N % len(E)]
    try:
        e = t("x")
    except TypeError:
        try:
            e = t("x", [ValueError()])
        except TypeError:
            e = UnicodeDecodeError("u", b"", 0, 1, "x")
    raise e


class BlockAllocator:
    @property
    def num_free_blocks(self):
        nxt()

    def __init__(self, num_blocks, block_size):
        pass

    def allocate(self, seq, num_tokens):
        pass

    def append(self, seq, num_tokens=1):
        nxt()

    def fork(self, parent, child):
        nxt()

    def free(self, seq):
        nxt()

    def block_table(self, seq):
        nxt()

    def num_tokens(self, seq):
        nxt()

    def slot_mapping(self, seq, start, stop):
        nxt()
