"""Functions on tensors behind the wire: what they write stands in the test's own memory, and a crash ends one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autograder.course import Course
from autograder.intake import Cell
from autograder.judge.functions import LocalFunctions, RemoteFunctions, rehearse
from autograder.judge.remote import Plan, Session, TestEnded
from autograder.judge.verdicts import Verdict
from autograder.sandbox import tiers
from tests.triton_here import import_triton

# One worker for all, as each takes seconds to import torch; a crash costs one more.
SOURCE = """
import os
import numpy
import torch
import triton
import triton.language as tl

@triton.jit
def double_kernel(source, target, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(target + at, tl.load(source + at) * 2)

def double(source, target):
    double_kernel[(1,)](source, target, SIZE=16)

def lazy(source, target):
    target.copy_(torch.from_numpy(numpy.arange(16, dtype=numpy.float32)))

def torchy(source, target):
    torch.mul(source, 2, out=target)

def raises(source, target):
    raise ValueError("a message")

def crashes(source, target):
    os._exit(3)

def three(a, b, c):
    pass

def grows(source, target):
    target.resize_(1000)
"""
NAMES = ("double", "lazy", "torchy", "raises", "crashes", "three", "grows", "missing")
LAB4 = "lab4_paged_attention"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(import_triton() != "cpu", reason="for Triton's interpreter"),
    pytest.mark.skipif(not (tiers.works("bubblewrap") or tiers.works("unshare")), reason="no sandbox tier works here"),
]


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    lab = Course.open(request.config.rootpath).lab(LAB4)
    limits = replace(lab.limits("cpu"), total_s=600.0)
    plan = Plan(
        (Cell("x.py", SOURCE),), tiers.choose("auto"), limits, tuple(lab.suite.PACKAGES), lab.environment("cpu")
    )
    opened = Session(plan)
    yield opened
    opened.close()


@pytest.fixture
def functions(session: Session) -> RemoteFunctions:
    return RemoteFunctions(session, NAMES, {"missing": "the function missing is missing"})


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(16.0), torch.full((20,), -1.0)[2:18]


def ends(run: Callable[..., Any], *args: Any) -> Verdict:
    with pytest.raises(TestEnded) as ended:
        run(*args)
    return ended.value.verdict


def test_what_a_kernel_wrote_stands_in_the_callers_memory(functions: RemoteFunctions) -> None:
    source, target = pair()
    functions.double(source, target)
    assert torch.equal(target, source * 2)
    assert target._base is not None
    assert target._base[:2].eq(-1).all()


def test_an_exception_crosses_as_a_public_class_and_changes_nothing(functions: RemoteFunctions) -> None:
    source, target = pair()
    with pytest.raises(ValueError, match=r"^$"):
        functions.raises(source, target)
    assert target.eq(-1).all()


def test_a_crash_ends_its_call_and_the_next_one_is_answered(functions: RemoteFunctions) -> None:
    source, target = pair()
    assert ends(functions.crashes, source, target) is Verdict.CRASHED
    functions.double(source, target)
    assert torch.equal(target, source * 2)


def test_work_that_torch_did_is_wrong(functions: RemoteFunctions) -> None:
    assert ends(functions.torchy, *pair()) is Verdict.WRONG


def test_a_function_with_a_fault_is_missing(functions: RemoteFunctions) -> None:
    assert ends(functions.missing, *pair()) is Verdict.MISSING
    with pytest.raises(AttributeError):
        functions.of_no_contract()


def test_a_rehearsal_finds_who_needs_no_kernel(session: Session) -> None:
    calls = {name: pair() for name in ("double", "lazy", "torchy", "crashes", "raises")}
    assert set(rehearse(session, calls, {})) == {"lazy", "torchy"}
    assert any("torchy" in flag and "aten::mul" in flag for flag in session.flags)


def test_functions_are_described_by_the_arguments_they_take(session: Session) -> None:
    asked = {"double": [2], "three": [2, 3], "nothing_of_that_name": [1]}
    reply = session.worker().request(20.0, op="describe", kind="functions", name="", methods=asked)
    assert reply["ok"] == {
        "kind": "functions",
        "faults": {"three": "signature", "nothing_of_that_name": "missing"},
    }


def test_the_local_twin_cannot_be_told_apart() -> None:
    def double(source: torch.Tensor, target: torch.Tensor) -> None:
        target.copy_(source * 2)

    source, target = pair()
    LocalFunctions(SimpleNamespace(double=double)).double(source, target)
    assert torch.equal(target, source * 2)
