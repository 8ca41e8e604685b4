"""Evidence for "Contiguous worlds": what rules of reservation waste, what growing copies, where searches end.

Owns: which numbers the chapter may show of the engine. Knows nothing of how they are shown.
One memory, the 16 GiB of keys and values of "Paging", and one workload serve every count. Next fit and worst fit are
the engine's allocator with another choice of hole; the rest is the engine's own. What time a copy takes at the least is
computed from the copy ceiling of the kept record of the kernels.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from labkit.contracts import OutOfMemory
from labkit.event_log import Event
from labkit.workloads import workload
from reference_impl import bench
from reference_impl.memory import Account, BuddyAllocator, ContiguousAllocator, KVPolicy, Refusal, Sizes
from reference_impl.memory.contiguous import kv_bytes_per_token
from reference_impl.memory.occupancy import occupancy
from reference_impl.memory.paradox import arrivals
from reference_impl.memory.policies import ReservedRanges

BUDGET = Sizes(capacity=131_072, max_length=8_192, placement="first")
# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit cache.
KV_BYTES = kv_bytes_per_token(num_layers=32, num_kv_heads=8, head_dim=128, dtype_bytes=2)
REQUESTS, WARM_UP_STEPS = 2_000, 500
ANSWER_LIMIT = 1_000
LOAD, ARRIVALS = 0.8, 8_000
PLACES, BUDDY_PLACES = 22, 16
Search = Literal["first", "best", "next", "worst"]
SEARCHES: tuple[Search, ...] = ("first", "best", "next", "worst")
Memory = ContiguousAllocator | BuddyAllocator
KERNELS = Path(bench.__file__).parent / "results" / "kernels.json"


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    source = workload("azure_conv")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    queue = [(p, new) for p, new in pairs if new >= 1 and p + new <= BUDGET.max_length]
    return {
        "capacity": BUDGET.capacity,
        "max_tokens": BUDGET.max_length,
        "answer_limit": ANSWER_LIMIT,
        "kv_bytes": KV_BYTES,
        "source": source.description,
        "rules": rules(queue[:REQUESTS]),
        "story": story(),
        "buddies": buddies(),
        "searches": searches(queue[:ARRIVALS]),
        "ceiling": ceiling(),
    }


def ceiling() -> dict[str, Any]:
    """The fastest copy and the fastest read that were measured, and on what."""
    record = json.loads(KERNELS.read_text(encoding="utf-8"))
    return {**record["ceilings"], "device": record["machine"]["gpu"], "date": record["date"]}


def rules(queue: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Where the memory goes when one range a request is as long as each rule says, all ranges found by first fit."""
    rows = []
    for name in ("reserve_max", "pow2", "oracle", "grow"):
        met = occupancy(name, replace(BUDGET, placement="first"), queue, warm_up=WARM_UP_STEPS)
        rows.append(_row(name, met.total, met.mean_running, met.copied_tokens, met.preemptions))
    capped = ReservedRanges(BUDGET.capacity, lambda live, longest: live.limit)
    total, running = keep(capped, [row for row in queue if row[1] <= ANSWER_LIMIT])
    rows.insert(1, _row("limit", total, running, 0, 0))
    made = sum(new for _, new in queue)
    return [{**row, "copied_per_token": row["copied"] / made} for row in rows]


def keep(policy: KVPolicy, queue: Iterable[tuple[int, int]]) -> tuple[Account, float]:
    """The sum of accounts and the mean of requests at once, as `occupancy` counts them, where nobody can be preempted.

    Each request may answer with `ANSWER_LIMIT` tokens: what a caller states, and a server can know.
    """
    waiting = deque(enumerate(queue))
    left: dict[int, int] = {}
    total, steps, running = Account(), 0, 0
    while True:
        refusal = None
        while waiting and refusal is None:
            request, (prompt, new) = waiting[0]
            refusal = policy.admit(request, prompt, ANSWER_LIMIT, new)
            if refusal is None:
                left[request] = new
                policy.commit(request, prompt)
                waiting.popleft()
        if refusal is None:
            return total, running / (steps - WARM_UP_STEPS)
        if steps >= WARM_UP_STEPS:
            total += policy.account(refusal.needed)
            running += len(left)
        steps += 1
        for request in list(left):
            assert not isinstance(policy.append(request), Refusal), "a range that was reserved is long enough"
            left[request] -= 1
            if not left[request]:
                policy.finish(request)
                del left[request]


def _row(name: str, total: Account, running: float, copied: int, preemptions: int) -> dict[str, Any]:
    shares = total.shares()
    assert not total.free, "whoever waits was refused, so no hole is long enough for it"
    return {
        "rule": name,
        "held": shares["held"],
        "reserved": shares["reserved"],
        "internal": shares["internal"],
        "external": shares["external"],
        "running": running,
        "copied": copied,
        "preemptions": preemptions,
    }


class Searching(ContiguousAllocator):
    """The engine's ranges with four ways to choose a hole; `looked` counts the holes that were looked at."""

    def __init__(self, capacity: int, search: Search) -> None:
        super().__init__(capacity, "best" if search == "best" else "first")
        self.search = search
        self.looked = self.searched = 0
        self._after = 0

    def _choose(self, size: int) -> int | None:
        holes = self.holes()
        order = list(range(len(holes)))
        if self.search == "next":
            # From where the last search ended, once around.
            order.sort(key=lambda hole: holes[hole][0] < self._after)
        fitting = [hole for hole in order if holes[hole][1] >= size]
        self.searched += 1
        if not fitting or self.search in ("best", "worst"):
            self.looked += len(order)
        else:
            self.looked += order.index(fitting[0]) + 1
        if not fitting:
            return None
        sizes = {"best": min, "worst": max}.get(self.search)
        chosen = sizes(fitting, key=lambda hole: holes[hole][1]) if sizes else fitting[0]
        self._after = holes[chosen][0] + size
        return chosen


def searches(rows: list[tuple[int, int]]) -> dict[str, Any]:
    """The same arrivals under each search and under buddies, and with first fit that compacts when it is stuck."""
    kinds: dict[str, Any] = {}
    for search in SEARCHES:
        memory = Searching(BUDGET.capacity, search)
        kinds[search] = {**replay(rows, memory), "looked": memory.looked / memory.searched}
    kinds["buddy"] = replay(rows, BuddyAllocator(BUDGET.capacity))
    compacted = replay(rows, Searching(BUDGET.capacity, "first"), compacts=True)
    return {"load": LOAD, "arrivals": len(rows), "kinds": kinds, "compacted": compacted}


def replay(rows: list[tuple[int, int]], memory: Memory, compacts: bool = False) -> dict[str, Any]:
    """Each request takes its true length on arrival and goes away if that is refused. Cost: O(requests * holes).

    `stuck` of the refusals met enough free memory. With `compacts`, all ranges are moved together instead, and the
    request is admitted; `moved` has the tokens that each time had to be copied, `written` all that were there. A token
    that has not been made yet has a slot and needs no copy: one is made in each step after the prompt.
    """
    ends: list[tuple[int, int]] = []
    begun: dict[int, tuple[int, int]] = {}
    refused = stuck = step = 0
    moved, written = [], []
    for request, (step, prompt, output) in enumerate(arrivals(rows, BUDGET.capacity, LOAD, seed=0)):
        while ends and ends[0][0] <= step:
            _, done = heapq.heappop(ends)
            memory.free(done)
            del begun[done]
        wanted = prompt + output
        try:
            memory.allocate(request, wanted)
        except OutOfMemory:
            is_stuck = wanted <= sum(size for _, size in memory.holes())
            if not (is_stuck and compacts and isinstance(memory, ContiguousAllocator)):
                refused, stuck = refused + 1, stuck + is_stuck
                continue
            there = {owner: tokens + step - since for owner, (since, tokens) in begun.items()}
            moved.append(sum(there[move.owner] for move in memory.compact()))
            written.append(sum(there.values()))
            memory.allocate(request, wanted)
        begun[request] = (step, prompt)
        heapq.heappush(ends, (step + output, request))
    memory.check_invariants()
    return {"refused": refused, "stuck": stuck, "steps": step, "moved": moved, "written": written}


Part = tuple[str, str, int | None, list[int]]
"""Kind, sentence, request and places of an event."""


class _Story:
    """A small memory and its log: a place is a block of one slot, a range a table of neighbours.

    A range that moves exists twice for a moment, so ranges have numbers of their own.
    """

    def __init__(self, memory: Memory, told: str) -> None:
        self.memory = memory
        self.events: list[Event] = []
        self._written: dict[int, int] = {}
        self._ranges: dict[int, int] = {}
        self._num_ranges = 0
        self._call = 0
        self._tell(told, [("create", f"{memory.capacity} places, all free.", None, [])])

    def come(self, owner: int, size: int) -> None:
        """`owner` wants a range for `size` tokens."""
        told = f"allocate({owner}, {size})"
        try:
            self._take(owner, size)
        except OutOfMemory as refusal:
            needed, largest, free = refusal.args
            rounded = f", which is a range of {needed}," if needed != size else ""
            sentence = (
                f"Request {owner} wants {size} places{rounded} and is refused: {free} are free, but the largest range "
                f"to be had has {largest}."
            )
            self._tell(told, [("refused", sentence, owner, [])])
            return
        self._written[owner] = size
        given = self._places(owner)
        empty = f" The last {len(given) - size} of them stay empty." if len(given) > size else ""
        sentence = f"Request {owner} has {size} tokens. It gets {_named(given)}.{empty}"
        self._tell(told, [("allocate", sentence, owner, given), ("write", "They are written.", owner, given[:size])])

    def go(self, owner: int, also: str = "") -> None:
        """`owner` is done."""
        given = self._places(owner)
        self.memory.free(self._ranges.pop(owner))
        del self._written[owner]
        sentence = f"Request {owner} is done and gives back {_named(given)}.{also}"
        self._tell(f"free({owner})", [("free", sentence, owner, given)])

    def grow(self, owner: int) -> None:
        """One more token for a full range: twice as long in place if there is room, else another range."""
        assert isinstance(self.memory, ContiguousAllocator), "buddies do not grow in place"
        old = self._places(owner)
        assert len(old) == self._written[owner], "a range with room has no need to grow"
        if self.memory.extend(self._ranges[owner], len(old)):
            said = f"The range of request {owner} is full. There is room behind it: it becomes twice as long, in place."
            parts: list[Part] = [("allocate", said, owner, self._places(owner)[len(old) :])]
        else:
            parts = self._move(owner, old)
        self._written[owner] += 1
        parts.append(("write", "The new token is written.", owner, [self._places(owner)[len(old)]]))
        self._tell(f"grow({owner})", parts)

    def _move(self, owner: int, old: list[int]) -> list[Part]:
        before = self._ranges[owner]
        self._take(owner, 2 * len(old))
        self.memory.free(before)
        new = self._places(owner)
        said = f"The range of request {owner} is full, and the place behind it is held. It gets {_named(new)}, twice as"
        return [
            ("allocate", f"{said} many.", owner, new),
            ("write", f"Its {len(old)} tokens are copied.", owner, new[: len(old)]),
            ("free", f"Only then can it give back {_named(old)}.", owner, old),
        ]

    def compact(self) -> None:
        """All ranges move down until one hole is left."""
        assert isinstance(self.memory, ContiguousAllocator)
        owners = {number: owner for owner, number in self._ranges.items()}
        before = self._held()
        parts: list[Part] = []
        for move in self.memory.compact():
            owner = owners[move.owner]
            old, new = range(move.source, move.source + move.size), self._places(owner)
            parts.append(("allocate", f"Request {owner} moves from {_named(list(old))} to {_named(new)}.", owner, new))
            written = new[: self._written[owner]]
            parts.append(("write", f"Its {len(written)} tokens are copied.", owner, written))
        parts.append(("free", "All that is free is one hole.", None, sorted(before - self._held())))
        self._tell("compact()", parts)

    def _take(self, owner: int, size: int) -> None:
        self.memory.allocate(self._num_ranges, size)
        self._ranges[owner] = self._num_ranges
        self._num_ranges += 1

    def _places(self, owner: int) -> list[int]:
        start, size = self.memory.range_of(self._ranges[owner])
        return list(range(start, start + size))

    def _held(self) -> set[int]:
        return {place for owner in self._ranges for place in self._places(owner)}

    def _tell(self, told: str, parts: list[Part]) -> None:
        for kind, sentence, owner, places in parts:
            self.events.append(
                {"call": self._call, "told": told, "kind": kind, "sentence": sentence, "seq": owner, "blocks": places}
            )
        self.memory.check_invariants()
        self.events[-1]["state"] = self._state()
        self._call += 1

    def _state(self) -> dict[str, Any]:
        tables = {owner: self._places(owner) for owner in sorted(self._ranges)}
        held = self._held()
        written = {place for owner, table in tables.items() for place in table[: self._written[owner]]}
        places = range(self.memory.capacity)
        return {
            "num_blocks": self.memory.capacity,
            "block_size": 1,
            "num_free": self.memory.capacity - len(held),
            "tables": {str(owner): table for owner, table in tables.items()},
            "tokens": {str(owner): self._written[owner] for owner in tables},
            "ref_counts": [int(place in held) for place in places],
            "filled": [int(place in written) for place in places],
        }


def _named(places: list[int]) -> str:
    return f"place {places[0]}" if len(places) == 1 else f"places {places[0]} to {places[-1]}"


def story() -> dict[str, Any]:
    """Ranges grow in place, move, leave holes; one request is refused; compaction lets it in."""
    told = _Story(ContiguousAllocator(PLACES), f"first_fit({PLACES})")
    for owner, size in enumerate((4, 3, 4)):
        told.come(owner, size)
    told.grow(2)
    told.grow(1)
    told.go(0)
    told.come(3, 8)
    told.compact()
    told.come(3, 8)
    return {"events": told.events, "places": PLACES}


def buddies() -> dict[str, Any]:
    """Two neighbours leave and eight places in a row are free; they are no buddies, and five are refused."""
    told = _Story(BuddyAllocator(BUDDY_PLACES), f"buddies({BUDDY_PLACES})")
    for owner, size in enumerate((3, 4, 4, 2)):
        told.come(owner, size)
    told.go(1, also=" Their buddy, places 0 to 3, is held.")
    told.go(2, also=" Their buddy, places 12 to 15, is not free as a whole.")
    told.come(4, 5)
    told.go(0, also=" Their buddy is free: the two become one range of 8.")
    told.come(4, 5)
    return {"events": told.events, "places": BUDDY_PLACES}
