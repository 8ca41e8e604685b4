"""A naive model of the KV manager, and an engine that makes its copies and writes its slots.

The model keeps what stands in every slot, and for every request what it must read back. A slot's value is the whole
prefix that led to it, so that two values are equal exactly when one may stand for the other. It does not choose victims
of eviction: it watches which blocks are handed out, and from then on their old content must not be found.
Several managers run in step and must give the same answers.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import Reason, Refusal

Value = tuple[Any, ...]


@dataclass
class Told:
    """A request: its tokens as they will be in the end, the part of them told so far, and where it is."""

    request: int
    truth: list[int]
    demand: Demand
    slots: int = 0
    committed: int = 0
    computed_blocks: int = 0
    promised: int = 0
    table: list[int] = field(default_factory=list)
    on_host: list[int] = field(default_factory=list)
    copied: bool = False

    def value(self, place: int) -> Value:
        """What the slot of token `place` holds once it is computed: the salt and all tokens up to it."""
        root = self.demand.salt if self.demand.token_ids is not None else ("untold", self.truth[0])
        return (root, *self.truth[: place + 1])

    @property
    def known(self) -> int:
        ids = self.demand.token_ids
        return 0 if ids is None else min(self.committed, len(ids))


class Model:
    """What `managers`, all of the same sizes, must do."""

    def __init__(self, managers: Sequence[KVManager], *, finds: bool) -> None:
        self.managers = managers
        first = managers[0]
        self.finds, self.size, self.num_blocks = finds, first.block_size, first.num_blocks
        self.num_host_blocks = first._host.num_blocks
        self.live: dict[int, Told] = {}
        self.swapped: dict[int, Told] = {}
        self.memory: dict[int, Value] = {}
        self.host: dict[int, dict[int, Value]] = {}
        self.contents: dict[Value, int] = {}
        self.operations = 0

    # What is asked of every manager alike.

    def answer(self, name: str, *arguments: Any) -> Any:
        """What every manager answers; they must agree."""
        self.operations += 1
        answers = [getattr(manager, name)(*arguments) for manager in self.managers]
        assert answers[1:] == answers[:-1], f"{name}{arguments}: {answers}"
        return answers[0]

    def refuses(self, error: type[Exception], words: str, name: str, *arguments: Any) -> None:
        before = self.seen()
        for manager in self.managers:
            with pytest.raises(error, match=words):
                getattr(manager, name)(*arguments)
        assert self.seen() == before, f"{name}{arguments} failed and changed something"

    def seen(self) -> list[Any]:
        """Everything of the managers that a caller can see."""
        probes = [told.demand for told in (*self.live.values(), *self.swapped.values())]
        return [
            (
                {request: (manager.block_table(request), manager.num_tokens(request)) for request in self.live},
                (manager.num_free_blocks, manager.num_evicted, manager.account(), manager._promised),
                (manager._blocks.published(), manager._host.num_free, [manager.match(demand) for demand in probes]),
            )
            for manager in self.managers
        ]

    # Naive rules.

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def held(self) -> set[int]:
        return {block for told in self.live.values() for block in told.table}

    def free(self) -> int:
        return self.num_blocks - len(self.held())

    def found(self, told: Told, tokens: int) -> list[int]:
        """The blocks that hold the longest beginning of the first `tokens` tokens."""
        ids = told.demand.token_ids
        blocks: list[int] = []
        if ids is None or not self.finds:
            return blocks
        for end in range(self.size, min(tokens, len(ids)) + 1, self.size):
            block = self.contents.get(told.value(end - 1))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def why_not(self, hits: list[int], slots: int, known: int) -> Reason | None:
        manager = self.managers[0]
        needed = self.blocks(known if manager.full_fit else slots) - len(hits)
        free = self.free() - len(set(hits) - self.held())
        promised = sum(max(0, told.promised - len(told.table)) for told in self.live.values())
        reserve = manager.num_watermark_blocks if self.live else 0
        if needed > free:
            return Reason.NO_ROOM
        if needed + promised > free:
            return Reason.PROMISED
        return Reason.WATERMARK if needed + promised + reserve > free else None

    # The engine's part.

    def takes(self, told: Told, hits: list[int], before: list[int]) -> None:
        """`told` has a new table: hits first, and what is new to it was free, and is found by nobody any more."""
        table = self.answer("block_table", told.request)
        held = self.held()
        assert table[: len(hits)] == hits
        assert len(table) == self.blocks(told.slots)
        for block in table[len(hits) :]:
            if block in before:
                continue
            assert block not in held, f"block {block} was held by another"
            self.contents = {content: other for content, other in self.contents.items() if other != block}
        told.table = table

    def write(self, told: Told, start: int, stop: int, *, wrong: bool = False) -> None:
        for place, slot in enumerate(self.answer("slot_mapping", told.request, start, stop), start=start):
            self.memory[slot] = ("wrong", told.request, place) if wrong else told.value(place)

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """All are read before any is written."""
        read = [[self.memory.get(src * self.size + offset, ()) for offset in range(self.size)] for src, _ in copies]
        for (_, dst), values in zip(copies, read, strict=True):
            for offset, value in enumerate(values):
                self.memory[dst * self.size + offset] = value

    # Operations. Each predicts the answer first.

    def admit(self, told: Told, num_tokens: int) -> bool:
        demand, before = told.demand, self.seen()
        hits = self.found(told, demand.num_tokens - 1)
        reused = len(hits) * self.size
        assert self.answer("match", demand) == reused
        slots = min(reused + num_tokens, demand.num_tokens)
        never = demand.num_tokens + demand.max_new_tokens - 1 > self.num_blocks * self.size
        reason = Reason.NEVER_FITS if never else self.why_not(hits, slots, demand.num_tokens)
        answer = self.answer("admit", demand, num_tokens)
        if reason is not None:
            self.refused(answer, reason, before)
            assert never or self.live, "alone in memory, it must come in"
            return False
        assert answer == Grant(reused)
        told.slots, told.committed, told.computed_blocks = slots, reused, len(hits)
        told.promised = self.blocks(demand.num_tokens) if self.managers[0].full_fit else 0
        self.takes(told, hits, [])
        self.live[told.request] = told
        self.write(told, reused, slots)
        return True

    def grow(self, told: Told, num_tokens: int, *, wrong: bool = False) -> bool:
        before, old = self.seen(), list(told.table)
        shared = told.slots % self.size != 0 and sum(old[-1] in other.table for other in self.live.values()) > 1
        copied = shared and num_tokens > told.slots
        needed = max(0, self.blocks(num_tokens) - len(old)) + copied
        answer = self.answer("grow", told.request, num_tokens)
        if needed > self.free():
            never = num_tokens > self.num_blocks * self.size
            self.refused(answer, Reason.NEVER_FITS if never else Reason.NO_ROOM, before)
            return False
        start, told.slots = told.slots, max(told.slots, num_tokens)
        del self.live[told.request]
        self.takes(told, old[: len(old) - copied], old)
        self.live[told.request] = told
        assert answer == Grant(copies=((old[-1], told.table[len(old) - 1]),) if copied else ())
        told.copied |= copied
        self.copy(answer.copies)
        self.write(told, start, told.slots, wrong=wrong)
        return True

    def commit(self, told: Told, num_tokens: int) -> None:
        self.answer("commit", told.request, num_tokens)
        told.committed, told.copied = max(told.committed, num_tokens), False
        if not self.finds or num_tokens < (told.computed_blocks + 1) * self.size:
            return
        for number in range(told.computed_blocks, told.known // self.size):
            self.contents.setdefault(told.value((number + 1) * self.size - 1), told.table[number])
            told.computed_blocks = number + 1

    def free_request(self, request: int) -> None:
        self.answer("free", request)
        if self.live.pop(request, None) is None:
            for block in self.swapped.pop(request).on_host:
                del self.host[block]

    def fork(self, parent: Told, child: Told) -> bool:
        before, demand = self.seen(), child.demand
        never = demand.num_tokens + demand.max_new_tokens - 1 > self.num_blocks * self.size
        answer = self.answer("fork", parent.request, demand)
        if never:
            self.refused(answer, Reason.NEVER_FITS, before)
            return False
        assert answer is None
        assert self.answer("block_table", child.request) == parent.table
        child.table, child.slots, child.committed = list(parent.table), parent.slots, parent.committed
        child.computed_blocks = parent.computed_blocks
        child.promised = self.blocks(demand.num_tokens) if self.managers[0].full_fit else 0
        self.live[child.request] = child
        return True

    def truncate(self, told: Told, num_tokens: int) -> None:
        self.answer("truncate", told.request, num_tokens)
        told.slots = num_tokens
        assert self.answer("block_table", told.request) == told.table[: self.blocks(num_tokens)]
        del told.table[self.blocks(num_tokens) :]

    def swap_out(self, told: Told) -> bool:
        if told.copied:
            self.refuses(ValueError, "waits for the copy of its tail", "swap_out", told.request)
            return False
        before = self.seen()
        answer = self.answer("swap_out", told.request)
        if len(told.table) > self.num_host_blocks - len(self.host):
            self.refused(answer, Reason.NO_HOST_ROOM, before)
            return False
        assert [src for src, _ in answer] == told.table
        told.on_host, told.table = [dst for _, dst in answer], []
        assert not self.host.keys() & set(told.on_host)
        for src, dst in answer:
            slots = range(src * self.size, (src + 1) * self.size)
            self.host[dst] = {slot % self.size: self.memory.get(slot, ()) for slot in slots}
        self.swapped[told.request] = self.live.pop(told.request)
        return True

    def swap_in(self, told: Told) -> bool:
        before, demand = self.seen(), told.demand
        hits = self.found(told, told.known)
        end = demand.num_tokens + demand.max_new_tokens - 1
        wanted = max(told.slots, min(told.slots + 1, end))
        reason = self.why_not(hits, wanted, max(wanted, demand.num_tokens))
        answer = self.answer("swap_in", told.request)
        if reason is not None:
            self.refused(answer, reason, before)
            assert self.live, "alone in memory, it must come back"
            return False
        self.takes(told, hits, [])
        assert answer == tuple(zip(told.on_host[len(hits) :], told.table[len(hits) :], strict=True))
        for src, dst in answer:
            for offset, value in self.host[src].items():
                self.memory[dst * self.size + offset] = value
        for block in told.on_host:
            del self.host[block]
        told.on_host, told.computed_blocks = [], len(hits)
        self.live[told.request] = self.swapped.pop(told.request)
        return True

    def refused(self, answer: object, reason: Reason, before: list[Any]) -> None:
        assert isinstance(answer, Refusal), f"{answer} instead of a refusal: {reason}"
        assert answer.reason is reason
        assert answer.needed > answer.free
        assert self.seen() == before, f"refused, {answer}, and changed something"

    # After every operation.

    def check(self) -> None:
        held, free = self.held(), self.free()
        for manager in self.managers:
            manager.check_invariants()
            assert manager.num_free_blocks == free
            assert manager._blocks.published() == sorted(self.contents.values())
            assert manager._host.num_free == self.num_host_blocks - len(self.host)
        for told in self.live.values():
            for place in range(told.committed):
                slot = told.table[place // self.size] * self.size + place % self.size
                read = self.memory.get(slot)
                assert read == told.value(place), f"request {told.request} reads {read} for token {place}"
        for content, block in self.contents.items():
            last = self.memory.get((block + 1) * self.size - 1)
            assert last == content, f"block {block} is published as {content} and holds {last}"
        # What nobody holds and nobody could find may be overwritten by anything.
        for block in set(range(self.num_blocks)) - held - set(self.contents.values()):
            for slot in range(block * self.size, (block + 1) * self.size):
                self.memory[slot] = ("poison",)
        self.check_account(held)

    def check_account(self, held: set[int]) -> None:
        account = self.answer("account", 3)
        filled = {
            table * self.size + place % self.size
            for told in self.live.values()
            for place in range(told.slots)
            for table in [told.table[place // self.size]]
        }
        assert account.capacity == self.num_blocks * self.size
        assert (account.held, account.tail) == (len(filled), len(held) * self.size - len(filled))


def demand_of(
    request: int, truth: list[int], prompt: int, max_new: int, *, told_ids: bool = True, salt: str = ""
) -> Told:
    """A request with the first `prompt` tokens of `truth`, which is long enough for all it may make."""
    ids = array("i", truth[:prompt]) if told_ids else None
    return Told(request, truth, Demand(request, prompt, max_new, token_ids=ids, salt=salt))
