"""Which way back is cheaper for a preempted request, at the prices of the cost model.

Owns: the rule that asks `memory/swap.py` with the numbers of a device and a model. Knows nothing of when anybody is
preempted. Computing again takes part of steps that run anyway: their weights and their launch are not counted.
Source: Kwon et al., SOSP 2023, section 7.3.
"""

from __future__ import annotations

from typing import Literal

from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.swap import Recovery, SwapCost
from reference_impl.sched.preemption import RecoveryRule
from reference_impl.sched.request import Request
from reference_impl.sim.cost import CostModel
from reference_impl.sim.work import StepWork


def cheaper(cost: CostModel, block_size: int) -> RecoveryRule:
    """Swap where moving the blocks out and back takes less time than computing their tokens again."""

    def recompute_s(tokens: int) -> float:
        return cost.step_s(StepWork(0, 0, tokens, tokens * (tokens + 1) // 2, tokens))

    prices = SwapCost(
        bytes_per_block=cost.model.kv_bytes_per_token * block_size,
        link_bytes_per_s=cost.device.link_bytes_per_s,
        per_copy_s=cost.rates.copy_s,
        recompute_s=recompute_s,
    )

    def rule(request: Request) -> Literal["recompute", "swap"]:
        tokens = request.num_computed
        swaps = prices.cheaper(tokens, blocks_for(tokens, block_size)) is Recovery.SWAP
        return "swap" if swaps else "recompute"

    return rule
