"""How the tests of the KV manager ask: demands, requests that come and go, and what a refusal must not change."""

from __future__ import annotations

from array import array
from typing import Any

from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import Reason, Refusal

FIVE = [1, 2, 3, 4, 5]


def demand(request: int, tokens: list[int] | int, max_new: int = 1, salt: str = "") -> Demand:
    """A request with these token ids, or with so many tokens whose ids nobody knows."""
    if isinstance(tokens, int):
        return Demand(request, tokens, max_new, salt=salt)
    return Demand(request, len(tokens), max_new, token_ids=array("i", tokens), salt=salt)


def compute(manager: KVManager, request: int, tokens: list[int], salt: str = "") -> list[int]:
    """A request that comes, is computed and goes; returns the table that it had."""
    assert isinstance(manager.admit(demand(request, tokens, salt=salt), len(tokens)), Grant)
    manager.commit(request, len(tokens))
    table = manager.block_table(request)
    manager.free(request)
    return table


def seen(manager: KVManager) -> tuple[Any, ...]:
    """What a refusal must not change, for a caller and inside."""
    pool = manager._blocks.pool
    return (
        {request: (sequence.blocks[:], sequence.num_tokens) for request, sequence in manager._live.items()},
        (manager.num_free_blocks, manager.num_evicted, manager._promised, manager._host.num_free, manager.account()),
        ([pool.ref_count(block) for block in range(pool.num_blocks)], pool._next[:], manager._blocks.published()),
    )


def refused(manager: KVManager, answer: object, reason: Reason, needed: int, free: int) -> None:
    assert answer == Refusal(reason, needed, free, free)
    manager.check_invariants()


def forked(manager: KVManager, tokens: int = 6) -> None:
    """Request 1 with `tokens` computed tokens, and request 2 forked from it."""
    manager.admit(demand(1, tokens, 6), tokens)
    manager.commit(1, tokens)
    assert manager.fork(1, demand(2, tokens + 1, 5)) is None
