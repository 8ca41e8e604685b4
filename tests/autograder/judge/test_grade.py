"""One submission, from file to verdicts: what each way to fail ends in, and that the rest goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autograder.course import Course
from autograder.gpu.timed import Timing
from autograder.judge import grade as grading
from autograder.judge import remote
from autograder.judge.grade import Job, grade
from autograder.judge.subject import LocalSubject
from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, TimingResult, Verdict
from autograder.nvml import Gpu
from autograder.sandbox import tiers
from autograder.sandbox.launch import Connection, StartFailed, WorkerGone
from autograder.sandbox.limits import Limits

LAB = "lab3_block_allocator"
FAST = replace(Limits(), call_s=1.0, impatient_call_s=0.5, load_cell_s=1.0, total_s=30.0)
Grader = Callable[..., SubmissionResult]


@pytest.fixture
def graded(small_course: Course, tmp_path: Path, honest: str) -> Grader:
    """Grade the honest allocator with `change` written behind it."""
    tier = next((t for t in ("bubblewrap", "unshare") if tiers.works(t)), None)
    if tier is None:
        pytest.skip("no sandbox tier works on this machine")

    def run(change: str, limits: Limits = FAST, name: str = "mine.py") -> SubmissionResult:
        path = tmp_path / name
        path.write_text(f"{honest}\nclass BlockAllocator(Honest):\n    pass\n\n{change}")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return grade(small_course, Job(LAB, str(path), name, sha256, "9-test", 7, tier), limits)

    return run


def verdicts(result: SubmissionResult) -> dict[str, Verdict]:
    return {test.name: test.verdict for group in result.groups for test in group.tests}


def overriding(method: str, body: str) -> str:
    return f"class BlockAllocator(Honest):\n    def {method}(self, *args):\n        {body}\n"


def test_an_honest_submission_gets_every_point(graded: Grader) -> None:
    result = graded("")
    assert (result.status, result.score, result.max_score) == ("graded", 15.0, 15.0)
    assert result.flags == ()


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("return []", Verdict.WRONG),
        ("raise RuntimeError('x')", Verdict.RAISED),
        ("raise SystemExit(0)", Verdict.RAISED),
        ("raise AssertionError('x')", Verdict.RAISED),
        ("raise KeyboardInterrupt", Verdict.RAISED),
        ("import os; os._exit(0)", Verdict.CRASHED),
        ("import ctypes; ctypes.string_at(1)", Verdict.CRASHED),
        ("while True: pass", Verdict.TIMEOUT),
        ("bytearray(1 << 40)", Verdict.OUT_OF_MEMORY),
        ("return [0] * 5_000_000", Verdict.PROTOCOL_VIOLATION),
        ("return 10 ** 100", Verdict.PROTOCOL_VIOLATION),
    ],
)
def test_each_way_to_fail_has_its_verdict_and_the_rest_goes_on(graded: Grader, body: str, verdict: Verdict) -> None:
    found = verdicts(graded(overriding("append", body)))
    assert found == {
        "test_appends": verdict,
        "test_holds_what_it_was_given": Verdict.PASS,
        "test_does_many_things": Verdict.PASS,
    }


def test_a_missing_method_loses_only_what_needs_it(graded: Grader) -> None:
    result = graded("del Honest.append")
    assert verdicts(result)["test_appends"] is Verdict.MISSING
    assert verdicts(result)["test_holds_what_it_was_given"] is Verdict.PASS
    assert "BlockAllocator.append is missing" in result.flags


def test_a_wrong_signature_is_named_with_the_right_one(graded: Grader) -> None:
    result = graded("class BlockAllocator(Honest):\n    def append(self, seq):\n        return []\n")
    assert verdicts(result)["test_appends"] is Verdict.MISSING
    assert any(
        "append does not take the contract's arguments" in flag and "num_tokens" in flag for flag in result.flags
    )


def test_a_missing_class_is_said_once_and_scores_nothing(graded: Grader) -> None:
    result = graded("del BlockAllocator")
    assert set(verdicts(result).values()) == {Verdict.MISSING}
    assert result.score == 0.0


def test_a_syntax_error_is_told_with_its_line(graded: Grader) -> None:
    result = graded("def broken(:\n    pass\n")
    assert any("mine.py stopped at line" in flag and "SyntaxError" in flag for flag in result.flags)
    assert set(verdicts(result).values()) == {Verdict.MISSING}


def test_an_error_in_a_cell_is_a_remark_and_what_stands_before_it_counts(graded: Grader) -> None:
    result = graded("1 / 0")
    assert result.score == 15.0
    assert any("ZeroDivisionError" in flag for flag in result.flags)


def test_a_file_that_never_ends_is_left_out_and_said(graded: Grader) -> None:
    result = graded("while True: pass")
    assert any("ran longer than 1 s and was left out" in flag for flag in result.flags)
    assert set(verdicts(result).values()) == {Verdict.MISSING}


def test_a_file_whose_load_was_held_up_once_is_loaded_by_the_next_worker(
    graded: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_up = []

    class HeldUpOnce(Connection):
        def request(self, deadline_s: float, **message: Any) -> dict[str, Any]:
            if message["op"] == "exec" and message["name"] == "mine.py" and not held_up:
                held_up.append(deadline_s)
                raise WorkerGone("deadline")
            return super().request(deadline_s, **message)

    monkeypatch.setattr(remote, "Connection", HeldUpOnce)
    result = graded("")
    assert held_up == [1.0]
    assert (result.score, result.flags) == (15.0, ())


@pytest.mark.parametrize("test", ["test_appends", "test_does_many_things"])
def test_a_worker_that_does_not_start_between_two_tests_is_never_the_students_fault(
    graded: Grader, monkeypatch: pytest.MonkeyPatch, test: str
) -> None:
    """In a plain test and in one of hypothesis, which takes any Exception for a counterexample."""
    started = []

    class StartsOnce(Connection):
        def __init__(self, *args: Any, **named: Any) -> None:
            if started:
                raise StartFailed("no process left")
            super().__init__(*args, **named)
            started.append(self)

    class Session(remote.Session):
        def worker(self) -> Connection:
            if running == [test]:
                self.fresh()
                running.clear()
            return super().worker()

    running: list[str] = []
    run = grading.run_test

    def run_and_lose(hidden: Any, *args: Any) -> Any:
        running[:] = [hidden.name]
        return run(hidden, *args)

    monkeypatch.setattr(remote, "Connection", StartsOnce)
    monkeypatch.setattr(grading, "Session", Session)
    monkeypatch.setattr(grading, "run_test", run_and_lose)
    result = graded("")
    assert (result.status, result.groups) == ("infra", ())
    assert result.flags == ("INFRA: no process left",)


def test_a_submission_that_sleeps_in_every_call_ends_with_its_budget(graded: Grader) -> None:
    slow = "import time\n" + overriding("__init__", "time.sleep(0.9); Honest.__init__(self, *args)")
    start = time.monotonic()
    result = graded(slow, replace(FAST, total_s=1.5))
    assert time.monotonic() - start < 10
    assert Verdict.NOT_RUN in verdicts(result).values()


def test_after_some_timeouts_the_deadline_shrinks_so_that_the_rest_is_reached(graded: Grader) -> None:
    limits = replace(FAST, call_s=3.0, impatient_call_s=0.2, patience=0)
    start = time.monotonic()
    result = graded(overriding("append", "while True: pass"), limits)
    assert time.monotonic() - start < 8
    assert verdicts(result)["test_does_many_things"] is Verdict.PASS


def test_a_worker_that_keeps_dying_is_not_started_for_ever(graded: Grader) -> None:
    result = graded(overriding("__init__", "import os; os._exit(1)"), replace(FAST, restarts=2))
    found = list(verdicts(result).values())
    assert found.count(Verdict.CRASHED) == 2
    assert found.count(Verdict.NOT_RUN) == 1


def test_no_text_of_an_exception_from_a_hidden_test_reaches_the_result(graded: Grader) -> None:
    smuggle = "raise type('SECRET' + repr(args), (Exception,), {'__module__': 'builtins'})('SECRET' + repr(args))"
    result = graded(overriding("append", smuggle))
    assert verdicts(result)["test_appends"] is Verdict.RAISED
    assert "SECRET" not in str([group.tests for group in result.groups])


def test_a_public_counterexample_comes_from_a_worker_that_met_no_hidden_test(graded: Grader) -> None:
    remember = (
        "met = []\n"
        "class BlockAllocator(Honest):\n"
        "    def __init__(self, num_blocks, block_size):\n"
        "        met.append(num_blocks)\n"
        "        super().__init__(num_blocks, block_size)\n"
        "    def num_tokens(self, seq):\n"
        "        return 1000 in met and 9999 or 0\n"
    )
    result = graded(remember)
    tables = next(group for group in result.groups if group.id == "tables")
    assert tables.counterexample
    assert "9999" not in tables.counterexample


def test_a_broken_hidden_test_is_our_fault_and_never_scored(small_course: Course, graded: Grader) -> None:
    hidden = small_course.lab(LAB).hidden / "test_cost.py"
    hidden.write_text('GROUP = "cost"\n\n\ndef test_broken(make):\n    """It breaks."""\n    1 / 0\n')
    result = graded("")
    assert (result.status, result.groups) == ("infra", ())
    assert "test_broken fails on the reference" in result.flags[0]


def test_an_answer_of_an_unforeseen_form_is_wrong_and_never_our_fault(small_course: Course, graded: Grader) -> None:
    hidden = small_course.lab(LAB).hidden / "test_cost.py"
    hidden.write_text(
        'GROUP = "cost"\n\n\ndef test_adds(make):\n    """Counts can be added."""\n'
        "    assert make(2, 2).num_free_blocks + 1 == 3, 'no'\n"
    )
    result = graded("class BlockAllocator(Honest):\n    num_free_blocks = None\n")
    assert result.status == "graded"
    assert verdicts(result)["test_adds"] is Verdict.WRONG


def test_a_rejected_file_is_told_why_and_scores_nothing(small_course: Course, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    result = grade(small_course, Job(LAB, str(path), "notes.txt", "00", "9-test", 7, "bubblewrap"))
    assert (result.status, result.score, result.max_score) == ("rejected", 0.0, 15.0)
    assert "neither a notebook" in result.flags[0]


def test_a_file_that_changed_since_it_was_named_is_not_graded(small_course: Course, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("class BlockAllocator: pass\n")
    result = grade(small_course, Job(LAB, str(path), "mine.py", "0" * 64, "9-test", 7, "none"))
    assert (result.status, result.groups) == ("infra", ())
    assert "changed" in result.flags[0]


def test_many_slow_cells_end_with_the_budget_and_are_never_our_fault(small_course: Course, tmp_path: Path) -> None:
    cell = {"cell_type": "code", "source": "import time; time.sleep(0.9)", "metadata": {}}
    path = tmp_path / "slow.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "metadata": {}, "cells": [cell] * 30}))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    start = time.monotonic()
    result = grade(small_course, Job(LAB, str(path), "slow", sha256, "9", 7, "none"), replace(FAST, total_s=3.0))
    assert time.monotonic() - start < 8
    assert (result.status, result.score) == ("graded", 0.0)


def test_a_remark_with_half_a_character_can_still_be_written(graded: Grader) -> None:
    result = graded("raise ValueError('\\ud800\\x1b[2J')")
    assert any("ValueError" in flag for flag in result.flags)
    json.dumps(result.to_json(), ensure_ascii=False).encode("utf-8")
    assert "\x1b" not in str(result.to_json())


@pytest.mark.parametrize("name", ["ExceptionGroup('x', [ValueError()])", "UnicodeDecodeError('u', b'', 0, 1, 'x')"])
def test_every_kind_of_exception_is_a_raised_one(graded: Grader, name: str) -> None:
    assert verdicts(graded(overriding("append", f"raise {name}")))["test_appends"] is Verdict.RAISED


def test_a_group_without_hidden_tests_is_our_fault(small_course: Course, graded: Grader) -> None:
    (small_course.lab(LAB).hidden / "test_cost.py").unlink()
    result = graded("")
    assert result.status == "infra"
    assert "cost" in result.flags[0]


def test_a_test_for_another_device_is_not_run_and_says_where_it_is(small_course: Course, graded: Grader) -> None:
    hidden = small_course.root / "tests" / "hidden" / LAB
    (hidden / "test_more.py").write_text(
        'GROUP = "cost"\nDEVICE = "cuda"\n\n\ndef test_needs_a_gpu(make):\n    """A GPU is there."""\n    assert 0\n'
    )
    result = graded("")
    (cost,) = [group for group in result.groups if group.id == "cost"]
    (skipped,) = [test for test in cost.tests if test.name == "test_needs_a_gpu"]
    assert (skipped.verdict, skipped.counts) == (Verdict.NOT_RUN, False)
    assert skipped.message == "A GPU is there. Runs on a grader with a GPU only."
    assert cost.points == cost.max_points


TIMED = """
GROUP = "cost"
TIMED = True


def test_is_timed(make):
    \"\"\"It has a clock.\"\"\"
    make(2, 2).timed()


def test_is_timed_once(make):
    \"\"\"The clock is asked once.\"\"\"
    make(2, 2).timed()
"""


class Clock:
    """Stands in for what plays and times on a GPU."""

    def __init__(self, turns: object) -> None:
        pass

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    together = staticmethod(nullcontext)


@pytest.fixture
def on_a_gpu(small_course: Course, tmp_path: Path, honest: str, monkeypatch: pytest.MonkeyPatch) -> Grader:
    """Grade as on a GPU, with subjects of ours whose timing is `timing`, seen once for both tests."""

    def run(timing: Timing, tests: str = TIMED, sanitize: bool = False) -> SubmissionResult:
        def make_both(lab: Any, name: str, session: Any, faults: Any, stand: Any, seen: Any) -> Any:
            class Timed(LocalSubject):
                def timed(self) -> None:
                    if not seen:
                        seen.append(("equal lengths, batch 1 of 1", timing))

            return (lambda *args: Timed(lab.reference(name)(*args)), lambda *args: Timed(lab.reference(name)(*args)))

        monkeypatch.setattr(grading, "_stand", Clock)
        monkeypatch.setattr(grading, "on_the_gpu", make_both)
        (small_course.lab(LAB).hidden / "test_speed.py").write_text(tests)
        path = tmp_path / "mine.py"
        path.write_text(f"{honest}\nBlockAllocator = Honest\n")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return grade(small_course, Job(LAB, str(path), "mine.py", sha256, "9-test", 7, "none", "cuda", sanitize), FAST)

    return run


def test_what_the_clock_saw_is_told_once_under_its_group_and_rounded(on_a_gpu: Grader) -> None:
    result = on_a_gpu(Timing(131.2345, 117.0, 119.0, 400_123_456, 3.3e12, ""))
    assert result.status == "graded"
    assert result.timings == (TimingResult("cost", "equal lengths, batch 1 of 1", 131.0, 118.0, 0.924, 1.03),)


def test_a_result_of_a_gpu_names_its_kind(on_a_gpu: Grader, graded: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        grading, "gpus", lambda: (Gpu("GPU-2", "nvidia1", "NVIDIA X"), Gpu("GPU-1", "nvidia0", "other"))
    )
    assert on_a_gpu(Timing(131.0, 117.0, 119.0, 400_000_000, 3.3e12, "")).gpu == "NVIDIA X"
    assert graded("").gpu == ""


def test_a_look_at_memory_accesses_is_a_group_behind_the_others_and_changes_no_score(
    on_a_gpu: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = GroupResult("sanitizer", "A look", 0.0, (TestResult("test_a", Verdict.WRONG, "Not so.", counts=False),))
    monkeypatch.setattr("autograder.gpu.sanitize.group", lambda source, turn: found)
    timing = Timing(131.0, 117.0, 119.0, 400_000_000, 3.3e12, "")
    without, examined = on_a_gpu(timing), on_a_gpu(timing, sanitize=True)
    assert examined.groups == (*without.groups, found)
    assert (examined.score, examined.max_score) == (without.score, without.max_score)
    assert SubmissionResult.from_json(examined.to_json()) == examined


def test_without_a_clock_there_are_no_timings(on_a_gpu: Grader, graded: Grader) -> None:
    assert graded("").timings == ()
    untimed = TIMED.replace("make(2, 2).timed()", "make(2, 2)")
    assert on_a_gpu(Timing(131.0, 118.0, 118.0, 400_000_000, 3.3e12, ""), untimed).timings == ()
