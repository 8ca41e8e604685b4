"""The rule by which a preempted request comes back, at the prices of a device and a model."""

from __future__ import annotations

from reference_impl.sched import Request
from reference_impl.sim.compare import cost_model
from reference_impl.sim.recovery import cheaper


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
