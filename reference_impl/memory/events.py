"""The log of the KV manager: every change in words, to be played by `labkit.player` or counted.

Owns: the sentences, and the state that is written down after a call. Knows nothing of why a scheduler calls. The schema
is that of `labkit.event_log`; the blocks of a reference count, of the free memory and of a table are those that a
caller sees.
A call that changes no block and computes no token leaves no event. What a scheduler says (`preempted`, `finished`)
stands before the events of the next call, because that call is what it explains; of a request that holds nothing it
stands alone, because no call follows.
Cost of a call: O(its blocks); with states also O(num_blocks + tokens in memory), because each state is written whole
and checked. A state's `filled` counts computed tokens: slots that were given and not written yet are empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from labkit.event_log import Event
from reference_impl.memory.kv_memory import BlockCopies, Demand, Grant
from reference_impl.memory.kv_policy import Refusal

if TYPE_CHECKING:
    from reference_impl.memory.kv_manager import KVManager
    from reference_impl.memory.published_blocks import PublishedBlocks
    from reference_impl.memory.sequence import Sequence
    from reference_impl.memory.swap import HostPool

Part = tuple[str, str, int | None, list[int]]
"""Kind, sentence, request and blocks of an event."""


class EventLog:
    """The events of one `KVManager`, made with `log=` this one; `with_state` False keeps them small.

    keep: only the last so many events stay in `events`, for a run without end; None keeps all. num_events: how many
    there were in all.
    """

    def __init__(self, *, with_state: bool = True, keep: int | None = None) -> None:
        """Raises: ValueError if `keep` is below 1."""
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.events: list[Event] = []
        self.num_events = 0
        self._keep = keep
        self._with_state = with_state
        self._call = 0
        self._said: list[Part] = []
        self._heard: list[tuple[str, int]] = []
        self._tables: dict[int, list[int]] = {}
        self._waiting: list[int] = []
        self._lost: set[int] = set()

    def counts(self) -> Counter[str]:
        """How many events of each kind `events` has. Cost: O(events)."""
        return Counter(event["kind"] for event in self.events)

    def is_of(self, memory: object) -> bool:
        """Whether `memory` tells this log what it does."""
        return self._call > 0 and self._memory is memory

    # What a scheduler says.

    def waits(self, waiting: Iterable[int]) -> None:
        """Who waits to be admitted, first in line first."""
        self._waiting = list(waiting)

    def preempted(self, request: int, why: str) -> None:
        """`request` is about to lose its blocks; `why` ends the sentence, "request 4 needs a block"."""
        self._lost.add(request)
        self._say("preempt", f"Request {request} is preempted: {why}.", request)

    def finished(self, request: int, why: str) -> None:
        """`request` is about to be freed for good; `why` ends the sentence, "it has all its tokens"."""
        self._lost.discard(request)
        self._waits_no_more(request)
        self._say("finish", f"Request {request} ends: {why}.", request)

    def _say(self, kind: str, sentence: str, request: int) -> None:
        part: Part = (kind, sentence, request, [])
        if request in self._live or request in self._swapped:
            self._said.append(part)
        else:
            self._write(f"{kind}({request})", [part])

    def _waits_no_more(self, request: int) -> None:
        self._waiting = [other for other in self._waiting if other != request]

    # What the manager tells.

    def created(
        self,
        memory: KVManager,
        live: Mapping[int, Sequence],
        swapped: Mapping[int, Sequence],
        blocks: PublishedBlocks,
        host: HostPool,
    ) -> None:
        """The first event; what is given is looked at after every call, and never changed.

        Raises: ValueError if this is the log of a memory already.
        """
        if self._call:
            raise ValueError("this log is that of another memory: a log belongs to one")
        self._memory, self._live, self._swapped, self._blocks, self._host = memory, live, swapped, blocks, host
        told = f"KVManager({memory.num_blocks}, {memory.block_size})"
        sentence = f"A memory of {_blocks(memory.num_blocks)}, all free, with {memory.block_size} slots each."
        self._write(told, [("create", sentence, None, [])])

    def heard(self, kind: str, block: int) -> None:
        """A block is published or evicted, inside the call that is about to be told."""
        self._heard.append((kind, block))

    def admitted(self, demand: Demand, num_tokens: int, answer: Grant | Refusal) -> None:
        request, told = demand.request, f"admit({demand.request}, {num_tokens})"
        if isinstance(answer, Refusal):
            self._refused(told, request, f"Request {request} is not admitted", answer)
            return
        self._lost.discard(request)
        self._waits_no_more(request)
        found = f", {answer.num_reused} of them found again" if answer.num_reused else ""
        parts: list[Part] = [
            ("admit", f"Request {request} comes in with {demand.num_tokens} tokens{found}.", request, [])
        ]
        num_hits = answer.num_reused // self._memory.block_size
        self._write(told, parts + self._entered(request, num_hits))

    def grown(self, request: int, num_tokens: int, answer: Grant | Refusal) -> None:
        told = f"grow({request}, {num_tokens})"
        if isinstance(answer, Refusal):
            self._refused(told, request, f"Request {request} cannot grow to {num_tokens} tokens", answer)
            return
        before, table = self._tables[request], self._live[request].blocks
        parts = self._evictions()
        for src, dst in answer.copies:
            text = f"Request {request} is about to write into shared block {src}: it is copied to block {dst} first."
            parts.append(("copy", text, request, [src, dst]))
        if len(table) > len(before):
            parts.append(self._taken(request, table[len(before) :]))
        if parts:
            self._write(told, parts)

    def committed(self, request: int, before: int, num_tokens: int) -> None:
        parts: list[Part] = []
        if num_tokens > before:
            size, table = self._memory.block_size, self._live[request].blocks
            blocks = table[before // size : (num_tokens - 1) // size + 1]
            which = f"token {before}" if num_tokens == before + 1 else f"tokens {before} to {num_tokens - 1}"
            text = f"The KV of {which} is computed: request {request} has written {_named(blocks)}."
            parts.append(("write", text, request, blocks))
        published = [block for kind, block in self._heard if kind == "publish"]
        self._heard.clear()
        if published:
            text = f"What stands in {_named(published)} can be found by others from now on."
            parts.append(("publish", text, request, published))
        if parts:
            self._write(f"commit({request}, {num_tokens})", parts)

    def freed(self, request: int) -> None:
        if request not in self._tables:
            sentence = f"Request {request} gives back its blocks on the host."
            self._write(f"free({request})", [("free", sentence, request, [])])
            return
        self._write(f"free({request})", [self._given_back(request, self._tables[request])])

    def forked(self, parent: int, demand: Demand, refusal: Refusal | None) -> None:
        child, told = demand.request, f"fork({parent}, {demand.request})"
        if refusal is not None:
            self._refused(told, child, f"Request {child} does not begin", refusal)
            return
        shared = list(self._live[child].blocks)
        self._write(told, [("share", f"Request {child} shares {_named(shared)} with request {parent}.", child, shared)])

    def truncated(self, request: int, num_tokens: int) -> None:
        fallen = self._tables[request][len(self._live[request].blocks) :]
        if not fallen:
            return
        text = f"Request {request} keeps {num_tokens} slots and gives back {_named(fallen)}."
        self._write(f"truncate({request}, {num_tokens})", [("free", text, request, fallen)])

    def swapped_out(self, request: int, answer: BlockCopies | Refusal) -> None:
        told = f"swap_out({request})"
        if isinstance(answer, Refusal):
            self._refused(told, request, f"Request {request} is not swapped out", answer)
            return
        device, host = [src for src, _ in answer], [dst for _, dst in answer]
        text = f"Request {request} goes to the host: {_named(device)} to {_named(host)} there."
        self._write(told, [("swap_out", text, request, device), self._given_back(request, device)])

    def swapped_in(self, request: int, answer: BlockCopies | Refusal) -> None:
        told = f"swap_in({request})"
        if isinstance(answer, Refusal):
            self._refused(told, request, f"Request {request} stays on the host", answer)
            return
        self._lost.discard(request)
        parts = self._entered(request, len(self._live[request].blocks) - len(answer))
        device, host = [dst for _, dst in answer], [src for src, _ in answer]
        text = f"Request {request} comes back: {_named(host)} of the host to {_named(device)} here."
        self._write(told, [*parts, ("swap_in", text, request, device)])

    # How it is written.

    def _refused(self, told: str, request: int, sentence: str, refusal: Refusal) -> None:
        why = f"{refusal.reason.value} ({refusal.needed} tokens of memory needed, {refusal.free} free)"
        self._write(told, [("refused", f"{sentence}: {why}.", request, [])])

    def _entered(self, request: int, num_hits: int) -> list[Part]:
        table = self._live[request].blocks
        parts: list[Part] = []
        if num_hits:
            text = f"Request {request} shares {_named(table[:num_hits])}, where its beginning stands."
            parts.append(("share", text, request, table[:num_hits]))
        parts += self._evictions()
        if len(table) > num_hits:
            parts.append(self._taken(request, table[num_hits:]))
        return parts

    def _evictions(self) -> list[Part]:
        evicted = [block for kind, block in self._heard if kind == "evict"]
        self._heard.clear()
        if not evicted:
            return []
        return [("evict", f"What stands in {_named(evicted)} is forgotten: the room is needed.", None, evicted)]

    def _taken(self, request: int, blocks: list[int]) -> Part:
        return ("allocate", f"Request {request} takes {_named(blocks)}.", request, blocks)

    def _given_back(self, request: int, blocks: list[int]) -> Part:
        pool = self._blocks.pool
        gone = [block for block in blocks if pool.ref_count(block) == self._blocks.is_published(block)]
        found = [block for block in gone if self._blocks.is_published(block)]
        kept = f"; {_blocks(len(blocks) - len(gone))} still held by others" if len(gone) < len(blocks) else ""
        still = f"; what stands in {_named(found)} can still be found" if found else ""
        return ("free", f"Request {request} gives back {_named(gone)}{kept}{still}.", request, gone)

    def _write(self, told: str, parts: list[Part]) -> None:
        for kind, sentence, request, blocks in self._said + parts:
            self.events.append(
                {
                    "call": self._call,
                    "told": told,
                    "kind": kind,
                    "sentence": sentence,
                    "seq": request,
                    "blocks": list(blocks),
                }
            )
        self.num_events += len(self._said) + len(parts)
        self._said.clear()
        self._call += 1
        self._remember(parts[-1][2])
        if self._with_state:
            self.events[-1] |= {"state": self.state(), "fault": self._fault()}
        if self._keep is not None:
            del self.events[: -self._keep]

    def _remember(self, request: int | None) -> None:
        """Keep the table of the request that a call was about, to see what the next call makes of it."""
        if request is None:
            return
        if request in self._live:
            self._tables[request] = list(self._live[request].blocks)
        else:
            self._tables.pop(request, None)

    def _fault(self) -> str:
        try:
            self._memory.check_invariants()
        except AssertionError as error:
            return str(error)
        return ""

    def state(self) -> dict[str, Any]:
        """The state now, as `labkit.event_log` has it, for who looks less often than after every call.

        For a log of a memory. Cost: O(num_blocks + blocks and waiting requests).
        """
        size, published = self._memory.block_size, self._blocks.published()
        ref_counts, filled = [0] * self._memory.num_blocks, [0] * self._memory.num_blocks
        for block in published:
            filled[block] = size
        for sequence in self._live.values():
            for place, block in enumerate(sequence.blocks):
                ref_counts[block] += 1
                filled[block] = max(filled[block], min(size, max(0, sequence.committed - place * size)))
        return {
            "num_blocks": self._memory.num_blocks,
            "block_size": size,
            "num_free": self._blocks.num_free,
            "tables": {str(request): list(sequence.blocks) for request, sequence in self._live.items()},
            "tokens": {str(request): sequence.num_tokens for request, sequence in self._live.items()},
            "ref_counts": ref_counts,
            "filled": filled,
            "published": published,
            "num_idle": self._blocks.num_idle,
            "waiting": list(self._waiting),
            "preempted": [request for request in self._waiting if request in self._lost],
            "host": {str(request): list(self._host.blocks(request)) for request in self._swapped},
            "num_host_blocks": self._host.num_blocks,
        }


def _blocks(number: int) -> str:
    return f"{number} block" if number == 1 else f"{number} blocks"


def _named(blocks: list[int]) -> str:
    if not blocks:
        return "no block"
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    return f"blocks {', '.join(map(str, blocks[:-1]))} and {blocks[-1]}"
