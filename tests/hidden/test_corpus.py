"""The wrong submissions, in this process: the tests that a header names are the tests that find it.

Owns: the proof that the hidden tests of lab 3 see the misconceptions they were written for. The honest designs are
run by `conftest.py` beside it, and all of them once more through the sandbox in `tests/autograder`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from autograder.course import load_module
from autograder.judge.subject import local

LAB = "lab3_block_allocator"
corpus = load_module(Path(__file__).parents[1] / "corpus.py", "corpus")
SUITE = {path.stem: load_module(path, path.stem) for path in (Path(__file__).parent / LAB).glob("test_*.py")}
WRONG = corpus.wrong(LAB)
KILLS = [
    pytest.param(wrong, module, test, id=f"{wrong.path.stem}-{test}")
    for wrong in WRONG
    for module, test in wrong.killed_by
]


@pytest.mark.parametrize(("wrong", "module", "test"), KILLS)
def test_a_wrong_submission_is_found_by_the_test_it_names(wrong: Any, module: str, test: str, seed: int) -> None:
    run = getattr(SUITE[module], test)
    arguments = {"make": local(load_module(wrong.path, f"wrong_{wrong.path.stem}").BlockAllocator)}
    if "seed" in inspect.signature(run).parameters:
        arguments["seed"] = seed
    # Any exception ends a hidden test in a verdict other than PASS; what must not happen is that it returns. A test of
    # cost has to say that the calls are slow: these submissions give the right answers.
    with pytest.raises(AssertionError if module == "test_cost" else Exception):
        run(**arguments)


def test_the_corpus_holds_many_designs_and_many_misconceptions() -> None:
    assert len(corpus.files(LAB, "correct")) >= 6
    assert len(WRONG) >= 28
    assert len({wrong.misconception for wrong in WRONG}) == len(WRONG)


def test_every_group_of_hidden_tests_finds_a_wrong_submission() -> None:
    assert {module for wrong in WRONG for module, _ in wrong.killed_by} >= set(SUITE) - {"test_programs"}


def test_a_header_without_its_three_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wordless.py"
    path.write_text('"""Misconception: it works."""\n')
    with pytest.raises(ValueError, match=r"wordless\.py does not open with"):
        corpus.read_wrong(path)
    path.write_text('"""Misconception: it works.\n\nKilled by: somebody\nSource: none\n"""\n')
    with pytest.raises(ValueError, match="'somebody' is not test_"):
        corpus.read_wrong(path)
