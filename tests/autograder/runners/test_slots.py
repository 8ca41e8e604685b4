"""Which GPU a job gets: the one with the most room, and another one after a machine's fault."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autograder.nvml import Gpu
from autograder.runners.slots import GpuSlots

ONE, OTHER = Gpu("GPU-1", "nvidia0"), Gpu("GPU-2", "nvidia1")


def test_jobs_are_spread_over_the_gpus_before_any_is_shared() -> None:
    slots = GpuSlots([ONE, OTHER], at_once=2)
    assert slots.total == 4
    with slots.one() as a, slots.one() as b, slots.one() as c, slots.one() as d:
        assert [a, b, c, d] == [ONE, OTHER, ONE, OTHER]


def test_a_job_that_comes_back_gets_another_gpu_where_there_is_one() -> None:
    slots = GpuSlots([ONE, OTHER], at_once=1)
    with slots.one(but=ONE) as mine:
        assert mine == OTHER
    alone = GpuSlots([ONE], at_once=1)
    with alone.one(but=ONE) as mine:
        assert mine == ONE


def test_who_finds_no_room_waits_for_it() -> None:
    slots = GpuSlots([ONE, OTHER], at_once=1)
    got: list[Gpu] = []

    def wait() -> None:
        with slots.one(but=ONE) as mine:
            got.append(mine)

    with slots.one(), slots.one() as second:
        assert second == OTHER
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert got == []
    waiting.join(20)
    assert got == [OTHER]


def test_a_job_that_breaks_gives_its_slot_back() -> None:
    slots = GpuSlots([ONE], at_once=1)
    with pytest.raises(RuntimeError, match="broke"), slots.one():
        raise RuntimeError("broke")
    slots.check_invariants()
    with slots.one() as mine:
        assert mine == ONE


@pytest.mark.parametrize(
    ("gpus", "at_once", "says"), [([], 1, "no GPU"), ([ONE], 0, "at least one slot on each GPU, got 0")]
)
def test_slots_that_cannot_be_are_refused(gpus: list[Gpu], at_once: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GpuSlots(gpus, at_once)


class Traffic(RuleBasedStateMachine):
    """Jobs come and go on three GPUs; each gets the idlest of those that it may have."""

    def __init__(self) -> None:
        super().__init__()
        self.gpus = [Gpu(f"GPU-{n}", f"nvidia{n}") for n in range(3)]
        self.slots = GpuSlots(self.gpus, at_once=2)
        self.jobs: list[tuple[Gpu, ExitStack]] = []

    def _used(self, gpu: Gpu) -> int:
        return sum(mine == gpu for mine, _ in self.jobs)

    @rule(but=st.none() | st.integers(0, 2))
    def comes(self, but: int | None) -> None:
        among = [gpu for number, gpu in enumerate(self.gpus) if number != but]
        least = min(self._used(gpu) for gpu in among)
        if least == self.slots.at_once:
            return
        stack = ExitStack()
        mine = stack.enter_context(self.slots.one(None if but is None else self.gpus[but]))
        assert mine in among
        assert self._used(mine) == least
        self.jobs.append((mine, stack))

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 99))
    def goes(self, which: int) -> None:
        self.jobs.pop(which % len(self.jobs))[1].close()

    @invariant()
    def none_has_more_jobs_than_slots(self) -> None:
        self.slots.check_invariants()

    def teardown(self) -> None:
        for _, stack in self.jobs:
            stack.close()


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=50, deadline=None)
