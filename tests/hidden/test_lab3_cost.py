"""The hidden tests of cost on an honest design and a machine that others use too.

Owns: the proof that a measurement gone wrong is taken again, as often as is promised, and costs no student a point.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest

from autograder.course import load_module
from autograder.judge.subject import Call, LocalSubject, Make, local
from reference_impl.memory import BlockAllocator

cost = load_module(Path(__file__).parent / "lab3_block_allocator" / "test_cost.py", "test_cost")


TESTS = [name for name in vars(cost) if name.startswith("test_")]


def run(test: str, make: Make, seed: int) -> None:
    """A hidden test with the arguments it asks for."""
    hidden = getattr(cost, test)
    arguments = {"make": make, "seed": seed}
    hidden(**{name: arguments[name] for name in inspect.signature(hidden).parameters})


def disturbed(measure: Any) -> Any:
    """`measure` on a machine where the first measurements of each kind come out too large, and only the last counts."""
    taken: dict[Any, int] = {}

    def measured(*args: Any) -> float:
        ratio = measure(*args)
        taken[args] = taken.get(args, 0) + 1
        return float(ratio) if taken[args] == cost.ATTEMPTS else 1.5 * cost.LIMIT

    return measured


class Delayed(LocalSubject):
    """A subject whose requests wait for a processor, by `waits`, before the judge's clock stops."""

    def __init__(self, target: Any, waits: Iterator[float]) -> None:
        super().__init__(target)
        self._waits = waits

    def timed_answers(self, calls: Sequence[Call]) -> tuple[float, list[Any]]:
        seconds, answers = super().timed_answers(calls)
        return seconds + next(self._waits), answers


@pytest.mark.parametrize("at", [3, 10, 100, 200])
@pytest.mark.parametrize("test", TESTS)
def test_an_honest_design_may_be_stalled_once(test: str, at: int, seed: int) -> None:
    waits = chain(repeat(0.0, at), [1.1], repeat(0.0))
    run(test, lambda *args: Delayed(BlockAllocator(*args), waits), seed)


@pytest.mark.parametrize("test", TESTS)
def test_every_request_of_an_honest_design_may_wait_for_a_processor(test: str, seed: int) -> None:
    waits = repeat(0.017)
    run(test, lambda *args: Delayed(BlockAllocator(*args), waits), seed)


def test_a_ratio_far_above_the_limit_is_measured_twice_and_one_near_it_three_times() -> None:
    for ratios, holds, taken in (
        ([1.0], True, 1),
        ([9.0, 9.0], False, 2),
        ([4.1, 8.1, 1.0], True, 3),
        ([9.0, 4.1, 9.0], False, 3),
    ):
        left = list(ratios)
        assert cost.flat(lambda left=left: left.pop(0)) is holds
        assert len(ratios) - len(left) == taken


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
    run(test, local(BlockAllocator), seed)
