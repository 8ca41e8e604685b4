"""The rules of the clock, on a machine of plain functions: what is looked at, and what a plan cannot get away with."""

# Everything below needs Triton, in the interpreter where there is no GPU.
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.triton_here import import_triton

if not import_triton():
    pytest.skip("Triton is not installed here", allow_module_level=True)

from autograder.gpu import clock
from autograder.gpu.plan import Plan
from autograder.gpu.timed import TimedCase, Timing
from reference_impl.attention import reference

CASE = TimedCase((5, 17, 1), 4, 2, 32, 4, "float32")
Work = Callable[[Sequence[Tensor], "Functions"], None]


class Functions:
    """A bound plan that is a function of the storages of one replica; `kept` is memory that outlives a replay."""

    def __init__(self, work: Work, inputs: Sequence[Sequence[Tensor]]) -> None:
        self._work, self._inputs = work, inputs
        self.kept: dict[Any, Any] = {}
        self.scratch = torch.zeros(64)
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        for storages in self._inputs:
            self._work(storages, self)

    def refresh(self) -> None:
        self.scratch.fill_(float("nan"))

    def intact(self) -> bool:
        return True

    def unload(self) -> None:
        self.kept.clear()


class Processor:
    """The machine: this process."""

    device = "cpu"

    @staticmethod
    def bound(plan: Plan, inputs: Sequence[Sequence[Tensor]]) -> clock.Bound:
        return Functions(cast(Work, plan), inputs)

    @staticmethod
    def synchronize() -> None:
        pass

    def __init__(self, *held_down: tuple[str, ...]) -> None:
        self._held_down = list(held_down)

    def slowed(self) -> tuple[str, ...]:
        return self._held_down.pop(0) if self._held_down else ()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "REPLICA_BYTES", 1)
    monkeypatch.setattr(clock, "ROUNDS", 6)


def right(storages: Sequence[Tensor], _: Functions) -> None:
    tables, lengths = CASE.tables(3)
    shape = (CASE.num_blocks, CASE.block_size, CASE.kv_heads, CASE.head_dim)
    query, keys, values = (storage.view(torch.float32) for storage in storages[:3])
    query = query.view(len(CASE.lengths), CASE.heads, CASE.head_dim)
    out = reference.paged_decode(query, keys.view(shape), values.view(shape), tables, lengths, CASE.head_dim**-0.5)
    storages[-1].copy_(out.float().contiguous().view(-1).view(torch.uint8))


def timed(work: Work, on: Processor | None = None) -> Timing:
    plan = cast(Plan, work)
    return clock.timed_beside(cast(Plan, right), plan, CASE, CASE.tables(3), 7, 1e9, on or Processor())


def test_what_is_right_in_every_round_has_a_time() -> None:
    timing = timed(right)
    assert timing.wrong == ""
    assert timing.student_us > 0
    assert timing.before_us > 0


def test_clocks_that_were_held_down_in_any_round_are_told() -> None:
    assert timed(right).slowed == ""
    assert timed(right, Processor((), ("power brake",), ("heat", "power brake"))).slowed == "heat, power brake"


def test_an_answer_of_an_earlier_round_is_no_answer() -> None:
    def once(storages: Sequence[Tensor], bound: Functions) -> None:
        place = storages[-1].data_ptr()
        if place not in bound.kept:
            right(storages, bound)
            bound.kept[place] = storages[-1].clone()
        storages[-1].copy_(bound.kept[place])

    assert timed(once).wrong == "an output that was timed: the answer is wrong by far more than rounding"


def test_an_output_that_stands_is_written_again() -> None:
    def if_it_is_not_there(storages: Sequence[Tensor], bound: Functions) -> None:
        if bound.replays == 1:
            right(storages, bound)

    assert timed(if_it_is_not_there).wrong == "an output that was timed: out holds NaN or infinity, or was not written"


def test_what_was_left_in_scratch_is_gone() -> None:
    def prepared(storages: Sequence[Tensor], bound: Functions) -> None:
        if bound.replays == 1:
            bound.scratch.fill_(1.0)
        right(storages, bound)
        storages[-1].view(torch.float32).mul_(bound.scratch[0])

    assert timed(prepared).wrong == "an output that was timed: out holds NaN or infinity, or was not written"


def test_an_input_that_is_made_easier_is_seen() -> None:
    def zeroes_the_values(storages: Sequence[Tensor], bound: Functions) -> None:
        right(storages, bound)
        storages[2].zero_()

    assert timed(zeroes_the_values).wrong != ""


def test_a_query_that_is_put_back_is_seen() -> None:
    def other_question(storages: Sequence[Tensor], bound: Functions) -> None:
        place = storages[0].data_ptr()
        if place not in bound.kept:
            right(storages, bound)
            bound.kept[place] = (storages[0].clone(), storages[-1].clone())
        query, out = bound.kept[place]
        storages[0].copy_(query)
        storages[-1].copy_(out)

    assert timed(other_question).wrong == "an output that was timed: the answer is wrong by far more than rounding"


def test_a_write_beside_the_output_is_seen() -> None:
    def writes_too_much(storages: Sequence[Tensor], bound: Functions) -> None:
        right(storages, bound)
        out = storages[-1]
        torch.as_strided(out, (1,), (1,), out.storage_offset() + out.numel()).fill_(0)

    assert timed(writes_too_much).wrong == "the memory beside the output was changed"


def test_who_damages_the_reference_is_told() -> None:
    sides: list[Functions] = []

    def first_side_is_ruined(storages: Sequence[Tensor], bound: Functions) -> None:
        right(storages, bound)
        for victim in sides:
            for other in victim._inputs:
                other[2].zero_()

    class Watched(Processor):
        @staticmethod
        def bound(plan: Plan, inputs: Sequence[Sequence[Tensor]]) -> clock.Bound:
            made = Functions(cast(Work, plan), inputs)
            if plan is cast(Plan, right):
                sides.append(made)
            return made

    plan = cast(Plan, first_side_is_ruined)
    timing = clock.timed_beside(cast(Plan, right), plan, CASE, CASE.tables(3), 7, 1e9, Watched())
    assert timing.wrong.startswith("memory that does not belong to the call was changed")
