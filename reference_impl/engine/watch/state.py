"""What a state of the event log says of every block and every request, before anybody draws it.

Owns: the kinds of blocks, the folding of a large pool into cells, the rows of requests, and the tally of what happened
so far. Knows nothing of terminals (`view.py`), nor of the engine: it reads `labkit.event_log` and nothing else.
A state may be wrong, and is shown as it is: what names no block of the pool is left out, and nothing is repaired.
Cost: O(num_blocks + blocks in tables) a state, O(1) an event.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any, NamedTuple

from labkit.event_log import Event

State = dict[str, Any]
EIGHTHS = 8


class Kind(Enum):
    """What a block is, or what a cell of several blocks is."""

    FREE = "free"
    """Nobody holds it, and nothing in it could be found."""
    IDLE = "idle"
    """Nobody holds it, and its content would be found again."""
    HELD = "held"
    """One request holds it; of a cell, holds all of it that is held."""
    SHARED = "shared"
    """Several requests hold it; of a cell of several blocks, hold parts of it."""
    LOST = "lost"
    """No table has it, and it is counted as held: a leak, if the state is right otherwise."""


class Block(NamedTuple):
    """One block. holder: the request that alone holds it. filled: slots written, 0 to the block size."""

    kind: Kind
    holder: str | None
    num_holders: int
    filled: int


class Cell(NamedTuple):
    """One block, or `num_blocks` neighbours from block `first` on.

    eighths: of one block the share of its slots that is written; of several the share of the blocks that is held, or
    published where none is. 0 is none at all and 8 is all of it.
    """

    first: int
    num_blocks: int
    kind: Kind
    holder: str | None
    num_holders: int
    eighths: int


class Row(NamedTuple):
    """One request that has blocks. num_shared: of its blocks, those that others hold too."""

    request: str
    num_tokens: int
    num_blocks: int
    num_shared: int
    on_host: bool


@dataclass(frozen=True)
class Counts:
    """All blocks by kind, and slots of those that are held: a block that several hold counts once."""

    free: int
    idle: int
    held: int
    shared: int
    lost: int
    partly: int
    """Held by one or several, and not full."""
    written_slots: int
    """In blocks that are held."""
    held_slots: int
    all_slots: int


def blocks_of(state: State) -> list[Block]:
    """Every block of the pool, in order."""
    num_blocks, size = state["num_blocks"], state["block_size"]
    holders: list[str | None] = [None] * num_blocks
    number = [0] * num_blocks
    for request, table in state["tables"].items():
        for block in set(table):
            if 0 <= block < num_blocks:
                number[block] += 1
                holders[block] = request
    published = set(state.get("published", ()))
    found = []
    for block, (count, filled) in enumerate(zip(number, state["filled"], strict=True)):
        filled = min(max(filled, 0), size)
        if count:
            kind = Kind.HELD if count == 1 else Kind.SHARED
        elif state["ref_counts"][block] > 0:
            kind = Kind.LOST
        else:
            kind = Kind.IDLE if block in published else Kind.FREE
        found.append(Block(kind, holders[block] if count == 1 else None, count, filled))
    return found


def cells_of(blocks: Sequence[Block], block_size: int, most: int) -> list[Cell]:
    """At most `most` cells (1 or more) with every block in exactly one, all of one size but for the last."""
    step = -(-len(blocks) // most)
    if step == 1:
        return [
            Cell(first, 1, block.kind, block.holder, block.num_holders, _eighths(block.filled, block_size))
            for first, block in enumerate(blocks)
        ]
    return [_folded(first, blocks[first : first + step]) for first in range(0, len(blocks), step)]


def _folded(first: int, blocks: Sequence[Block]) -> Cell:
    kinds = [block.kind for block in blocks]
    held = len(blocks) - kinds.count(Kind.FREE) - kinds.count(Kind.IDLE)
    holders = {block.holder for block in blocks if block.num_holders}
    most = max(block.num_holders for block in blocks)
    alone = next(iter(holders)) if len(holders) == 1 else None
    if Kind.LOST in kinds:
        kind, alone = Kind.LOST, None
    elif held:
        kind = Kind.SHARED if alone is None else Kind.HELD
    else:
        kind = Kind.IDLE if Kind.IDLE in kinds else Kind.FREE
    part = held or kinds.count(Kind.IDLE)
    return Cell(first, len(blocks), kind, alone, most, _eighths(part, len(blocks)))


def _eighths(part: int, whole: int) -> int:
    """Rounded so that a little is never shown as nothing, and only all of it as all."""
    return max(1, part * EIGHTHS // whole) if part > 0 else 0


def host_cells(state: State, most: int) -> list[Cell]:
    """At most `most` cells of the host's blocks; none if it has none. Cost: O(blocks there + most)."""
    num_blocks = state.get("num_host_blocks", 0)
    if num_blocks < 1:
        return []
    step = -(-num_blocks // most)
    taken: dict[int, list[str]] = {}
    for request, ids in state.get("host", {}).items():
        for block in set(ids):
            if 0 <= block < num_blocks:
                taken.setdefault(block // step, []).append(request)
    cells = []
    for place in range(-(-num_blocks // step)):
        holders = taken.get(place, [])
        size = min(step, num_blocks - place * step)
        alone = holders[0] if len(set(holders)) == 1 else None
        kind = Kind.FREE if not holders else Kind.SHARED if alone is None else Kind.HELD
        # A broken state may have one host block for two requests.
        share = _eighths(min(len(holders), size), size)
        cells.append(Cell(place * step, size, kind, alone, len(set(holders)), share))
    return cells


def counts_of(blocks: Sequence[Block], block_size: int) -> Counts:
    """See `Counts`."""
    number = Counter(block.kind for block in blocks)
    held = [block for block in blocks if block.num_holders]
    return Counts(
        free=number[Kind.FREE],
        idle=number[Kind.IDLE],
        held=number[Kind.HELD],
        shared=number[Kind.SHARED],
        lost=number[Kind.LOST],
        partly=sum(block.filled < block_size for block in held),
        written_slots=sum(block.filled for block in held),
        held_slots=len(held) * block_size,
        all_slots=len(blocks) * block_size,
    )


def rows_of(state: State, blocks: Sequence[Block]) -> list[Row]:
    """The requests on the device in the log's order, then those on the host, whose tokens no state tells."""
    rows = []
    for request, table in state["tables"].items():
        shared = sum(blocks[block].num_holders > 1 for block in set(table) if 0 <= block < len(blocks))
        rows.append(Row(request, state["tokens"][request], len(table), shared, on_host=False))
    rows += [Row(request, 0, len(ids), 0, on_host=True) for request, ids in state.get("host", {}).items()]
    return rows


@dataclass
class Tally:
    """What has happened, event by event. evicted and hits are blocks, the others happenings."""

    events: int = 0
    admitted: int = 0
    finished: int = 0
    preempted: int = 0
    to_host: int = 0
    copies: int = 0
    evicted: int = 0
    hits: int = 0
    """Blocks that an admitted request found; a fork's are none, and neither are those of one back from the host."""
    refused: int = 0
    _came: tuple[int, int | None] = field(default=(-1, None), repr=False)

    def take(self, event: Event) -> None:
        """Count one more event."""
        kind, comer = event["kind"], (event["call"], event["seq"])
        self.events += 1
        self.admitted += kind == "admit"
        self.finished += kind == "finish"
        self.preempted += kind == "preempt"
        self.to_host += kind == "swap_out"
        self.copies += kind == "copy"
        self.refused += kind in ("refused", "failed")
        if kind == "admit":
            self._came = comer
        elif kind == "evict":
            self.evicted += len(event["blocks"])
        elif kind == "share" and comer == self._came:
            self.hits += len(event["blocks"])


def tally_of(events: Iterable[Event], number: int) -> Tally:
    """The tally of the first `number` events."""
    tally = Tally()
    for event in islice(events, number):
        tally.take(event)
    return tally


@dataclass(frozen=True)
class Frame:
    """What is shown at one moment. place: of the event in the log, from 0; last: that of the last one, if it is known.

    missed: events that were gone before anybody counted them, so that the tally is too small.
    """

    state: State
    tally: Tally
    event: Event
    fault: str
    place: int
    last: int | None = None
    missed: int = 0
