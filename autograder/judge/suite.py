"""The hidden tests of a lab, as plain functions.

Owns: finding them (`tests/hidden/<lab>/test_<name>.py`, each naming its GROUP, its DEVICE and WHY if there is but
one, and TIMED if it asks for speed) and running one, from call to verdict. The same files are collected by pytest,
which runs them on the reference; here pytest is not involved, and nothing of the student's is near. Knows nothing of
points.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autograder.course import Lab, load_module
from autograder.judge.remote import StudentRaised, TestEnded
from autograder.judge.subject import Make
from autograder.judge.verdicts import TestResult, Verdict


class SuiteBroken(Exception):  # noqa: N818 - ours, never the student's
    """A hidden test fails by a fault of its own: on the reference too."""


@dataclass(frozen=True)
class HiddenTest:
    """One property. `sentence`, the docstring's first line, is what the student reads."""

    group: str
    name: str
    sentence: str
    run: Callable[..., None]
    device: str = ""
    """The one device that it runs on, "cuda" say; empty if it runs anywhere."""
    why: str = ""
    """What it needs that device for, in words that may follow a colon."""
    timed: bool = False
    """Whether it asks for speed alone: the answers are other tests' business."""

    @property
    def wants_seed(self) -> bool:
        return "seed" in inspect.signature(self.run).parameters


def hidden_tests(lab: Lab) -> list[HiddenTest]:
    """Every hidden test of `lab`, in the order of its groups.

    Raises: SuiteBroken for a file without GROUP or a wordless test.
    """
    found = []
    for path in sorted(lab.hidden.glob("test_*.py")):
        module = load_module(path, f"hidden_{lab.id}_{path.stem}")
        group = getattr(module, "GROUP", None)
        if not isinstance(group, str):
            raise SuiteBroken(f"{path.name} names no GROUP")
        for name, function in vars(module).items():
            if not (name.startswith("test_") and inspect.isfunction(function)):
                continue
            sentence = (inspect.getdoc(function) or "").partition("\n")[0].strip()
            if not sentence:
                raise SuiteBroken(f"{path.name}: {name} has no sentence for the student")
            where, timed = getattr(module, "DEVICE", ""), getattr(module, "TIMED", False)
            found.append(HiddenTest(group, name, sentence, function, where, getattr(module, "WHY", ""), timed))
    in_notebook, in_tests = {group.id for group in lab.groups}, {test.group for test in found}
    if in_notebook != in_tests:
        odd = ", ".join(sorted(in_notebook ^ in_tests))
        raise SuiteBroken(f"groups of the notebook and of the hidden tests differ: {odd}")
    # As in the notebook: what comes first there is not left out if a submission uses up its time.
    order = [group.id for group in lab.groups]
    return sorted(found, key=lambda test: order.index(test.group))


def not_here(test: HiddenTest, device: str) -> TestResult | None:
    """The result of a test that needs another device than `device`: not run, and no point depends on it; else None."""
    if test.device in ("", device):
        return None
    where = {"cuda": "on a grader with a GPU"}.get(test.device, f"on {test.device}")
    why = f": {test.why}" if test.why else ""
    return TestResult(test.name, Verdict.NOT_RUN, f"{test.sentence} Runs {where} only{why}.", counts=False)


def run_test(test: HiddenTest, make: Make, seed: int, reference: Make) -> TestResult:
    """One test to its verdict. `reference` tells an answer that no test can use from a test that is broken.

    Raises: SuiteBroken if the test fails on the reference.
    """
    try:
        test.run(**_arguments(test, make, seed))
    except TestEnded as ended:
        return TestResult(test.name, ended.verdict, f"{test.sentence} Ended early: {ended.message}.")
    except AssertionError as failed:
        if isinstance(failed, StudentRaised):
            return _raised(test, failed)
        words = failed.args[0] if failed.args and isinstance(failed.args[0], str) else "the property does not hold"
        return TestResult(test.name, Verdict.WRONG, f"{test.sentence} Not so: {words}.")
    except Exception as error:
        return _from_exception(test, error, seed, reference)
    return TestResult(test.name, Verdict.PASS, test.sentence)


def _arguments(test: HiddenTest, make: Make, seed: int) -> dict[str, Any]:
    return {"make": make, "seed": seed} if test.wants_seed else {"make": make}


def _from_exception(test: HiddenTest, error: Exception, seed: int, reference: Make) -> TestResult:
    """Hypothesis may wrap the student's exception into a group or report that a rerun went differently.

    Any other exception arose in the test itself. A student can cause that with an answer of an unforeseen form, so it
    is ours only if the same test fails on the reference as well.
    """
    if isinstance(error, StudentRaised):
        return _raised(test, error)
    if isinstance(error, ExceptionGroup):
        return _from_exception(test, error.exceptions[0], seed, reference)
    if type(error).__module__.startswith("hypothesis") and type(error).__name__.startswith("Flaky"):
        return TestResult(test.name, Verdict.WRONG, f"{test.sentence} Not so, and differently when run again.")
    try:
        test.run(**_arguments(test, reference, seed))
    except (Exception, TestEnded) as broken:
        raise SuiteBroken(f"{test.name} fails on the reference: {type(broken).__name__}: {broken}") from broken
    return TestResult(test.name, Verdict.WRONG, f"{test.sentence} Not so: an answer has a form that cannot be used.")


def _raised(test: HiddenTest, error: Exception) -> TestResult:
    return TestResult(test.name, Verdict.RAISED, f"{test.sentence} Your code raised {type(error).__name__} there.")
