"""Evidence for "The paradox of free memory": an hour of first fit, a story in 20 places, seven causes, the adversary.

Owns: which numbers the chapter may show of the engine. Knows nothing of how they are shown.
Every refusal is one that the engine gave. The seven causes share one memory of 512 tokens and one newcomer of 96, so
that what differs is the cause alone; what a monitor says of each is computed from the same memory.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from typing import Any

from labkit.contracts import OutOfBlocks, OutOfMemory
from labkit.event_log import Event
from labkit.workloads import workload
from reference_impl.memory import BlockAllocator, BuddyAllocator, EventLog, KVManager, Refusal, Sizes
from reference_impl.memory.contiguous import (
    ContiguousAllocator,
    attack,
    external_fragmentation,
    kv_bytes_per_token,
    units_moved,
)
from reference_impl.memory.kv_memory import Demand
from reference_impl.memory.paradox import arrivals
from reference_impl.memory.policies import POLICIES
from reference_impl.sched import ContinuousBatching, Limits, Request

# OPT-13B with 12 GiB for KV, as in `reference_impl.memory.paradox`; its sizes: Zhang et al., 2022, table 1.
CAPACITY, LOAD, REQUESTS = 15_728, 0.6, 4_000
KV_BYTES = kv_bytes_per_token(num_layers=40, num_kv_heads=40, head_dim=128, dtype_bytes=2)
PLACES = 20
TOKENS, BLOCK, NEWCOMER = 512, 16, 96
ATTACKED, ATTACK_SIZES = 4_096, (2, 4, 16, 64, 256)


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    return {"run": run(), "story": story(), "causes": causes(), "adversary": adversary()}


def run() -> dict[str, Any]:
    """First fit on the Azure conversation workload: how often it refused, and moments of it that are worth a look."""
    source = workload("azure_conv")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    rows = [(p, new) for p, new in pairs if new >= 1 and p + new <= CAPACITY][:REQUESTS]
    seen = replay(rows, ContiguousAllocator(CAPACITY))
    stuck = [moment for moment in seen if _is_stuck(moment)]
    plenty = [moment for moment in stuck if 2 * moment["free"] > CAPACITY]
    admitted = [moment for moment in seen if moment["admitted"]]
    # The most free memory in which less was refused than elsewhere was admitted in the least.
    opening = max(_longer(plenty, admitted), key=lambda pair: pair[0]["free"] - pair[1]["free"])
    # The metric is low and first fit refuses; it is high and as much or more is admitted.
    blind = max(_longer(stuck, admitted), key=lambda pair: pair[1]["metric"] - pair[0]["metric"])
    kinds = {
        "first": seen,
        "best": replay(rows, ContiguousAllocator(CAPACITY, "best")),
        "buddy": replay(rows, BuddyAllocator(CAPACITY)),
        "blocks": replay(rows, BlockAllocator(CAPACITY // BLOCK, BLOCK)),
    }
    return {
        "capacity": CAPACITY,
        "kv_bytes": KV_BYTES,
        "load": LOAD,
        "arrivals": len(seen),
        "plenty": len(plenty),
        "opening": opening,
        "blind": blind,
        "moved": moved(opening[0]["holes"]),
        "kinds": {
            name: {"refused": sum(not moment["admitted"] for moment in met), "stuck": sum(map(_is_stuck, met))}
            for name, met in kinds.items()
        },
        "source": source.description,
    }


def replay(
    rows: list[tuple[int, int]], memory: ContiguousAllocator | BuddyAllocator | BlockAllocator
) -> list[dict[str, Any]]:
    """What each request of `rows` met on its arrival; whoever is refused goes away. Cost: O(requests * holes)."""
    ends: list[tuple[int, int]] = []
    seen = []
    for request, (step, prompt, output) in enumerate(arrivals(rows, CAPACITY, LOAD, seed=0)):
        while ends and ends[0][0] <= step:
            memory.free(heapq.heappop(ends)[1])
        moment = {"request": request, "wanted": prompt + output, **_free(memory)}
        try:
            memory.allocate(request, prompt + output)
        except (OutOfMemory, OutOfBlocks):
            moment["admitted"] = False
        else:
            moment["admitted"] = True
            heapq.heappush(ends, (step + output, request))
        seen.append(moment)
    return seen


def moved(holes: list[tuple[int, int]]) -> int:
    """Tokens that change their place if a memory with these holes is compacted, whoever holds what lies between."""
    memory = ContiguousAllocator(CAPACITY)
    end = 0
    for hole, (start, size) in enumerate([*holes, (CAPACITY, 0)]):
        if start > end:
            memory.allocate(2 * hole, start - end)
        if size:
            memory.allocate(2 * hole + 1, size)
        end = start + size
    for hole in range(len(holes)):
        memory.free(2 * hole + 1)
    assert memory.holes() == holes
    return units_moved(memory.compact())


def _free(memory: ContiguousAllocator | BuddyAllocator | BlockAllocator) -> dict[str, Any]:
    if isinstance(memory, BlockAllocator):
        return {"free": memory.num_free_blocks * BLOCK}
    holes = memory.holes()
    sizes = [size for _, size in holes]
    return {
        "free": sum(sizes),
        "largest": max(sizes, default=0),
        "metric": external_fragmentation(holes),
        "holes": holes,
    }


def _is_stuck(moment: dict[str, Any]) -> bool:
    return not moment["admitted"] and moment["wanted"] <= moment["free"]


def _longer(
    refused: list[dict[str, Any]], admitted: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every refusal beside every admission of as many tokens or more."""
    return ((no, yes) for no in refused for yes in admitted if yes["wanted"] >= no["wanted"])


def story() -> dict[str, Any]:
    """Requests come to 20 places by first fit, some go, one is refused; a neighbour goes, and it is admitted."""
    memory = ContiguousAllocator(PLACES)
    events = [_event(memory, 0, f"first_fit({PLACES})", "create", f"{PLACES} places, all free.", None, [], {})]
    live: dict[int, int] = {}

    def come(owner: int, size: int) -> None:
        told = f"allocate({owner}, {size})"
        try:
            start = memory.allocate(owner, size)
        except OutOfMemory:
            sizes = [length for _, length in memory.holes()]
            said = (
                f"Request {owner} wants {size} places in a row and is refused: {sum(sizes)} are free, "
                f"but the largest of {len(sizes)} holes has {max(sizes)}."
            )
            events.append(_event(memory, len(events), told, "refused", said, owner, [], live))
            return
        live[owner] = size
        said = f"Request {owner} gets the lowest hole that is long enough: places {start} to {start + size - 1}."
        blocks = list(range(start, start + size))
        events.append(_event(memory, len(events), told, "allocate", said, owner, blocks, live))

    def go(owner: int) -> None:
        start, size = memory.range_of(owner)
        memory.free(owner)
        del live[owner]
        said = f"Request {owner} is done and gives back its {size} places."
        events.append(
            _event(memory, len(events), f"free({owner})", "free", said, owner, list(range(start, start + size)), live)
        )

    for owner, size in enumerate((4, 3, 4, 2, 4, 3)):
        come(owner, size)
    for owner in (0, 2, 4):
        go(owner)
    come(6, 5)
    come(7, 3)
    go(3)
    come(6, 5)
    memory.check_invariants()
    return {"events": events, "places": PLACES}


def _event(
    memory: ContiguousAllocator,
    call: int,
    told: str,
    kind: str,
    sentence: str,
    owner: int | None,
    blocks: list[int],
    live: dict[int, int],
) -> Event:
    """One call of the log; a place is a block of one slot, and a range a table of neighbours."""
    tables = {str(who): list(range(start, start + size)) for who in live for start, size in [memory.range_of(who)]}
    held = {place for table in tables.values() for place in table}
    state = {
        "num_blocks": PLACES,
        "block_size": 1,
        "num_free": PLACES - len(held),
        "tables": tables,
        "tokens": {str(who): size for who, size in live.items()},
        "ref_counts": [int(place in held) for place in range(PLACES)],
        "filled": [int(place in held) for place in range(PLACES)],
    }
    return {
        "call": call, "told": told, "kind": kind, "sentence": sentence, "seq": owner, "blocks": blocks, "state": state
    }  # fmt: skip


def causes() -> dict[str, Any]:
    """One memory, one newcomer, seven reasons why free memory is of no use to it."""
    return {
        "tokens": TOKENS,
        "newcomer": NEWCOMER,
        "block_size": BLOCK,
        "fragmented": _fragmented(),
        "reserved": _kept("first", prompt=16, output=112),
        "rounded": _kept("buddy", prompt=16, output=49),
        "leaked": _leaked(),
        "watermark": _watermark(),
        "cached": _cached(),
        "policy": _policy(),
    }


def _fragmented() -> dict[str, Any]:
    policy = POLICIES["oracle"](Sizes(TOKENS, TOKENS, placement="first"))
    for request in range(8):
        assert policy.admit(request, 63, 1, 1) is None
    for request in range(0, 8, 2):
        policy.finish(request)
    return {**_refusal(policy.admit(8, NEWCOMER - 1, 1, 1)), "held": policy.account().held}


def _kept(placement: Any, prompt: int, output: int) -> dict[str, Any]:
    """Requests that are given more than they hold: for tokens to come (first fit) or for nothing (buddies)."""
    policy = POLICIES["oracle"](Sizes(TOKENS, TOKENS, placement=placement))
    running = 0
    while policy.admit(running, prompt, output, output) is None:
        running += 1
    account = policy.account()
    return {
        **_refusal(policy.admit(running, NEWCOMER - 1, 1, 1)),
        "running": running,
        "held": account.held,
        "reserved": account.reserved,
        "internal": account.internal,
        "given": TOKENS // running,
        "at_end": prompt + output,
    }


def _leaked() -> dict[str, Any]:
    """Five requests; four are aborted by their clients, and three of those are never given back."""
    blocks = BlockAllocator(TOKENS // BLOCK, BLOCK)
    for request in range(5):
        blocks.allocate(request, NEWCOMER)
    blocks.free(0)
    free_busy = blocks.num_free_blocks * BLOCK
    blocks.free(4)
    return {
        "held": NEWCOMER,
        "free": free_busy,
        "idle_free": blocks.num_free_blocks * BLOCK,
        "missing": TOKENS - blocks.num_free_blocks * BLOCK,
    }


def _watermark() -> dict[str, Any]:
    manager = KVManager(TOKENS // BLOCK, BLOCK, watermark=0.25)
    for request in range(20):
        assert not isinstance(manager.admit(_demand(request, BLOCK), BLOCK), Refusal)
    refused = _refusal(manager.admit(_demand(20, NEWCOMER), NEWCOMER))
    gone = 0
    while isinstance(manager.admit(_demand(20, NEWCOMER), NEWCOMER), Refusal):
        manager.free(gone)
        gone += 1
    manager.check_invariants()
    return {
        **refused,
        "held": 20 * BLOCK,
        "kept": manager.num_watermark_blocks * BLOCK,
        "admitted_at": manager.num_free_blocks * BLOCK + NEWCOMER,
    }


def _cached() -> dict[str, Any]:
    """Ten requests were served and are gone; their contents stay until somebody needs the room."""
    log = EventLog()
    manager = KVManager(TOKENS // BLOCK, BLOCK, prefix_cache="hash", log=log)
    for request in range(10):
        demand = _demand(request, 3 * BLOCK)
        manager.admit(demand, demand.num_tokens)
        manager.commit(request, demand.num_tokens)
        manager.free(request)
    state = log.events[-1]["state"]
    answer = manager.admit(_demand(10, NEWCOMER), NEWCOMER)
    assert not isinstance(answer, Refusal)
    return {
        "blank": (state["num_free"] - state["num_idle"]) * BLOCK,
        "free": state["num_free"] * BLOCK,
        "evicted": manager.num_evicted * BLOCK,
    }


def _policy() -> dict[str, Any]:
    log = EventLog()
    manager = KVManager(TOKENS // BLOCK, BLOCK, log=log)
    scheduler = ContinuousBatching(manager, Limits(max_running=2), log=log)
    for request in range(3):
        scheduler.add(Request(request, NEWCOMER, 8))
    scheduler.schedule()
    return {
        "running": scheduler.num_running,
        "waiting": scheduler.num_waiting,
        "free": manager.num_free_blocks * BLOCK,
        "refusals": log.counts()["refused"],
        "max_running": scheduler.limits.max_running,
    }


def _refusal(answer: object) -> dict[str, Any]:
    assert isinstance(answer, Refusal), f"the cause must refuse the newcomer, it answered {answer}"
    return {"reason": answer.reason.value, "needed": answer.needed, "free": answer.free, "largest": answer.largest}


def _demand(request: int, tokens: int) -> Demand:
    """A prompt that no other request begins with."""
    return Demand(request, tokens, 1, token_ids=array("i", range(1000 * request, 1000 * request + tokens)))


def adversary() -> dict[str, Any]:
    """The comb: holes of s - 1 between walls of 1, and then s is asked for. Beside it, how short a program can be."""
    rows = [comb(ATTACKED, size) for size in ATTACK_SIZES]
    return {"capacity": ATTACKED, "rows": rows}


def comb(capacity: int, size: int) -> dict[str, Any]:
    """Play the comb on first fit, on best fit and on blocks of one unit; the first two must refuse."""
    program: list[tuple[int, int]] = []
    for tooth in range(capacity // size):
        program += [(2 * tooth, size - 1), (2 * tooth + 1, 1)]
    ranges = [ContiguousAllocator(capacity, fit) for fit in ("first", "best")]
    blocks = BlockAllocator(capacity, 1)
    memories = [*ranges, blocks]
    for owner, length in program:
        for memory in memories:
            memory.allocate(owner, length)
    for owner in range(0, len(program), 2):
        for memory in memories:
            memory.free(owner)
    newcomer = len(program)
    for memory in ranges:
        try:
            memory.allocate(newcomer, size)
        except OutOfMemory:
            continue
        raise AssertionError(f"the comb of {size} does not stop {memory.fit} fit")
    free = blocks.num_free_blocks
    blocks.allocate(newcomer, size)
    return {
        "size": size,
        "free": free,
        "calls": len(program) + len(program) // 2 + 1,
        "shortest": len(attack(capacity, size)),
    }
