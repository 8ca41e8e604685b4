"""Evidence for "Start here": a story of two requests that grow and go, short enough to learn the figure on.

Owns: which of the engine's calls the page steps through. Knows nothing of how they are shown.
The engine's own manager plays it and writes the log; the blocks are where it put them.
"""

from __future__ import annotations

from array import array
from typing import Any

from reference_impl.memory import Refusal
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand

NUM_BLOCKS, BLOCK_SIZE = 6, 4


def build() -> dict[str, Any]:
    """All of the page's evidence as plain JSON."""
    return {"story": story()}


def story() -> dict[str, Any]:
    """Two requests come, one grows, a third is refused and gets in when one has gone."""
    log = EventLog()
    kv = KVManager(NUM_BLOCKS, BLOCK_SIZE, log=log)
    _admit(kv, 0, 7)
    _admit(kv, 1, 6)
    _grow(kv, 0, 8)
    _grow(kv, 0, 9)
    refusal = kv.admit(_demand(2, 10), 10)
    assert isinstance(refusal, Refusal), "the story needs a refusal"
    kv.free(1)
    _admit(kv, 2, 10)
    kv.check_invariants()
    return {
        "events": log.events,
        "block_size": BLOCK_SIZE,
        "num_blocks": NUM_BLOCKS,
        "needed": refusal.needed // BLOCK_SIZE,
        "free": refusal.free // BLOCK_SIZE,
    }


def _demand(request: int, tokens: int) -> Demand:
    return Demand(request, tokens, max_new_tokens=4, token_ids=array("i", range(tokens)))


def _admit(kv: KVManager, request: int, tokens: int) -> None:
    granted = kv.admit(_demand(request, tokens), tokens)
    assert not isinstance(granted, Refusal), f"the story stops at request {request}: {granted}"
    kv.commit(request, tokens)


def _grow(kv: KVManager, request: int, tokens: int) -> None:
    granted = kv.grow(request, tokens)
    assert not isinstance(granted, Refusal), f"the story stops at request {request}: {granted}"
    kv.commit(request, tokens)
