"""What one step is to do: plain data from the scheduler to whoever runs the step.

Owns: the plan of lab 6 (`labkit.contracts.StepPlan`) with what an engine needs besides. Knows nothing of how a plan was
made. A runner makes the swaps and copies first, in the order of the fields, then computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from labkit.contracts import StepPlan
from reference_impl.memory.kv_memory import BlockCopies
from reference_impl.memory.kv_policy import Refusal


@dataclass(frozen=True)
class Rectangle:
    """What a padded batch computes, pads included: `rows` rows of `new_tokens`, each after `context_tokens` others."""

    rows: int
    new_tokens: int
    context_tokens: int


@dataclass(frozen=True)
class Plan(StepPlan):
    """A step plan with what an engine and a simulator need besides.

    computed: request -> tokens computed before this step, for every scheduled request. reused: admitted request ->
    tokens of those whose KV was found in the prefix cache. swapped_out, swapped_in: request -> blocks (src, dst) from
    device to host and back. copies: blocks (src, dst) on the device. refused: why the first request that waits still
    does; None if none waits or nothing but the budget stopped it. rectangle: the padded batch, where there is one.
    """

    computed: Mapping[int, int] = field(default_factory=dict)
    reused: Mapping[int, int] = field(default_factory=dict)
    swapped_out: Mapping[int, BlockCopies] = field(default_factory=dict)
    swapped_in: Mapping[int, BlockCopies] = field(default_factory=dict)
    copies: BlockCopies = ()
    refused: Refusal | None = None
    rectangle: Rectangle | None = None
