"""The state machines of this folder for more than a million operations, every one followed by all invariants.

Hypothesis draws the sizes, the seeds and single calls; between them come bursts of calls from a seeded generator, which
cost no drawing. The operations of the bursts are counted, and what the rules do besides is not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.reference_impl.memory.test_block_pool import PoolMachine
from tests.reference_impl.memory.test_block_table import TableMachine
from tests.reference_impl.memory.test_kv_manager_machine import ManagerMachine
from tests.reference_impl.memory.test_prefix_cache import LockStep

Dice = random.Random
Operation = Callable[[Any, Dice], object]

POOL: list[Operation] = [
    lambda m, d: m.take(d.randrange(15)),
    lambda m, d: m.share_any_block_even_a_free_one(d.randrange(100)),
    lambda m, d: m.holders and m.release_some([d.randrange(100) for _ in range(d.randrange(6))]),
    lambda m, d: m.holders and m.release_some([d.randrange(100)]),
]

TABLE: list[Operation] = [
    lambda m, d: len(m.slots) < 60 and m.grow(d.randrange(13)),
    lambda m, d: m.truncate(d.randrange(5)),
    lambda m, d: m.truncate_to_what_it_never_had(d.randint(1, 3)),
    lambda m, d: m.look(d.randrange(41), d.randrange(10)),
]


def _acquire(machine: Any, dice: Dice) -> None:
    tokens = [dice.randrange(2) for _ in range(dice.randint(1, 9))]
    then = dice.choice(["compute", "compute and release", "wait"])
    machine.acquire(tokens, dice.randrange(100), dice.choice(["", "", "", "other"]), then)


CACHE: list[Operation] = [
    _acquire,
    _acquire,
    lambda m, d: m.tables and m.commit(d.randrange(100), d.randrange(3)),
    lambda m, d: m.tables and m.release(d.randrange(100)),
    lambda m, d: len(m.seen) > 200 and m.seen.clear(),
]


def _admit(machine: Any, dice: Dice) -> None:
    if len(machine.past) > 50:
        del machine.past[:25]
    sizes = dice.randint(1, 14), dice.randint(1, 6), dice.randint(1, 14)
    machine.admit(dice.randrange(10_000), dice.randrange(1_000), *sizes, dice.random() < 0.75, dice.random() < 0.5)


MANAGER: list[Operation] = [
    _admit,
    _admit,
    lambda m, d: m.model.live and m.step(d.randrange(100), d.randint(-2, 6), d.choice([0, 0, 1, 3]), d.random() < 0.5),
    lambda m, d: m.model.live and m.step(d.randrange(100), d.randint(-2, 6), 0, True),
    lambda m, d: m.model.live and m.commit_some(d.randrange(100), d.randrange(5)),
    lambda m, d: m.model.live and m.speculate(d.randrange(100), d.randint(1, 5), d.randrange(6)),
    lambda m, d: m.model.live and m.fork(d.randrange(100), d.randrange(3), d.randint(1, 5), d.randrange(10_000)),
    lambda m, d: m.model.live and m.truncate(d.randrange(100), d.randrange(4)),
    lambda m, d: m.model.live and m.swap_out(d.randrange(100)),
    lambda m, d: m.model.swapped and m.swap_in(d.randrange(100)),
    *[lambda m, d: (m.model.live or m.model.swapped) and m.free(d.randrange(100))] * 3,
    lambda m, d: m.model.live and d.random() < 0.1 and m.wrong_calls(d.randrange(100)),
]


def bursting(machine: type[RuleBasedStateMachine], operations: list[Operation], invariant: str, done: list[int]) -> Any:
    """`machine` with one rule more, a burst of a hundred operations; `done[0]` counts those that ran."""

    class Bursting(machine):  # type: ignore[misc, valid-type]
        @rule(seed=st.integers(0, 2**32 - 1))
        def burst(self, seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(100):
                # What cannot be done now answers something empty, and is not counted.
                skipped = dice.choice(operations)(self, dice)
                getattr(self, invariant)()
                done[0] += skipped is None

    return Bursting


def run_operations(
    machine: type[RuleBasedStateMachine], operations: list[Operation], invariant: str, number: int
) -> int:
    """Run at least `number` operations; returns how many ran."""
    done = [0]
    length = settings(
        max_examples=min(20, 1 + number // 500),
        stateful_step_count=20,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    while done[0] < number:
        run_state_machine_as_test(bursting(machine, operations, invariant, done), settings=length)
    return done[0]


MACHINES: dict[str, tuple[Any, list[Operation], str, int]] = {
    "pool": (PoolMachine, POOL, "agrees_with_the_model", 450_000),
    "table": (TableMachine, TABLE, "agrees_with_the_model", 250_000),
    "cache": (LockStep, CACHE, "agrees_with_the_model", 150_000),
    "manager": (ManagerMachine, MANAGER, "everything_reads_back", 200_000),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_short_burst_breaks_no_invariant(name: str) -> None:
    machine, operations, invariant, _ = MACHINES[name]
    assert run_operations(machine, operations, invariant, 300) >= 300


@pytest.mark.long
@pytest.mark.parametrize("name", MACHINES)
def test_its_share_of_a_million_operations_breaks_no_invariant(name: str) -> None:
    assert sum(share for *_, share in MACHINES.values()) >= 1_000_000
    machine, operations, invariant, number = MACHINES[name]
    ran = run_operations(machine, operations, invariant, number)
    print(f"{name}: {ran} operations")
    assert ran >= number
