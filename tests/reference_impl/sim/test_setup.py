"""From names to parts: what each name is made of, and what does not go together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.policies import GrowingRanges, PaddedBatch, ReservedRanges
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.sched import ContinuousBatching, PrefillFirst, Request, StaticBatching
from reference_impl.sim.compare import cost_model
from reference_impl.sim.recovery import cheaper
from reference_impl.sim.setup import ALLOCATORS, Setup, build

PAGED = Setup("paged", "continuous", kv_tokens=1_000, max_length=100)


@pytest.mark.parametrize(
    ("allocator", "kind"),
    [
        ("padded", PaddedBatch),
        ("contiguous", ReservedRanges),
        ("pow2", ReservedRanges),
        ("oracle", ReservedRanges),
        ("grow", GrowingRanges),
    ],
)
def test_every_policy_gets_the_same_whole_blocks_as_paging(allocator: str, kind: type) -> None:
    memory = build(replace(PAGED, allocator=allocator)).memory
    assert isinstance(memory, PolicyMemory)
    assert isinstance(memory.policy, kind)
    assert memory.capacity == build(PAGED).memory.capacity == 62 * 16


@pytest.mark.parametrize(
    ("scheduler", "kind", "chunked", "budget"),
    [
        ("continuous", ContinuousBatching, True, 2_048),
        ("orca", ContinuousBatching, False, None),
        ("prefill-first", PrefillFirst, False, None),
        ("static", StaticBatching, False, None),
    ],
)
def test_every_scheduler_has_its_kind_and_its_limits(
    scheduler: str, kind: type, chunked: bool, budget: int | None
) -> None:
    built = build(replace(PAGED, scheduler=scheduler, max_running=7))
    assert type(built) is kind
    assert built.chunked is chunked
    assert built.limits.max_tokens_per_step == budget
    assert (built.limits.max_running, built.limits.max_request_tokens) == (7, 100)


def test_padded_rows_are_always_static() -> None:
    padded = replace(PAGED, allocator="padded")
    assert padded.effective().scheduler == "static"
    assert isinstance(build(padded), StaticBatching)


def test_what_only_paging_has_is_not_said_of_others() -> None:
    extras = {"watermark": 0.1, "prefix_cache": "hash", "recovery": "swap", "host_tokens": 64}
    for allocator in ALLOCATORS:
        said = replace(PAGED, allocator=allocator, **extras).effective()
        found = (said.watermark, said.prefix_cache, said.recovery, said.host_tokens)
        assert found == ((0.1, "hash", "swap", 64) if allocator == "paged" else (0.0, "none", "recompute", 0))


def test_the_manager_gets_its_extras() -> None:
    memory = build(replace(PAGED, watermark=0.1, recovery="swap", host_tokens=160)).memory
    assert isinstance(memory, KVManager)
    assert memory.num_watermark_blocks == 7
    assert memory._host.num_blocks == 10
    memory = build(replace(PAGED, recovery="swap")).memory
    assert isinstance(memory, KVManager)
    assert memory._host.num_blocks == 62


def test_the_cheaper_way_back_is_swapping_for_long_requests_and_large_blocks() -> None:
    cost = cost_model("opt-13b", "h100-sxm")

    def way(tokens: int, block_size: int) -> str:
        request = Request(0, tokens, 1)
        request.num_computed = tokens
        return cheaper(cost, block_size)(request)

    assert way(2_000, 256) == "swap"
    # The same tokens in blocks of one: two thousand copies each way.
    assert way(2_000, 1) == "recompute"
    # One token of sixteen in its block: sixteen would be moved.
    assert way(1, 16) == "recompute"


def test_the_cheaper_way_needs_prices() -> None:
    setup = replace(PAGED, recovery="cheaper")
    with pytest.raises(ValueError, match="needs a cost model"):
        build(setup)
    assert isinstance(build(setup, cost_model("qwen3-0.6b", "h100-sxm")), ContinuousBatching)
