"""The `course` command: what it prints, writes and returns, and its words for bad input."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from autograder.cli import main
from autograder.course import Course
from autograder.grade_command import autograde_in
from autograder.gradebook import judging
from autograder.judge.verdicts import SubmissionResult
from autograder.sandbox import tiers

LAB = "lab3_block_allocator"
KEYS = {
    "lab",
    "submission",
    "sha256",
    "suite",
    "seed_id",
    "device",
    "gpu",
    "seconds",
    "status",
    "score",
    "max_score",
} | {
    "groups",
    "flags",
    "timings",
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


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """No judge process: everything is graded with no group and one remark."""
    from autograder.runners import local

    monkeypatch.setattr(tiers, "choose", lambda sandbox: "none")
    monkeypatch.setattr(
        local,
        "_run",
        lambda course, job, gpu, sharing: dataclasses.replace(
            job.result("graded", 1.25), flags=("a\ud800\nremark", "another")
        ),
    )


def folders(tmp_path: Path) -> list[str]:
    """Two submissions whose paths differ in what joins their parts."""
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "a" / "b.py", tmp_path / "a-b.py"]
    for path in paths:
        path.write_text(f"# {path.name}\n")
    return [str(path) for path in paths]


def test_feedback_keeps_the_folders_of_the_submissions(small_course: Course, tmp_path: Path, instant: None) -> None:
    pages = tmp_path / "pages"
    assert run(small_course, "grade", LAB, *folders(tmp_path), "--feedback", str(pages)) == 0
    written = {path.relative_to(pages).as_posix(): path.read_text() for path in pages.rglob("*.html")}
    assert set(written) == {"a/b.py.html", "a-b.py.html"}
    assert "Student: a/b.py<" in written["a/b.py.html"]


def test_where_no_terminal_is_each_submission_gets_a_line_as_it_comes(
    small_course: Course, tmp_path: Path, instant: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small_course, "grade", LAB, *folders(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:2]) == [f"{name}: 0 points; 1.2 s; a\ufffd remark" for name in ("a-b.py", "a/b.py")]


def test_a_terminal_gets_a_bar_and_no_lines(
    small_course: Course,
    tmp_path: Path,
    instant: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # What rich takes for a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run(small_course, "grade", LAB, *folders(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "0 points; " not in shown
    assert "2/2" in shown


def test_submissions_behind_a_link_to_the_course_get_their_lines(
    small_course: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autograder.gradebook import autograde as module
    from autograder.gradebook.autograde import Graded

    link = tmp_path / "link"
    link.symlink_to(small_course.root)
    handed_in = small_course.root / "submitted" / "ada" / LAB
    handed_in.mkdir(parents=True)
    result = SubmissionResult(LAB, str(handed_in / f"{LAB}.ipynb"), "", "1", "s", "cpu", 0.0, "rejected")

    def autograde(*args: object, judged: Callable[[SubmissionResult], None], **more: object) -> list[Graded]:
        judged(result)
        return [Graded("ada", result, None, "")]

    monkeypatch.setattr(module, "autograde", autograde)
    assert autograde_in(small_course, LAB, link, {}) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("{a}/x/../right.py",), "given more than once: {a}/right.py, {a}/x/../right.py; nothing was graded"),
        (("--json", "{a}/none/out.json"), "cannot write --json {a}/none/out.json: there is no folder {a}/none"),
        (("--json", "{a}"), "cannot write --json {a}: it is a folder"),
        (("--feedback", "{a}/right.py"), "cannot write --feedback {a}/right.py: it is no folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_graded(
    small_course: Course,
    right: Path,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from autograder.runners import local

    monkeypatch.setattr(local, "grade_files", lambda *args, **more: pytest.fail("it graded"))
    (right.parent / "x").mkdir()
    asked = [option.format(a=right.parent) for option in options]
    assert run(small_course, "grade", LAB, str(right), *asked) == 1
    assert words.format(a=right.parent) in capsys.readouterr().err


def test_the_runner_that_is_named_runs_the_jobs(
    small_course: Course, right: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def grade_files(course: Course, lab: str, paths: list[Path], **_: object) -> list[SubmissionResult]:
        return [
            SubmissionResult(lab, str(path), "", "1", "s", "cpu", 0.0, "rejected", (), ("elsewhere",)) for path in paths
        ]

    module = types.ModuleType("a_runner")
    vars(module)["grade_files"] = grade_files
    monkeypatch.setitem(sys.modules, "a_runner", module)
    monkeypatch.setitem(judging.RUNNERS, "elsewhere", "a_runner")
    assert run(small_course, "grade", LAB, str(right), "--runner", "elsewhere") == 0
    assert "rejected; elsewhere" in capsys.readouterr().out


@boxed
def test_grade_says_by_its_exit_code_that_a_file_could_not_be_graded(
    small_course: Course, right: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autograder.runners import local

    monkeypatch.setattr(local, "_run", lambda course, job, gpu, sharing: job.result("infra", 0.0))
    assert run(small_course, "grade", LAB, str(right)) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("grade", "lab9", "x.py"), "no lab 'lab9'"),
        (("grade", LAB, "x.py"), "no such file: x.py"),
        (("grade", LAB, "x.py", "--device", "cuda"), "no group that runs on a GPU"),
        (("grade", LAB, "x.py", "--slots", "0"), "--slots must be at least 1, got 0"),
        (("redteam", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("redteam", "--resume"), "--resume goes on with the file that --json names"),
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
