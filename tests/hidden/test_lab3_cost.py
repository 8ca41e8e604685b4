"""The hidden tests of cost on an honest design and a machine that others use too.

Owns: the proof that a measurement gone wrong is taken again, as often as is promised, and costs no student a point.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from autograder.course import load_module
from autograder.judge.subject import local
from reference_impl.memory import BlockAllocator

cost = load_module(Path(__file__).parent / "lab3_block_allocator" / "test_cost.py", "test_cost")


def disturbed(measure: Any) -> Any:
    """`measure` on a machine where the first measurements of each kind come out too large, and only the last counts."""
    taken: dict[Any, int] = {}

    def measured(*args: Any) -> float:
        ratio = measure(*args)
        taken[args] = taken.get(args, 0) + 1
        return float(ratio) if taken[args] == cost.ATTEMPTS else 1.5 * cost.LIMIT

    return measured


@pytest.mark.parametrize(
    ("test", "owner", "measure"),
    [
        ("test_calls_cost_the_same_in_a_large_pool", cost, "ratio_of_pools"),
        ("test_append_costs_the_same_on_a_long_sequence", cost.Lengths, "ratio"),
        ("test_calls_cost_the_same_beside_many_sequences", cost, "ratio_of_crowds"),
        ("test_calls_cost_the_same_with_many_holders", cost, "ratio_of_holders"),
    ],
)
def test_an_honest_design_is_measured_as_often_as_promised(
    test: str, owner: Any, measure: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, measure, disturbed(getattr(owner, measure)))
    run = getattr(cost, test)
    arguments = {"make": local(BlockAllocator), "seed": seed}
    run(**{name: arguments[name] for name in inspect.signature(run).parameters})
