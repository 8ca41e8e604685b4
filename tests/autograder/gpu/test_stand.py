"""Whose fault it is that a GPU does not go on. But for the last test the process that plays plans is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from autograder.gpu import stand as stand_module
from autograder.gpu.process import READY, ReplayGone
from autograder.gpu.stand import NOT_WELL, Stand
from autograder.judge.remote import TestEnded
from autograder.judge.verdicts import Verdict
from autograder.sandbox.launch import StartFailed
from tests.autograder.gpu.test_subject import CASES

OUT_OF_MEMORY = ReplayGone("fault", "CUDA out of memory. Tried to allocate 20.00 MiB")
FAULT = ReplayGone("fault", "an illegal memory access was encountered")


@dataclass
class Machine:
    """A GPU and the clock beside it. unwell: how many more canaries find it so; replies: what requests end with."""

    unwell: int = 0
    replies: list[ReplayGone] = field(default_factory=list)
    holds_memory: bool = False
    """Whether the submission's own process has filled the GPU."""
    now_s: float = 0.0
    canaries: int = 0

    def canary(self) -> dict[str, Any]:
        self.canaries += 1
        self.unwell -= 1
        return {"gpu": "a GPU", "well": self.unwell < 0 and not self.holds_memory}

    def clear(self) -> None:
        self.holds_memory = False


@dataclass
class Played:
    """In place of `Replay`."""

    machine: Machine

    def request(
        self, deadline_s: float, blobs: Sequence[bytes] = (), **message: Any
    ) -> tuple[dict[str, Any], list[Any]]:
        if message["op"] == READY:
            return {}, []
        if message["op"] == "canary":
            return self.machine.canary(), []
        if self.machine.replies:
            raise self.machine.replies.pop(0)
        return {"us": 7.0, "played": True}, []

    def close(self) -> None:
        pass


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()

    def sleep(seconds: float) -> None:
        machine.now_s += seconds

    monkeypatch.setattr(stand_module, "Replay", lambda: Played(machine))
    monkeypatch.setattr(stand_module.time, "sleep", sleep)
    monkeypatch.setattr(stand_module.time, "monotonic", lambda: machine.now_s)
    return machine


@pytest.fixture
def stand(machine: Machine) -> Stand:
    proven = Stand()
    proven.prove(machine.clear)
    return proven


def play(stand: Stand) -> bool:
    return bool(stand.play({}, [], [])[0]["played"])


def ended(stand: Stand) -> Verdict:
    with pytest.raises(TestEnded) as told:
        play(stand)
    return told.value.verdict


def test_a_gpu_that_does_not_come_back_from_a_students_kernel_is_the_students_fault(
    stand: Stand, machine: Machine
) -> None:
    machine.replies, machine.unwell = [FAULT], 1_000
    assert ended(stand) is Verdict.GPU_FAULT
    with pytest.raises(TestEnded, match="did not recover from an earlier kernel"):
        stand.renew()


def test_a_gpu_that_somebody_else_fills_is_the_machines_fault(stand: Stand, machine: Machine) -> None:
    assert play(stand)
    machine.unwell = 1_000
    with pytest.raises(StartFailed, match=NOT_WELL):
        stand.renew()


def test_a_fault_that_the_gpu_came_back_from_is_not_the_cause_of_what_comes_later(
    stand: Stand, machine: Machine
) -> None:
    machine.replies, machine.unwell = [FAULT], 3
    assert ended(stand) is Verdict.GPU_FAULT
    assert play(stand)
    machine.unwell = 1_000
    with pytest.raises(StartFailed):
        stand.renew()


def test_memory_that_the_submissions_own_process_holds_is_no_fault_of_the_machine(
    stand: Stand, machine: Machine
) -> None:
    machine.holds_memory = True
    stand.renew()
    assert not machine.holds_memory
    assert play(stand)


def test_who_finds_no_memory_is_played_again_when_there_is_some(stand: Stand, machine: Machine) -> None:
    machine.replies, machine.unwell = [OUT_OF_MEMORY], 5
    assert play(stand)
    assert machine.now_s == 5, "as long as the GPU was full"


def test_buffers_that_do_not_fit_an_empty_gpu_are_too_large(stand: Stand, machine: Machine) -> None:
    machine.replies = [OUT_OF_MEMORY, OUT_OF_MEMORY]
    assert ended(stand) is Verdict.OUT_OF_MEMORY
    assert play(stand), "what had no memory has broken nothing"


def test_a_gpu_that_stays_full_is_nobodys_verdict(stand: Stand, machine: Machine) -> None:
    machine.replies, machine.unwell = [OUT_OF_MEMORY], 1_000
    with pytest.raises(StartFailed):
        play(stand)


@pytest.mark.parametrize(
    ("gone", "verdict"),
    [
        (FAULT, Verdict.GPU_FAULT),
        (ReplayGone("died", "exit status -6: "), Verdict.GPU_FAULT),
        (ReplayGone("deadline"), Verdict.TIMEOUT),
    ],
    ids=str,
)
def test_what_a_kernel_did_is_told_at_once(stand: Stand, machine: Machine, gone: ReplayGone, verdict: Verdict) -> None:
    before = machine.canaries
    machine.replies = [gone]
    assert ended(stand) is verdict
    assert machine.canaries == before
    assert play(stand)


def test_a_textbook_that_faults_is_not_the_students_fault_either(stand: Stand, machine: Machine) -> None:
    machine.replies, machine.unwell = [FAULT], 1_000
    assert stand.textbook_us(CASES[0]) is None
    with pytest.raises(StartFailed):
        play(stand)


def test_a_gpu_that_is_not_well_at_the_start_has_time_to_be_cleared(machine: Machine) -> None:
    machine.holds_memory, machine.unwell = True, 20
    stand = Stand()
    stand.prove(machine.clear)
    assert stand.gpu == "a GPU"
    machine.unwell = 1_000
    with pytest.raises(StartFailed, match=NOT_WELL):
        Stand().prove(machine.clear)


@pytest.mark.gpu
@pytest.mark.usefixtures("alone")
def test_a_gpu_that_is_really_full_is_the_machines_fault_and_the_next_job_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(stand_module, "RECOVERY_S", 1.0)
    with Stand() as stand:
        stand.prove(lambda: None)
        # Enough is left for a process to begin.
        filled = torch.empty(torch.cuda.mem_get_info()[0] - 2**31, dtype=torch.uint8, device="cuda")
        with pytest.raises(StartFailed, match=NOT_WELL):
            stand.renew()
        del filled
        torch.cuda.empty_cache()
        stand.renew()
