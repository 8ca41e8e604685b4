"""The wrong submissions of lab 4, in this process: the tests that a header names are the tests that find it.

Owns: the proof that the hidden tests of lab 4 see the misconceptions they were written for, in the interpreter or on a
GPU. The honest designs are run by `conftest.py` beside it, and all of them through the sandbox in `tests/autograder`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from autograder.course import load_module
from autograder.judge.functions import local_functions
from tests import corpus
from tests.triton_here import import_triton

LAB = "lab4_paged_attention"
CRASHES = {"garbage_entries_are_addresses"}
"""Wrong in a way that ends the process, so they run in the sandbox only."""
SUITE = {path.stem: load_module(path, path.stem) for path in (Path(__file__).parent / LAB).glob("test_*.py")}
WRONG = corpus.wrong(LAB)
KILLS = [
    pytest.param(wrong, module, test, id=f"{wrong.path.stem}-{test}")
    for wrong in WRONG
    for module, test in wrong.killed_by
    if wrong.path.stem not in CRASHES
]
_LOADED: dict[Path, Any] = {}


@pytest.mark.parametrize(("wrong", "module", "test"), KILLS)
def test_a_wrong_submission_is_found_by_the_test_it_names(
    wrong: corpus.Wrong, module: str, test: str, seed: int
) -> None:
    device = import_triton()
    if not device:
        pytest.skip("Triton is not installed here")
    run = getattr(SUITE[module], test)
    if wrong.path not in _LOADED:
        _LOADED[wrong.path] = load_module(wrong.path, f"wrong_{wrong.path.stem}")
    arguments = {"make": local_functions(_LOADED[wrong.path], device)}
    if "seed" in inspect.signature(run).parameters:
        arguments["seed"] = seed
    # Any exception ends a hidden test in a verdict other than PASS; what must not happen is that it returns.
    with pytest.raises(Exception):  # noqa: B017
        run(**arguments)


def test_the_corpus_holds_many_designs_and_many_misconceptions() -> None:
    assert len(corpus.files(LAB, "correct")) >= 5
    assert len(WRONG) >= 25
    assert len({wrong.misconception for wrong in WRONG}) == len(WRONG)


def test_every_group_of_hidden_tests_finds_a_wrong_submission() -> None:
    anywhere = {stem for stem, module in SUITE.items() if not hasattr(module, "DEVICE")}
    assert {module for wrong in WRONG for module, _ in wrong.killed_by} == anywhere


def test_few_kinds_of_calls_are_asked_for() -> None:
    """A GPU compiles each kernel for each kind."""
    from autograder.judge import attention_cases

    kinds = {kind for kind in vars(attention_cases).values() if isinstance(kind, attention_cases.Kind)}
    assert len(kinds) <= 16
