"""A subject of lab 3 beside the reference, call by call, over a memory of letters.

Owns: what "the same" means where ids are free: the same refusals, the same counts, tables that correspond by a
bijection of blocks, copies that correspond, and every sequence reading back what was written to it. Knows nothing of
how programs are drawn. Messages are static sentences, for students read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autograder.judge import pool_view as view
from autograder.judge.subject import Make
from labkit.contracts import OutOfBlocks
from reference_impl.memory import BlockAllocator

CONTRACT_ERRORS = (KeyError, ValueError, OutOfBlocks)
LOOK_AT_ALL_EVERY = 6
"""Calls between two looks at every sequence; between them only the ones that were called are looked at."""


class Twins:
    """The same calls on both. Every method may raise AssertionError, or what the student's code raised."""

    def __init__(self, make: Make, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.reference = BlockAllocator(num_blocks, block_size)
        self.subject = make(num_blocks, block_size)
        self.texts: dict[int, list[int]] = {}
        self._memory: dict[int, int] = {}
        self._letters = 0
        self._calls = 0
        self.sound = True
        """Whether the last call ended without a difference; afterwards nothing more is to be learned."""

    def call(self, method: str, *args: int) -> None:
        """One call on both, then a look at what it touched."""
        self.sound = False
        copies: list[tuple[int, int]] = []
        error = self._reference_error(lambda: copies.extend(getattr(self.reference, method)(*args) or ()))
        answer = self._same_end(error, method, args)
        if error is None:
            self._follow(method, args, view.copies_of(answer) if method == "append" else [], copies)
        self._calls += 1
        assert view.num_free(self.subject) == self.reference.num_free_blocks, "the number of free blocks is wrong"
        if self._calls % LOOK_AT_ALL_EVERY == 0:
            self.look_at_all()
        elif args[0] in self.texts:
            self._look_at(args[0])
        self.sound = True

    def _reference_error(self, run: Callable[[], object]) -> Exception | None:
        try:
            run()
        except CONTRACT_ERRORS as error:
            return error
        return None

    def _same_end(self, error: Exception | None, method: str, args: tuple[int, ...]) -> Any:
        """The subject's answer; AssertionError if it refuses what can be done, or the other way round."""
        try:
            answer = getattr(self.subject, method)(*args)
        except CONTRACT_ERRORS as raised:
            assert error is not None, f"{method} refused a call that can be met"
            kinds: tuple[type[Exception], ...] = (next(kind for kind in CONTRACT_ERRORS if isinstance(error, kind)),)
            if method == "fork" and args[0] not in self.texts and args[1] in self.texts:
                kinds = (KeyError, ValueError)  # both ids are wrong: the contract leaves open which one is named
            if not isinstance(raised, kinds):
                raise AssertionError(f"{method} refused with another error than the contract's") from raised
            return None
        assert error is None, f"{method} did not refuse a call that must be refused"
        return answer

    def _follow(self, method: str, args: tuple[int, ...], copies: view.Copies, expected: view.Copies) -> None:
        """Do in the model and in the memory of letters what the engine would do after this call."""
        seq = args[0]
        if method == "free":
            del self.texts[seq]
        elif method == "fork":
            self.texts[args[1]] = list(self.texts[seq])
            self._look_at(args[1])
        elif method == "allocate":
            self.texts[seq] = []
            self._write(seq, args[1])
        elif method == "append":
            assert len(copies) == len(expected), "append asked for a copy too many or too few"
            for (src, dst), (_, reference_dst) in zip(copies, expected, strict=True):
                at = self.reference.block_table(seq).index(reference_dst)
                table = view.table(self.subject, seq)
                assert at < len(table), "a table has too few blocks"
                assert table[at] == dst, "the writer does not hold the block its copy went to"
                self._copy(src, dst)
            self._write(seq, args[1] if len(args) > 1 else 1)

    def _copy(self, src: int, dst: int) -> None:
        for offset in range(self.block_size):
            letter = self._memory.get(src * self.block_size + offset)
            if letter is not None:
                self._memory[dst * self.block_size + offset] = letter

    def _write(self, seq: int, count: int) -> None:
        """`count` letters that were never written before, each where slot_mapping says."""
        text = self.texts[seq]
        slots = view.slots(self.subject, seq, len(text), len(text) + count)
        assert len(slots) == count, "slot_mapping does not give one slot for each new token"
        for slot in slots:
            self._letters += 1
            self._memory[slot] = self._letters
            text.append(self._letters)

    def _look_at(self, seq: int) -> list[int]:
        """Count, table length and text of one sequence; gives its table."""
        assert view.num_tokens(self.subject, seq) == self.reference.num_tokens(seq), "num_tokens is wrong"
        table = view.table(self.subject, seq)
        assert len(table) == len(self.reference.block_table(seq)), "a table has too many or too few blocks"
        slots = view.slots(self.subject, seq, 0, len(self.texts[seq]))
        assert [self._memory.get(slot) for slot in slots] == self.texts[seq], "a sequence does not read back its text"
        return table

    def look_at_all(self) -> None:
        """Every sequence, and the correspondence of blocks: two places share a block here if and only if there."""
        there: dict[int, int] = {}
        back: dict[int, int] = {}
        for seq in self.texts:
            for block, twin in zip(self._look_at(seq), self.reference.block_table(seq), strict=True):
                assert there.setdefault(block, twin) == twin, "two sequences share a block that they should not share"
                assert back.setdefault(twin, block) == block, "two sequences do not share a block that they should"
