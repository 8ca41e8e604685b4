"""Evidence for "Paging": a refusal among free memory, the engine's log of a short story, memory under four policies.

Owns: which numbers the chapter may show of the engine. Knows nothing of how they are shown.
The story is played by the engine's own manager, which writes the log; the blocks are where it put them.
"""

from __future__ import annotations

from array import array
from dataclasses import asdict
from typing import Any

from labkit.workloads import workload
from reference_impl.memory import Refusal, Sizes
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand
from reference_impl.memory.occupancy import PUBLISHED_HELD, memory_table
from reference_impl.memory.paradox import paradox
from reference_impl.padding import ModelShape

NUM_BLOCKS, BLOCK_SIZE = 11, 4
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
    """A few requests come, grow and go; the log, and the table of the request that got what was left over."""
    log = EventLog()
    kv = KVManager(NUM_BLOCKS, BLOCK_SIZE, log=log)
    for request, tokens in enumerate((7, 5, 10)):
        _admit(kv, request, tokens)
    _grow(kv, 0, 8)
    _grow(kv, 0, 9)
    kv.free(1)
    _admit(kv, 3, 14)
    _grow(kv, 2, 13)
    refusal = kv.admit(_demand(4, 9), 9)
    assert isinstance(refusal, Refusal), "the story needs a refusal"
    table, tokens = kv.block_table(3), 14
    kv.free(0)
    _admit(kv, 4, 9)
    kv.check_invariants()
    return {"events": log.events, "table": table, "tokens": tokens, "block_size": BLOCK_SIZE, "num_blocks": NUM_BLOCKS}


def policies() -> list[dict[str, Any]]:
    """Share of the memory that holds tokens under each policy, on the Azure conversation workload."""
    source = workload("azure_conv")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    rows = [(p, new) for p, new in pairs if new >= 1 and p + new <= BUDGET.max_length][:REQUESTS]
    return [
        {
            "policy": row.policy,
            "held": row.held,
            "running": row.mean_running,
            "preemptions": row.preemptions,
            "published": PUBLISHED_HELD[row.policy],
        }
        for row in memory_table(BUDGET, rows, warm_up=WARM_UP_STEPS)
    ]


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
