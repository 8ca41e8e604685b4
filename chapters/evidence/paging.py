"""Evidence for "Paging": a refusal among free memory, the engine's log of a short story, memory under five policies.

Owns: which numbers the chapter may show of the engine. Knows nothing of how they are shown.
The story is played by the engine's own manager, which writes the log; the blocks are where it put them.
"""

from __future__ import annotations

from array import array
from dataclasses import asdict, replace
from typing import Any

from labkit.workloads import workload
from reference_impl.memory import Refusal, Sizes
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand
from reference_impl.memory.occupancy import PUBLISHED_HELD, Occupancy, memory_table, occupancy
from reference_impl.memory.paradox import paradox
from reference_impl.padding import ModelShape

NUM_BLOCKS, BLOCK_SIZE = 10, 4
# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit weights and cache.
SHAPE = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
# One memory for all policies, and no request that one of them could never serve.
BUDGET = Sizes(capacity=131_072, max_length=8_192)
REQUESTS, WARM_UP_STEPS = 2_000, 500


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    moment = paradox(seed=0)
    assert moment is not None, "this seed has no such moment any more"
    return {
        "moment": {
            **{key: value for key, value in asdict(moment).items() if key != "history"},
            "share": moment.free_share,
        },
        "story": story(),
        "memory": {"rows": policies(), "capacity_tokens": BUDGET.capacity, "max_tokens": BUDGET.max_length},
        "shape": {**asdict(SHAPE), "kv_bytes_per_token": SHAPE.kv_bytes_per_token},
    }


def story() -> dict[str, Any]:
    """A few requests come, grow and go; the log, the table of one whose blocks lie apart, and what was refused."""
    log = EventLog()
    kv = KVManager(NUM_BLOCKS, BLOCK_SIZE, log=log)
    for request, tokens in enumerate((7, 5, 10)):
        _admit(kv, request, tokens)
    _grow(kv, 0, 8)
    _grow(kv, 0, 9)
    kv.free(2)
    _admit(kv, 3, 14)
    _grow(kv, 1, 9)
    kv.free(0)
    refusal = kv.admit(_demand(4, 13), 13)
    assert isinstance(refusal, Refusal), "the story needs a refusal"
    table, tokens = kv.block_table(3), 14
    kv.free(1)
    _admit(kv, 4, 13)
    kv.check_invariants()
    return {
        "events": log.events,
        "table": table,
        "tokens": tokens,
        "refused": {"needed": refusal.needed // BLOCK_SIZE, "free": refusal.free // BLOCK_SIZE},
        "block_size": BLOCK_SIZE,
        "num_blocks": NUM_BLOCKS,
    }


def policies() -> list[dict[str, Any]]:
    """Where the memory goes under each policy, on the Azure conversation workload.

    The published comparison takes ranges from buddies. A row is added in which the true lengths lie in exact ranges, so
    that what is lost to the rounding of buddies is not laid at the door of contiguous memory.
    """
    source = workload("azure_conv")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    queue = [(p, new) for p, new in pairs if new >= 1 and p + new <= BUDGET.max_length][:REQUESTS]
    measured = {row.policy: row for row in memory_table(BUDGET, queue, warm_up=WARM_UP_STEPS)}
    exact = occupancy("oracle", replace(BUDGET, placement="first"), queue, warm_up=WARM_UP_STEPS)
    rows = [_row(policy, measured[policy]) for policy in PUBLISHED_HELD]
    rows.insert(-1, _row("oracle_first_fit", exact))
    return rows


def _row(name: str, measured: Occupancy) -> dict[str, Any]:
    """One row of the table: four shares of the memory that sum to 1, and what the queue made of it.

    `never_used` is given to requests and never filled by them, the tails of last blocks included; `not_given` is free.
    """
    shares = measured.total.shares()
    return {
        "policy": name,
        "held": shares["held"],
        "reserved": shares["reserved"],
        "never_used": shares["internal"] + shares["tail"],
        "not_given": shares["external"] + shares["free"],
        "running": measured.mean_running,
        "preemptions": measured.preemptions,
        "published": PUBLISHED_HELD.get(name),
    }


def _demand(request: int, tokens: int) -> Demand:
    return Demand(request, tokens, max_new_tokens=8, token_ids=array("i", range(tokens)))


def _admit(kv: KVManager, request: int, tokens: int) -> None:
    granted = kv.admit(_demand(request, tokens), tokens)
    assert not isinstance(granted, Refusal), f"the story stops at request {request}: {granted}"
    kv.commit(request, tokens)


def _grow(kv: KVManager, request: int, tokens: int) -> None:
    granted = kv.grow(request, tokens)
    assert not isinstance(granted, Refusal), f"the story stops at request {request}: {granted}"
    kv.commit(request, tokens)
