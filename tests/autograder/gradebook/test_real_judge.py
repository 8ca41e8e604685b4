"""The sample class through the real judge and its sandbox, three ways: the scores are the same.

`nbgrader autograde` as a command of its own, `course autograde`, and `course grade` on the same files.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.course import Course
from autograder.gradebook import config
from autograder.gradebook.autograde import autograde, class_results, ensure_assignment
from autograder.judge.verdicts import SubmissionResult, Verdict
from autograder.release.sample_class import Sample, build_sample_class
from autograder.report.class_report import write_class_report
from autograder.runners.local import grade_files
from autograder.sandbox.tiers import NoSandbox, choose

PROJECT = Path(__file__).resolve().parents[3]
LAB = "lab3_block_allocator"


def has_sandbox() -> bool:
    try:
        return bool(choose("auto"))
    except NoSandbox:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_sandbox(), reason="hidden grading needs a sandbox, and none works here"),
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    root = tmp_path_factory.mktemp("sample")
    return root, build_sample_class(PROJECT, LAB, root)


@pytest.fixture(scope="module")
def graded(sample: tuple[Path, list[Sample]]) -> dict[str, SubmissionResult]:
    """What `course grade` says of every file."""
    paths = [item.path for item in sample[1]]
    results = grade_files(Course.open(PROJECT), LAB, paths)
    return {item.student: result for item, result in zip(sample[1], results, strict=True)}


def scores(root: Path) -> dict[str, float]:
    with config.api(root, PROJECT).gradebook as book:
        return {s.student.id: round(s.score, 2) for s in book.assignment_submissions(LAB)}


def expected(graded: dict[str, SubmissionResult]) -> dict[str, float]:
    return {student: round(result.score, 2) for student, result in graded.items()}


def test_the_class_is_graded_as_it_was_made(
    sample: tuple[Path, list[Sample]], graded: dict[str, SubmissionResult]
) -> None:
    score = expected(graded)
    full = graded["ada"].max_score
    assert len(sample[1]) >= 8
    # A doubled or missing locked cell, and a loop in a scratch cell after the solution, cost nothing.
    for student in ("ada", "bela", "gus", "hana", "ivan"):
        assert score[student] == full, (student, graded[student].flags)
    assert 0 <= score["chen"] < full
    for student in ("dora", "emil", "fay"):
        assert score[student] == 0, student
    assert graded["emil"].status == graded["fay"].status == "rejected"
    assert all(result.status != "infra" for result in graded.values())
    assert not [t for r in graded.values() for g in r.groups for t in g.tests if t.verdict is Verdict.INFRA]


def test_the_stock_command_gives_the_same_scores(
    sample: tuple[Path, list[Sample]], graded: dict[str, SubmissionResult], tmp_path: Path
) -> None:
    root = tmp_path / "stock"
    shutil.copytree(sample[0] / "submitted", root / "submitted")
    ensure_assignment(PROJECT, LAB, root)
    nbgrader = [sys.executable, "-m", "nbgrader"]

    def run(*words: str) -> None:
        done = subprocess.run(
            [*nbgrader, *words, f"--CourseDirectory.root={root}"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run("autograde", LAB)
    assert scores(root) == expected(graded)
    run("generate_feedback", LAB)
    assert len(list((root / "feedback").glob(f"*/{LAB}/{LAB}.html"))) == len(graded)
    run("export", "--to", str(root / "grades.csv"))
    assert len((root / "grades.csv").read_text().splitlines()) == len(graded) + 1


def test_course_autograde_gives_the_same_scores_and_a_class_report(
    sample: tuple[Path, list[Sample]], graded: dict[str, SubmissionResult]
) -> None:
    root = sample[0]
    lines = autograde(PROJECT, LAB, root=root)
    assert {line.student: line.score for line in lines} == expected(graded) == scores(root)
    assert {line.note for line in lines} == {"graded"}
    assert {line.note for line in autograde(PROJECT, LAB, root=root)} == {"unchanged"}
    page, table = write_class_report(LAB, class_results(root, LAB), root / "report")
    assert len(table.read_text().splitlines()) >= len(graded) + 1
    assert f"{len(graded)} submissions" in page.read_text()
