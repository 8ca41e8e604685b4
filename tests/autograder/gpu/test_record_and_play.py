"""What a call does on the GPU is recorded on some numbers and gives the right answer on others, or is told apart."""

# Everything below needs Triton and a GPU.
# ruff: noqa: E402
from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU, and torch finds none here", allow_module_level=True)

from autograder.gpu.stand import Stand
from autograder.gpu.subject import PRINTING, UNSTEADY, FromHere, played
from autograder.judge.remote import TestEnded
from autograder.judge.verdicts import Verdict
from autograder.worker import prints
from tests.autograder.gpu import calls

# Calls are recorded in this process, before whose first kernel nothing may come.
torch.cuda.synchronize()
assert prints.make_room()

Call = Callable[[Tensor, Tensor], None]


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with Stand() as opened:
        opened.prove(lambda: None)
        yield opened


def doubled(stand: Stand, call: Call, count: int = 1000, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Source and target on the CPU after the call was recorded and played."""
    functions = played(FromHere(SimpleNamespace(call=call)), stand, ("call",))()
    source = torch.randn(count).to(dtype)
    target = torch.full((count,), float("nan"), dtype=dtype)
    functions.call(source, target)
    return source, target


def refused(stand: Stand, call: Call) -> TestEnded:
    with pytest.raises(TestEnded) as ended:
        doubled(stand, call)
    return ended.value


@pytest.mark.parametrize("call", calls.HONEST, ids=lambda call: call.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_honest_call_gives_the_answer_on_numbers_it_never_met(stand: Stand, call: Call, dtype: torch.dtype) -> None:
    for count in (1000, 3):
        source, target = doubled(stand, call, count, dtype)
        assert torch.equal(target, 2 * source)


@pytest.mark.parametrize("call", calls.UNFIT, ids=lambda call: call.__name__)
def test_a_call_that_cannot_be_played_is_told_why(stand: Stand, call: Call) -> None:
    ended = refused(stand, call)
    assert ended.verdict is Verdict.WRONG
    assert calls.UNFIT[call] in ended.message


@pytest.mark.parametrize("call", [calls.remembers_the_answer, calls.works_once], ids=lambda call: call.__name__)
def test_an_answer_that_was_remembered_is_no_answer(stand: Stand, call: Call) -> None:
    source, target = doubled(stand, call, 777)
    assert not torch.equal(target, 2 * source)


def test_memory_that_nobody_wrote_must_not_matter(stand: Stand) -> None:
    ended = refused(stand, calls.reads_what_nobody_wrote)
    assert (ended.verdict, ended.message) == (Verdict.WRONG, UNSTEADY)


def test_a_write_beside_a_tensor_is_seen(stand: Stand) -> None:
    ended = refused(stand, calls.writes_beside)
    assert (ended.verdict, ended.message) == (Verdict.GPU_FAULT, "memory beside the call's tensors was overwritten")


def played_after(stand: Stand, change: Callable[[Any], None], call: Call = calls.one_kernel) -> TestEnded:
    """How a forged plan ends: recorded honestly, then changed."""

    class Forged(FromHere):
        def record(self, name: str, buffers: Any, args: Any) -> Any:
            data = super().record(name, buffers, args)
            change(data)
            return data

    functions = played(Forged(SimpleNamespace(call=call)), stand, ("call",))()
    with pytest.raises(TestEnded) as ended:
        functions.call(torch.randn(1000), torch.empty(1000))
    return ended.value


def well(stand: Stand) -> bool:
    source, target = doubled(stand, calls.one_kernel)
    return torch.equal(target, 2 * source)


def test_an_address_outside_everything_is_a_fault_and_the_next_call_goes_on(stand: Stand) -> None:
    def far(data: Any) -> None:
        # A grid of many blocks, whose count says that they all hold something.
        launch = next(step for step in data["steps"] if step[0] == "launch")
        launch[2] = [1 << 20, 1, 1]
        launch[3] = [["i32", (1 << 31) - 1] if argument == ["i32", 1000] else argument for argument in launch[3]]

    ended = played_after(stand, far)
    assert ended.verdict is Verdict.GPU_FAULT
    assert well(stand)


def test_a_kernel_that_never_ends_is_killed_and_the_next_call_goes_on(stand: Stand, monkeypatch: Any) -> None:
    monkeypatch.setattr("autograder.gpu.stand.PLAY_S", 5.0)

    def endless(data: Any) -> None:
        # What lets it end is the number that is written in front of it.
        data["steps"] = [step for step in data["steps"] if step[0] != "fill"]

    ended = played_after(stand, endless, calls.never_ends)
    assert ended.verdict is Verdict.TIMEOUT
    assert well(stand)


def test_a_kernel_that_prints_more_than_can_be_taken_in_time_is_told_so(stand: Stand, monkeypatch: Any) -> None:
    monkeypatch.setattr("autograder.gpu.stand.PLAY_S", 5.0)

    def many(data: Any) -> None:
        next(step for step in data["steps"] if step[0] == "launch")[2] = [1 << 20, 1, 1]

    ended = played_after(stand, many, calls.prints)
    assert (ended.verdict, ended.message.endswith(PRINTING)) == (Verdict.TIMEOUT, True)
    assert well(stand)


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (lambda data: data["kernels"][0].update(cubin=b"\x7fELF" + bytes(2000)), "a kernel faulted on the GPU"),
        (lambda data: data["kernels"][0].update(name="another"), "a kernel faulted on the GPU"),
        (lambda data: data["steps"][-1][3].pop(), "whose arguments are not those of its kernel"),
        (lambda data: data["steps"][-1][3].append(["i64", 1]), None),
        (lambda data: data["kernels"][0].update(warps=32, shared=232_448), None),
        (lambda data: data["buffers"].append(["scratch", 8 << 30]), None),
    ],
    ids=["no kernel", "another name", "an argument less", "an argument more", "greedy", "much scratch"],
)
def test_a_forged_plan_is_refused_or_harms_its_own_process_only(
    stand: Stand, forge: Callable[[Any], None], reason: str | None
) -> None:
    functions_ended: TestEnded | None = None
    try:
        functions_ended = played_after(stand, forge)
    except pytest.fail.Exception:
        # It was played, and gave what it gives: that is no harm.
        assert reason is None
    if reason is not None:
        assert functions_ended is not None
        assert reason in functions_ended.message
    assert well(stand)
