"""A log of what an allocator does, for `labkit.player` to play.

Owns: the recorder, which wraps any object with the methods of `labkit.contracts.BlockAllocator`, and what it says.
Knows nothing of how blocks are chosen or of how a log is drawn. It sees what a caller sees: tables, token counts, free
blocks; reference counts are derived from the tables. It also plays the engine: it makes the copies that `append` asks
for and writes every token into a pretended KV memory, so that an overwritten token is noticed at once.

The schema of the log is in `labkit.event_log`. A refusal is an error that the contract names (KeyError, ValueError,
OutOfBlocks); a failure is any other.
"""

from __future__ import annotations

from itertools import count
from operator import index
from typing import Any

from labkit.contracts import OutOfBlocks
from labkit.event_log import Event

Part = tuple[str, str, int | None, list[int]]
"""Kind, sentence, sequence and blocks of an event."""

_REFUSALS = (KeyError, ValueError, OutOfBlocks)
_ARGUMENTS = {"allocate": (2,), "append": (1, 2), "fork": (2,), "free": (1,)}
"""Method -> how many arguments a call of it may have."""


class Recorder:
    """An allocator that writes down what is done to it.

    `allocator` must be new: nothing allocated yet. Its methods are called through the recorder, with the same results
    and the same errors; `events` is the log so far. Cost of a call: O(tokens and blocks of all live sequences).
    """

    def __init__(self, allocator: Any, num_blocks: int, block_size: int) -> None:
        """Raises: ValueError if the sizes are below 1, or if the allocator is not an empty pool of `num_blocks`."""
        num_blocks, block_size = index(num_blocks), index(block_size)
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"num_blocks and block_size must be at least 1, got {num_blocks} and {block_size}")
        free = allocator.num_free_blocks
        if free != num_blocks:
            raise ValueError(f"the allocator must be a new pool of num_blocks={num_blocks}, it has {free} free blocks")
        self.events: list[Event] = []
        self._allocator = allocator
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._call = count()
        self._written: dict[int, list[int]] = {}  # what each sequence should read back
        self._memory: dict[int, int] = {}  # slot -> token
        self._token = count()
        self._tables: dict[int, list[int]] = {}
        self._seen: dict[str, Any] = {}
        told = f"BlockAllocator({num_blocks}, {block_size})"
        self._log(
            told, [("create", f"A pool of {_blocks(num_blocks)}, all free, with {block_size} slots each.", None, [])]
        )

    @property
    def num_free_blocks(self) -> int:
        return index(self._allocator.num_free_blocks)

    def allocate(self, seq: int, num_tokens: int) -> None:
        self._do("allocate", seq, num_tokens)

    def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
        copies: list[tuple[int, int]] = self._do("append", seq, num_tokens)
        return copies

    def fork(self, parent: int, child: int) -> None:
        self._do("fork", parent, child)

    def free(self, seq: int) -> None:
        self._do("free", seq)

    def block_table(self, seq: int) -> list[int]:
        return list(self._allocator.block_table(seq))

    def num_tokens(self, seq: int) -> int:
        return index(self._allocator.num_tokens(seq))

    def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
        return list(self._allocator.slot_mapping(seq, start, stop))

    def _do(self, method: str, *args: int) -> Any:
        told, seq = f"{method}({', '.join(map(str, args))})", _id(args[0])
        try:
            result = getattr(self._allocator, method)(*args)
        except _REFUSALS as error:
            self._log(told, [("refused", f"{told} is refused: {_name(error)}.", seq, [])])
            raise
        except Exception as error:
            self._log(told, [("failed", f"{told} fails: {_failure(error)}", seq, [])])
            raise
        try:
            parts = self._happened(method, args, result)
        except Exception as error:
            # The call itself was accepted, so its result goes back to the caller; the log says what cannot be seen.
            parts = [("failed", f"{told} returns, but what it did cannot be seen: {_failure(error)}", seq, [])]
        self._log(told, parts)
        return result

    def _happened(self, method: str, args: tuple[int, ...], result: Any) -> list[Part]:
        """What the call did, as (kind, sentence, seq, blocks), with the engine's copies and writes made."""
        seq = index(args[0])
        if method == "free":
            blocks = self._tables.pop(seq)
            del self._written[seq]
            gone = [block for block in blocks if all(block not in table for table in self._tables.values())]
            kept = f"; {_blocks(len(blocks) - len(gone))} still held by others" if len(gone) < len(blocks) else ""
            return [("free", f"Sequence {seq} ends and gives back {_named(gone)}{kept}.", seq, gone)]
        if method == "fork":
            child = index(args[1])
            self._tables[child] = self._table(child)
            self._written[child] = list(self._written[seq])
            shared = self._tables[child]
            return [("share", f"Sequence {child} shares {_named(shared)} with sequence {seq}.", child, shared)]
        return self._grown(seq, index(args[1]), list(result) if method == "append" else [])

    def _grown(self, seq: int, num_tokens: int, copies: list[Any]) -> list[Part]:
        parts: list[Part] = []
        before = self._tables.get(seq, [])
        for src, dst in copies:
            for offset in range(self._block_size):
                if (token := self._memory.get(src * self._block_size + offset)) is not None:
                    self._memory[dst * self._block_size + offset] = token
            text = f"Sequence {seq} is about to write into shared block {src}: it is copied to block {dst} first."
            parts.append(("copy", text, seq, [src, dst]))
        table = self._tables[seq] = self._table(seq)
        taken = [block for block in table[len(before) :] if block not in before]
        if taken:
            parts.append(("allocate", f"Sequence {seq} takes {_named(taken)}.", seq, taken))
        tokens = self._written.setdefault(seq, [])
        start = len(tokens)
        slots = list(self._allocator.slot_mapping(seq, start, start + num_tokens))
        for slot in slots:
            tokens.append(next(self._token))
            self._memory[slot] = tokens[-1]
        written = list(dict.fromkeys(slot // self._block_size for slot in slots))
        which = f"token {start}" if num_tokens == 1 else f"tokens {start} to {start + num_tokens - 1}"
        parts.append(("write", f"Sequence {seq} writes {which} into {_named(written)}.", seq, written))
        return parts

    def _table(self, seq: int) -> list[int]:
        return [index(block) for block in self._allocator.block_table(seq)]

    def _log(self, told: str, parts: list[Part]) -> None:
        call = next(self._call)
        for kind, sentence, seq, blocks in parts:
            event = {"call": call, "told": told, "kind": kind, "sentence": sentence, "seq": seq, "blocks": blocks}
            self.events.append(event)
        try:
            state = self._state()
        except Exception as error:
            fault = f"The allocator cannot be looked at: {_failure(error)}"
        else:
            changed = parts[-1][0] == "refused" and state != self._seen
            fault = "A refused call must change nothing, but this one did." if changed else self._fault(state)
            self._seen = state
        self.events[-1]["state"] = self._seen
        self.events[-1]["fault"] = fault

    def _state(self) -> dict[str, Any]:
        # Tables are asked for again after every call, since another sequence's table may have changed unasked.
        self._tables = {seq: self._table(seq) for seq in self._tables}
        ref_counts, filled = [0] * self._num_blocks, [0] * self._num_blocks
        tokens = {seq: index(self._allocator.num_tokens(seq)) for seq in self._tables}
        for seq, table in self._tables.items():
            for place, block in enumerate(table):
                if 0 <= block < self._num_blocks:
                    ref_counts[block] += 1
                    here = max(0, min(self._block_size, tokens[seq] - place * self._block_size))
                    filled[block] = max(filled[block], here)
        return {
            "num_blocks": self._num_blocks,
            "block_size": self._block_size,
            "num_free": self.num_free_blocks,
            "tables": {str(seq): table for seq, table in self._tables.items()},
            "tokens": {str(seq): number for seq, number in tokens.items()},
            "ref_counts": ref_counts,
            "filled": filled,
        }

    def _fault(self, state: dict[str, Any]) -> str:
        """The first thing that is wrong with `state`, in words; "" if nothing is."""
        for seq, table in self._tables.items():
            outside = [block for block in table if not 0 <= block < self._num_blocks]
            if outside:
                return f"Sequence {seq} holds block {outside[0]}, and there is no such block."
            written, counted = len(self._written[seq]), state["tokens"][str(seq)]
            if counted != written:
                return f"Sequence {seq} wrote {written} tokens, but num_tokens({seq}) is {counted}."
            needed = -(-written // self._block_size)
            if len(table) != needed:
                return f"Sequence {seq} needs {_blocks(needed)} for {written} tokens, but holds {len(table)}."
            lost = self._lost(self._written[seq], table)
            if lost is not None:
                block = table[lost // self._block_size]
                return f"Token {lost} of sequence {seq} is lost: block {block} was overwritten or never copied."
        held = sum(count > 0 for count in state["ref_counts"])
        if state["num_free"] + held != self._num_blocks:
            return f"{_blocks(held)} held and {state['num_free']} said to be free do not make {self._num_blocks}."
        return ""

    def _lost(self, tokens: list[int], table: list[int]) -> int | None:
        """The first token that its sequence would not read back, or None."""
        size = self._block_size
        for place, token in enumerate(tokens):
            if self._memory.get(table[place // size] * size + place % size) != token:
                return place
        return None


def record(allocator: Any, num_blocks: int, block_size: int, program: list[tuple[Any, ...]]) -> list[Event]:
    """Run `program`, a list of calls like `("append", 2, 1)`, and return the log.

    Errors of calls become events and the program goes on; an unwritten method is a failure like any other.
    Raises: ValueError on a call that is none of allocate, append, fork and free, or has too few or too many arguments,
    before anything is run.
    """
    for place, call in enumerate(program):
        if not call or call[0] not in _ARGUMENTS:
            raise ValueError(f"a program is made of {', '.join(_ARGUMENTS)}; call {place} of the program is {call!r}")
        if len(call) - 1 not in _ARGUMENTS[call[0]]:
            counts = " or ".join(map(str, _ARGUMENTS[call[0]]))
            raise ValueError(f"{call[0]} takes {counts} arguments; call {place} of the program is {call!r}")
    recorder = Recorder(allocator, num_blocks, block_size)
    for method, *args in program:
        try:
            getattr(recorder, method)(*args)
        except Exception:
            # Already an event of the log, with its message: the log is what was asked for.
            continue
    return recorder.events


def _id(seq: Any) -> int | None:
    """A sequence id as a log has it; None if it is no integer, which the call itself will complain about."""
    try:
        return index(seq)
    except TypeError:
        return None


def _name(error: Exception) -> str:
    """The contract's name of a refusal: a subclass is told by its contract's name too."""
    return next(kind.__name__ for kind in (OutOfBlocks, KeyError, ValueError) if isinstance(error, kind))


def _failure(error: Exception) -> str:
    if isinstance(error, NotImplementedError):
        return "something it needs is not written yet."
    return f"{type(error).__name__}: {error}"


def _blocks(number: int) -> str:
    return f"{number} block" if number == 1 else f"{number} blocks"


def _named(blocks: list[int]) -> str:
    if not blocks:
        return "no block"
    listed = ", ".join(map(str, blocks[:-1])) + (" and " if len(blocks) > 1 else "") + str(blocks[-1])
    return f"block{'s' if len(blocks) > 1 else ''} {listed}"
