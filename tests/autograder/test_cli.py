"""The `course` command: what it prints, writes and returns, and its words for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autograder.cli import main
from autograder.course import Course
from autograder.judge.verdicts import SubmissionResult
from autograder.sandbox import tiers

LAB = "lab3_block_allocator"
KEYS = {"lab", "submission", "sha256", "suite", "seed_id", "device", "seconds", "status", "score", "max_score"} | {
    "groups",
    "flags",
}
boxed = pytest.mark.skipif(
    not any(tiers.works(tier) for tier in ("bubblewrap", "unshare")), reason="no sandbox tier works on this machine"
)


@pytest.fixture
def right(tmp_path: Path, honest: str) -> Path:
    path = tmp_path / "right.py"
    path.write_text(f"{honest}\nclass BlockAllocator(Honest):\n    pass\n")
    return path


def run(course: Course, *args: str) -> int:
    return main(["--root", str(course.root), *args])


@boxed
def test_grade_writes_one_object_per_submission_and_a_page_each(
    small_course: Course, right: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.ipynb"
    bad.write_text("not a notebook")
    out, pages = tmp_path / "out.json", tmp_path / "pages"
    code = run(small_course, "grade", LAB, str(right), str(bad), "--json", str(out), "--feedback", str(pages))
    assert code == 0, "every file was graded, whatever the scores"
    results = json.loads(out.read_text())
    assert [set(result) for result in results] == [KEYS, KEYS]
    assert [(result["status"], result["score"]) for result in results] == [("graded", 15.0), ("rejected", 0.0)]
    assert {path.name for path in pages.iterdir()} == {"right.py.html", "bad.ipynb.html"}
    assert "right.py" in capsys.readouterr().out


@boxed
def test_grade_says_by_its_exit_code_that_a_file_could_not_be_graded(
    small_course: Course, right: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autograder.runners import local

    monkeypatch.setattr(local, "_run", lambda course, job: job.result("infra", 0.0))
    assert run(small_course, "grade", LAB, str(right)) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("grade", "lab9", "x.py"), "no lab 'lab9'"),
        (("grade", LAB, "x.py"), "no such file: x.py"),
        (("grade", LAB, "x.py", "--device", "cuda"), "no group that runs on a GPU"),
        (("grade", LAB, "x.py", "--slots", "0"), "--slots must be at least 1, got 0"),
        (("report", "lab9"), "no lab 'lab9'"),
        (("bundle", "lab9"), "no lab 'lab9'"),
        (("autograde", LAB), "no submission"),
    ],
)
def test_bad_input_is_one_line_that_names_it(
    small_course: Course, args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small_course, *args) == 1
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


def test_a_folder_that_is_no_course_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "where"]) == 1
    assert f"{tmp_path} is no course" in capsys.readouterr().err


def test_without_a_sandbox_grading_refuses_and_names_the_remedy(
    small_course: Course, right: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tiers, "works", lambda tier: False)
    assert run(small_course, "grade", LAB, str(right)) == 1
    shown = capsys.readouterr().err
    assert "--sandbox none" in shown
    assert "bubblewrap" in shown


def test_without_a_sandbox_it_grades_only_when_told_so_in_so_many_words(
    small_course: Course, right: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    assert run(small_course, "grade", LAB, str(right), "--sandbox", "none", "--json", str(out)) == 0
    (data,) = json.loads(out.read_text())
    assert SubmissionResult.from_json(data).score == 15.0


@boxed
def test_doctor_shows_denies_beside_controls(small_course: Course, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(small_course, "doctor") == 0
    shown = capsys.readouterr().out
    assert "ok  deny_connect" in shown
    assert "ok  allow_socketpair" in shown
    assert "BAD" not in shown
