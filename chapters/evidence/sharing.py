"""Evidence for "Sharing": four answers on one prompt, a story of forks and copies, what sharing saves on a workload.

Owns: which numbers the chapter may show of the engine. Knows nothing of how they are shown.
All of it is asked of the engine's own manager and of `sharing.py`; which beams survive is drawn there, not computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from statistics import median
from typing import Any

from labkit.workloads import workload
from reference_impl.memory import Refusal
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.sharing import PUBLISHED_SAVED, lengths, saved_table
from reference_impl.padding import ModelShape

STORY_BLOCKS, STORY_SIZE = 7, 4
BLOCK_SIZE, ANSWERS, SPARE_BLOCKS = 16, 4, 16
REQUESTS, WIDTHS = 60, tuple(range(2, 9))
# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit weights and cache.
SHAPE = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    source = workload("azure_conv")
    prompt, output = round(median(source.prompt_tokens.tolist())), round(median(source.output_tokens.tolist()))
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    rows = [(tokens, new) for tokens, new in pairs if new >= 1][:REQUESTS]
    # The last whole block boundary at or below the prompt: the case in which a prefix cache computes a block again.
    whole = prompt // BLOCK_SIZE * BLOCK_SIZE
    return {
        "typical": {"prompt": prompt, "output": output, "source": source.description},
        "opening": opening(prompt),
        "story": story(),
        "ways": {"prompt": ways(prompt), "whole": ways(whole), "whole_tokens": whole},
        "saved": {"azure": _saved(rows, WIDTHS), "requests": len(rows)},
        "like_published": {name: _saved(lengths(name, REQUESTS), (2, 4, 6)) for name in ("alpaca", "sharegpt")},
        "published": {f"{name} {how}": list(shares) for (name, how), shares in PUBLISHED_SAVED.items()},
        "block_size": BLOCK_SIZE,
        "answers": ANSWERS,
        "kv_bytes_per_token": SHAPE.kv_bytes_per_token,
    }


def opening(prompt: int) -> dict[str, Any]:
    """Four sequences on one prompt in a memory that has room for little more than one; then each writes a token."""
    num_blocks = blocks_for(prompt, BLOCK_SIZE) + SPARE_BLOCKS
    kv = KVManager(num_blocks, BLOCK_SIZE)
    _admit(kv, Demand(0, prompt, 1 + SPARE_BLOCKS))
    for answer in range(1, ANSWERS):
        _fork(kv, 0, Demand(answer, prompt, 1 + SPARE_BLOCKS))
    entries = sum(len(kv.block_table(answer)) for answer in range(ANSWERS))
    free = kv.num_free_blocks
    copies = [len(_grow(kv, answer, prompt + 1).copies) for answer in range(ANSWERS)]
    kv.check_invariants()
    return {
        "num_blocks": num_blocks,
        "entries": entries,
        "free": free,
        "copies": copies,
        "taken": free - kv.num_free_blocks,
    }


def story() -> dict[str, Any]:
    """Forks, copies, an end, and a refusal in a block that has an empty slot; told by the engine's log."""
    log = EventLog()
    kv = KVManager(STORY_BLOCKS, STORY_SIZE, log=log)
    _admit(kv, Demand(0, 6, 8))
    for child in (1, 2):
        _fork(kv, 0, Demand(child, 6, 8))
    for answer in (1, 0, 2):
        _grow(kv, answer, 7)
    _grow(kv, 1, 8)
    _fork(kv, 1, Demand(3, 8, 8))
    _grow(kv, 3, 9)
    kv.free(1)
    _admit(kv, Demand(4, 8, 1))
    _fork(kv, 2, Demand(5, 7, 8))
    refusal = kv.grow(5, 8)
    assert isinstance(refusal, Refusal), "the story needs a refusal"
    kv.free(2)
    _grow(kv, 5, 8)
    kv.check_invariants()
    return {"events": log.events, "block_size": STORY_SIZE, "num_blocks": STORY_BLOCKS}


def ways(prompt: int) -> dict[str, dict[str, int]]:
    """What four answers on `prompt` tokens compute, copy and hold once each has its first token, in three ways."""
    room = ANSWERS * (blocks_for(prompt, BLOCK_SIZE) + 1)
    forked = KVManager(room, BLOCK_SIZE)
    _admit(forked, Demand(0, prompt, 2))
    for answer in range(1, ANSWERS):
        _fork(forked, 0, Demand(answer, prompt, 2))
    found = {}
    for name, waits in (("later", True), ("at_once", False)):
        kv = KVManager(room, BLOCK_SIZE, prefix_cache="hash")
        reused = [_admit(kv, _worded(answer, prompt), computes=waits).num_reused for answer in range(ANSWERS)]
        for answer in range(ANSWERS):
            kv.commit(answer, prompt)
        found[name] = (kv, ANSWERS * prompt - sum(reused))
    return {
        name: {"computed": computed, "copies": _first_tokens(kv, prompt), "blocks": kv.num_blocks - kv.num_free_blocks}
        for name, (kv, computed) in {"fork": (forked, prompt), **found}.items()
    }


def _first_tokens(kv: KVManager, prompt: int) -> int:
    """Every answer writes one token; how many blocks were copied for it."""
    copies = sum(len(_grow(kv, answer, prompt + 1).copies) for answer in range(ANSWERS))
    kv.check_invariants()
    return copies


def _saved(rows: Iterable[tuple[int, int]], widths: tuple[int, ...]) -> dict[str, dict[str, float]]:
    table = saved_table(rows, widths)
    return {how: {str(width): table[how, width] for width in widths} for how in ("parallel", "beam")}


def _worded(request: int, tokens: int) -> Demand:
    """A request whose tokens are known, and the same for all: it can be found by its content."""
    return Demand(request, tokens, 2, token_ids=array("i", range(tokens)))


def _admit(kv: KVManager, demand: Demand, *, computes: bool = True) -> Grant:
    granted = kv.admit(demand, demand.num_tokens)
    assert isinstance(granted, Grant), f"request {demand.request} does not come in: {granted}"
    if computes:
        kv.commit(demand.request, demand.num_tokens)
    return granted


def _fork(kv: KVManager, parent: int, demand: Demand) -> None:
    refusal = kv.fork(parent, demand)
    assert refusal is None, f"request {demand.request} is not forked: {refusal}"


def _grow(kv: KVManager, request: int, tokens: int) -> Grant:
    granted = kv.grow(request, tokens)
    assert isinstance(granted, Grant), f"request {request} does not grow: {granted}"
    kv.commit(request, tokens)
    return granted
