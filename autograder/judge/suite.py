"""The hidden tests of a lab, as plain functions.

Owns: finding them (`tests/hidden/<lab>/test_<group>.py`, each naming its GROUP) and running one, from call to
verdict. The same files are collected by pytest, which runs them on the reference; here pytest is not involved, and
nothing of the student's is near. Knows nothing of points.
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
    """A hidden test failed by a fault of its own."""


@dataclass(frozen=True)
class HiddenTest:
    """One property. `sentence`, the docstring's first line, is what the student reads."""

    group: str
    name: str
    sentence: str
    run: Callable[..., None]

    @property
    def wants_seed(self) -> bool:
        return "seed" in inspect.signature(self.run).parameters


def hidden_tests(lab: Lab) -> list[HiddenTest]:
    """Every hidden test of `lab`, in file order. Raises: SuiteBroken for a file without GROUP or a wordless test."""
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
            found.append(HiddenTest(group, name, sentence, function))
    return found


def run_test(test: HiddenTest, make: Make, seed: int) -> TestResult:
    """One test to its verdict. Raises: SuiteBroken for an error that is not the student's."""
    arguments: dict[str, Any] = {"make": make}
    if test.wants_seed:
        arguments["seed"] = seed
    try:
        test.run(**arguments)
    except TestEnded as ended:
        return TestResult(test.name, ended.verdict, f"{test.sentence} Ended early: {ended.message}.")
    except AssertionError as failed:
        if isinstance(failed, StudentRaised):
            return _raised(test, failed)
        words = failed.args[0] if failed.args and isinstance(failed.args[0], str) else "the property does not hold"
        return TestResult(test.name, Verdict.WRONG, f"{test.sentence} Not so: {words}.")
    except Exception as error:
        return _from_exception(test, error)
    return TestResult(test.name, Verdict.PASS, test.sentence)


def _from_exception(test: HiddenTest, error: Exception) -> TestResult:
    """Hypothesis may wrap the student's exception into a group or report that a rerun went differently."""
    if isinstance(error, StudentRaised):
        return _raised(test, error)
    if isinstance(error, ExceptionGroup):
        return _from_exception(test, error.exceptions[0])
    if type(error).__module__.startswith("hypothesis") and type(error).__name__.startswith("Flaky"):
        return TestResult(test.name, Verdict.WRONG, f"{test.sentence} Not so, and differently when run again.")
    raise SuiteBroken(f"{test.name}: {type(error).__name__}: {error}") from error


def _raised(test: HiddenTest, error: Exception) -> TestResult:
    return TestResult(test.name, Verdict.RAISED, f"{test.sentence} Your code raised {type(error).__name__} there.")
