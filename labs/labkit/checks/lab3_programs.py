"""Lab 3, group programs: long random programs, watched through the memory they would write.

Owns: seeded programs of calls, a pretended KV memory into which every token is written through `slot_mapping`, and the
shortening of a failing program. It allocates nothing: what a sequence must read back, how many blocks are free and
whether a call must be refused all follow from the letters written and the tables shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from typing import Any

from labkit.checks.pool import Pool
from labkit.checks.story import Broken, Make, group
from labkit.contracts import OutOfBlocks

Call = tuple[str, tuple[int, ...]]

_REPLAYS = 120
"""Most replays spent on making a failing program shorter."""


class _Watched:
    """An allocator, the tokens its sequences should hold, and the memory that holds them."""

    def __init__(self, make: Make, num_blocks: int, block_size: int) -> None:
        self.pool = Pool(make, num_blocks, block_size)
        self.tokens: dict[int, list[int]] = {}
        self.tables: dict[int, list[int]] = {}  # as they were after the last call
        self.memory: dict[int, int] = {}
        self._fresh = count()

    def do(self, method: str, args: tuple[int, ...]) -> None:
        """Make one call, expect what the contract says of it, and look at everything afterwards."""
        errors = self._must_refuse(method, args)
        if errors is not None:
            self.pool.refused(errors, method, *args)
        elif method == "append":
            self._append(*args)
        else:
            self.pool.call(method, *args)
            self._record(method, args)
        self._look()

    def _record(self, method: str, args: tuple[int, ...]) -> None:
        if method == "allocate":
            self.tokens[args[0]] = []
            self._write(args[0], args[1])
        elif method == "fork":
            self.tokens[args[1]] = list(self.tokens[args[0]])
        elif method == "free":
            del self.tokens[args[0]]

    def _append(self, seq: int, num_tokens: int) -> None:
        pool, size = self.pool, self.pool.block_size
        tail, shared = self.tables[seq][-1], self._tail_is_shared(seq)
        copies = pool.append(seq, num_tokens)
        pool.expect(
            len(copies) == shared,
            f"{'one copy out of the shared tail' if shared else 'no copy'}, got {copies if copies else 'none'}",
        )
        for src, dst in copies:
            pool.expect(src == tail, f"a copy out of the shared tail, block {tail}, got {copies}")
            for offset in range(size):
                if src * size + offset in self.memory:
                    self.memory[dst * size + offset] = self.memory[src * size + offset]
        self._write(seq, num_tokens)

    def _write(self, seq: int, num_tokens: int) -> None:
        start = len(self.tokens[seq])
        for slot in self.pool.slots(seq, start, start + num_tokens):
            token = next(self._fresh)
            self.tokens[seq].append(token)
            self.memory[slot] = token

    def _must_refuse(self, method: str, args: tuple[int, ...]) -> type[Exception] | tuple[type[Exception], ...] | None:
        """The error the contract names for this call now, both where it leaves the choice, or None."""
        seq = args[0]
        if method == "allocate":
            if seq in self.tokens:
                return ValueError
            return self._size_error(args[1], self.pool.blocks_for(args[1]))
        if seq not in self.tokens:
            return (KeyError, ValueError) if method == "fork" and args[1] in self.tokens else KeyError
        if method == "fork" and args[1] in self.tokens:
            return ValueError
        if method == "append":
            length = len(self.tokens[seq])
            grown = self.pool.blocks_for(length + args[1]) - self.pool.blocks_for(length)
            return self._size_error(args[1], grown + self._tail_is_shared(seq))
        return None

    def _size_error(self, num_tokens: int, needed: int) -> type[Exception] | None:
        if num_tokens < 1:
            return ValueError
        return OutOfBlocks if needed > self.pool.num_blocks - len(self._held()) else None

    def _tail_is_shared(self, seq: int) -> bool:
        tail = self.tables[seq][-1]
        partial = len(self.tokens[seq]) % self.pool.block_size != 0
        return partial and any(tail in table for other, table in self.tables.items() if other != seq)

    def _held(self) -> set[int]:
        return {block for table in self.tables.values() for block in table}

    def _look(self) -> None:
        """Every sequence reads back its own tokens, and free and held blocks add up."""
        pool = self.pool
        self.tables = {}
        for seq, tokens in self.tokens.items():
            got = pool.tokens(seq)
            pool.expect(got == len(tokens), f"num_tokens({seq}) to be {len(tokens)}, got {got}")
            table = self.tables[seq] = pool.table(seq)
            needed = pool.blocks_for(len(tokens))
            pool.expect(len(table) == needed, f"sequence {seq} to hold {needed} blocks, got {table}")
            slots = pool.slots(seq, 0, len(tokens))
            pool.expect(len(slots) == len(tokens), f"{len(tokens)} slots for sequence {seq}, got {len(slots)}")
            lost = [i for i, slot in enumerate(slots) if self.memory.get(slot) != tokens[i]]
            pool.expect(
                not lost,
                f"sequence {seq} to read back its own tokens, but token {lost[0] if lost else ''} is overwritten or was"
                " never copied",
            )
        free, held = pool.num_free, len(self._held())
        pool.expect(
            free + held == pool.num_blocks,
            f"free and held blocks to add up to {pool.num_blocks}, got {free} free and {held} held",
        )


def random_program(seed: int, length: int, block_size: int, weights: dict[str, int]) -> list[Call]:
    """`length` calls on a handful of sequence ids, drawn by `weights` (method -> how often)."""
    draw = random.Random(seed)
    longest = 3 * block_size
    arguments: dict[str, Callable[[], tuple[int, ...]]] = {
        "allocate": lambda: (draw.randrange(6), draw.randint(1, longest)),
        "append": lambda: (draw.randrange(6), draw.choice((1, 1, draw.randint(1, longest)))),
        "fork": lambda: (draw.randrange(6), draw.randrange(6)),
        "free": lambda: (draw.randrange(6),),
    }
    methods = draw.choices(list(weights), weights=list(weights.values()), k=length)
    return [(method, arguments[method]()) for method in methods]


def play(make: Make, program: list[Call], num_blocks: int, block_size: int) -> None:
    """Run `program` on a fresh allocator and watch it. Raises: Broken at the first call that breaks the contract."""
    watched = _Watched(make, num_blocks, block_size)
    for method, args in program:
        watched.do(method, args)


def shortest(program: list[Call], failure: Callable[[list[Call]], Broken | None], broken: Broken) -> Broken:
    """The failure of a shorter program, found by leaving calls out: pieces first, then single calls.

    `failure(program)` is the failure of a program or None; `broken` is that of the whole. Cost: at most 120 replays.
    """
    piece, replays = max(1, len(program) // 2), 0
    while replays < _REPLAYS:
        start, shrunk = 0, False
        while start < len(program) and replays < _REPLAYS:
            candidate = program[:start] + program[start + piece :]
            found = failure(candidate) if candidate else None
            replays += 1
            if found is None:
                start += piece
            else:
                program, broken, shrunk = candidate, found, True
        if piece == 1 and not shrunk:
            break
        piece = max(1, piece // 2)
    return broken


def _programs_hold(make: Make, weights: dict[str, int], num_blocks: int, block_size: int, seeds: range) -> None:
    def failure(program: list[Call]) -> Broken | None:
        try:
            play(make, program, num_blocks, block_size)
        except Broken as broken:
            return broken
        return None

    for seed in seeds:
        program = random_program(seed, 60, block_size, weights)
        broken = failure(program)
        if broken is not None:
            raise shortest(program, failure, broken)


_ALL: dict[str, Any] = {"allocate": 3, "append": 6, "fork": 3, "free": 3}


def programs_without_forks(make: Make) -> None:
    """Sixty random calls, no forks: every sequence reads back what it wrote."""
    _programs_hold(make, {"allocate": 3, "append": 6, "free": 2}, 12, 4, range(4))


def programs_with_forks(make: Make) -> None:
    """Sixty random calls with forks: no write of one sequence is seen by another."""
    _programs_hold(make, _ALL, 16, 4, range(10, 16))


def programs_in_a_small_pool(make: Make) -> None:
    """Sixty random calls in a pool that is nearly always full: refusals leave no trace."""
    _programs_hold(make, _ALL, 4, 3, range(20, 26))


def programs_with_blocks_of_one_token(make: Make) -> None:
    """Sixty random calls with one token a block: nothing is ever partial, nothing is ever copied."""
    _programs_hold(make, _ALL, 8, 1, range(30, 33))


PROGRAMS = group(
    "Long random programs against the reference",
    programs_without_forks,
    programs_with_forks,
    programs_in_a_small_pool,
    programs_with_blocks_of_one_token,
)
