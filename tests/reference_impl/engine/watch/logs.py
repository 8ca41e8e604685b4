"""Logs for the tests of `engine watch`: real ones, and any that the schema lets through; and a printed picture, read.

The reader knows only what a person sees: labels, cells and sentences.
"""

from __future__ import annotations

import random
import re
from array import array
from itertools import takewhile
from typing import Any

from hypothesis import strategies as st
from rich.console import Console

from labkit.event_log import KINDS, Event
from reference_impl.engine.watch.view import View
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand
from reference_impl.sched import ContinuousBatching, EngineScheduler, Limits, Request
from tests.reference_impl.sched.driving import Driver

SIZE = 4


def served(recovery: str = "swap", *, log: EventLog | None = None, num_blocks: int = 24) -> tuple[EventLog, Any]:
    """Sixteen requests with common prompts, six at once, too much for the pool: hits, preemption, evictions."""
    log = EventLog() if log is None else log
    driver = Driver(busy(log, recovery, num_blocks))
    for request, makes in map(request_of, range(16)):
        driver.add(request, makes=makes)
    driver.run()
    return log, driver.scheduler


def busy(log: EventLog, recovery: str = "swap", num_blocks: int = 24) -> EngineScheduler:
    memory = KVManager(num_blocks, SIZE, prefix_cache="hash", num_host_blocks=16, log=log)
    return ContinuousBatching(memory, Limits(64, 6), recovery=recovery, log=log)  # type: ignore[arg-type]


def request_of(identity: int) -> tuple[Request, int]:
    """A request and how many tokens it makes; all prompts begin alike."""
    rng = random.Random(identity)
    length = rng.randint(5, 30)
    ids = array("i", [token % 7 for token in range(length)])
    return Request(identity, length, 12, token_ids=ids), rng.randint(3, 12)


def forked() -> EventLog:
    """A parent of 10 tokens, two children with its blocks, and a copy when one of them goes on."""
    log = EventLog()
    manager = KVManager(8, SIZE, log=log)
    manager.admit(Demand(1, 10, 5), 10)
    manager.commit(1, 10)
    manager.fork(1, Demand(2, 11, 5))
    manager.fork(1, Demand(3, 11, 5))
    manager.grow(2, 11)
    return log


def printed(view: View, width: int = 80, *, encoding: str = "utf-8") -> list[str]:
    """The lines of a picture, without colour."""
    console = Console(width=width, force_terminal=False, color_system=None)
    options = console.options.update(width=width)
    options.encoding = encoding
    lines = console.render_lines(view, options, pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


def cells(lines: list[str], label: str = r"\d+", *, width: int = 80) -> list[tuple[int, str]]:
    """The label's number and the two characters of each cell, in order."""
    found = []
    for line in takewhile(lambda line: not line.startswith("──"), lines[1:]):
        # From 120 columns on the last 46 and a gap are those of the requests.
        line = line if width < 120 else line[: width - 49]
        if (row := re.match(rf" *({label}) ((?:.. )*(?:..?)?) *", line)) is None:
            continue
        first = int(row[1]) if row[1].isdecimal() else 0
        text = row[2]
        found += [(first, text[place : place + 2]) for place in range(0, len(text), 3) if text[place].strip()]
    return found


names = st.sampled_from(["0", "1", "2", "7", "59", "abc", "é", "\x1b[2J", "", "9" * 40])


@st.composite
def states(draw: st.DrawFn, most_blocks: int = 40) -> dict[str, Any]:
    """Any state that the check lets through: most are of no possible memory."""
    num_blocks = draw(st.integers(1, most_blocks))
    size = draw(st.sampled_from([1, 3, 4, 16, 10**9]))
    ids = st.integers(-2, num_blocks + 2)
    numbers = st.integers(-1, 3)
    tables = draw(st.dictionaries(names, st.lists(ids, max_size=8), max_size=6))
    state: dict[str, Any] = {
        "num_blocks": num_blocks,
        "block_size": size,
        "num_free": draw(numbers),
        "tables": tables,
        "tokens": {name: draw(st.integers(-1, 10**12)) for name in tables},
        "ref_counts": draw(st.just([0] * num_blocks) | st.lists(numbers, min_size=num_blocks, max_size=num_blocks)),
        "filled": draw(st.lists(st.integers(-1, size + 1), min_size=num_blocks, max_size=num_blocks)),
    }
    if draw(st.booleans()):
        state |= {
            "published": draw(st.lists(ids, max_size=6)),
            "num_idle": draw(numbers),
            "waiting": draw(st.lists(st.integers(0, 10**6), max_size=30)),
            "preempted": draw(st.lists(st.integers(0, 9), max_size=3)),
            "host": draw(st.dictionaries(names, st.lists(st.integers(-1, 10**18), max_size=4), max_size=3)),
            "num_host_blocks": draw(st.sampled_from([-1, 0, 1, 7, 10**18])),
        }
    return state


@st.composite
def logs(draw: st.DrawFn, most_events: int = 6) -> list[Event]:
    """Any log that the check lets through."""
    events: list[Event] = []
    words = st.text(max_size=300)
    for call in range(draw(st.integers(1, most_events))):
        for _ in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(list(KINDS)))
            about = [] if KINDS[kind].startswith("none") else [3, 1] if kind == "copy" else [0, 10**20]
            seq = draw(st.none() | st.integers(0, 5))
            events.append(
                {"call": call, "told": "", "kind": kind, "sentence": draw(words), "seq": seq, "blocks": about}
            )
        events[-1]["state"] = draw(states())
        events[-1]["fault"] = draw(st.just("") | words)
    return events
