"""`course autograde`: the stock scores, a note for everybody, and the same table after a kill at any moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autograder.gradebook import autograde as autograde_module
from autograder.gradebook import config, preprocessors
from autograder.gradebook.autograde import Graded, autograde, class_results

from .conftest import FULL, HALF, LAB, FakeJudge, Submit, scores, stock_autograde


def grade(course: Path, group: str, student: str, **columns: float | None) -> Any:
    """Set columns of one grade by hand, as formgrader does; returns the grade's numbers."""
    with config.api(course).gradebook as book:
        row = book.find_grade(group, LAB, LAB, student)
        for name, value in columns.items():
            setattr(row, name, value)
        book.db.commit()
        return row.auto_score, row.manual_score, row.extra_credit, row.needs_manual_grade


def test_it_gives_the_scores_of_the_stock_command(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    submit("cyd", content=b"not JSON")
    ours = {line.student: line.score for line in autograde(course, LAB)}
    assert ours == scores(course) == {"ada": 15.0, "bob": 5.0, "cyd": 0.0}
    import shutil

    shutil.rmtree(course / "autograded")
    stock_autograde(course)
    assert scores(course) == ours


def test_a_class_in_another_folder_is_graded_by_this_course(
    course: Path, judge: FakeJudge, submit: Submit, tmp_path: Path
) -> None:
    submit("ada", FULL)
    term = tmp_path / "term"
    term.mkdir()
    (course / "submitted").rename(term / "submitted")
    assert [line.score for line in autograde(course, LAB, root=term)] == [15.0]
    assert (term / "gradebook.db").is_file()
    assert not (course / "autograded").exists()


def test_one_student_alone_can_be_graded(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    assert [line.student for line in autograde(course, LAB, student="bob")] == ["bob"]
    assert scores(course) == {"bob": 5.0}


def test_no_submission_is_an_error_that_says_where_was_looked(course: Path, judge: FakeJudge) -> None:
    with pytest.raises(ValueError, match=r"no submission from ada to mini in .*submitted"):
        autograde(course, LAB, student="ada")


def test_a_fault_of_ours_is_a_note_and_no_score(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    judge.infra = {"bob"}
    ada, bob = autograde(course, LAB)
    assert (ada.score, ada.note) == (15.0, "graded")
    assert bob.score is None
    assert "our fault: INFRA: no sandbox" in bob.note


def test_a_second_run_changes_nothing(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("ada", FULL)
    autograde(course, LAB)
    before = (course / "autograded" / "ada" / LAB / f"{LAB}.ipynb").stat().st_mtime_ns
    [line] = autograde(course, LAB)
    assert line.note == "unchanged"
    assert (course / "autograded" / "ada" / LAB / f"{LAB}.ipynb").stat().st_mtime_ns == before
    assert autograde(course, LAB, force=True)[0].note == "graded"


def test_a_manual_score_a_comment_and_extra_credit_survive_a_regrade(
    course: Path, judge: FakeJudge, submit: Submit
) -> None:
    path = submit("bob", HALF)
    autograde(course, LAB)
    grade(course, "tables", "bob", manual_score=9.0, extra_credit=0.5)
    with config.api(course).gradebook as book:
        book.find_comment("answer", LAB, LAB, "bob").manual_comment = "Good idea."
        book.db.commit()
    path.write_text(path.read_text().replace("tables=1", "tables=2"))
    autograde(course, LAB)
    assert grade(course, "tables", "bob") == (10.0, 9.0, 0.5, True)
    assert scores(course) == {"bob": 9.5}
    with config.api(course).gradebook as book:
        assert book.find_comment("answer", LAB, LAB, "bob").comment == "Good idea."


def test_an_untouched_solution_cell_is_marked_as_no_response(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("cyd", "class BlockAllocator:\n    # YOUR CODE HERE\n    raise NotImplementedError()")
    autograde(course, LAB)
    with config.api(course).gradebook as book:
        assert book.find_comment("answer", LAB, LAB, "cyd").comment == "No response."


def test_a_penalty_for_lateness_still_works(course: Path, judge: FakeJudge, submit: Submit, monkeypatch: Any) -> None:
    from nbgrader.plugins import LateSubmissionPlugin

    monkeypatch.setattr(LateSubmissionPlugin, "late_submission_penalty", lambda self, student, score, late: late / 3600)
    path = submit("bob", HALF)
    (path.parent / "timestamp.txt").write_text("2026-11-02 12:00:00.000000 UTC")
    with config.api(course).gradebook as book:
        book.update_or_create_assignment(LAB, duedate="2026-11-02 10:00:00.000000 UTC")
    autograde(course, LAB)
    with config.api(course).gradebook as book:
        assert book.find_submission(LAB, "bob").late_submission_penalty == 2.0


def in_a_child(work: Callable[[], Any]) -> int:
    """Run `work` in a forked process; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def killing(function: Callable[..., Any], on_call: int) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == on_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("on_call", [1, 2, 3])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (preprocessors, "show_result"),
        (preprocessors.SaveJudgedGrades, "_add_score"),
        (autograde_module, "_enter"),
        (autograde_module, "_score"),
    ],
    ids=["before the database", "between two grades", "between two students", "after a student"],
)
def test_a_kill_at_any_moment_and_a_second_run_give_the_same_table(
    course: Path, judge: FakeJudge, submit: Submit, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, on_call: int
) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    submit("cyd", content=b"not JSON")

    def run() -> None:
        setattr(owner, name, killing(getattr(owner, name), on_call))
        autograde(course, LAB)

    assert in_a_child(run) == signal.SIGKILL
    lines = autograde(course, LAB)
    assert {line.student: line.score for line in lines} == {"ada": 15.0, "bob": 5.0, "cyd": 0.0}
    assert scores(course) == {"ada": 15.0, "bob": 5.0, "cyd": 0.0}
    assert all(line.note in ("graded", "unchanged") for line in lines)
    assert [student for student, _ in class_results(course, LAB)] == ["ada", "bob", "cyd"]


def test_what_was_judged_is_not_judged_again_by_nbgrader(course: Path, judge: FakeJudge, submit: Submit) -> None:
    path = submit("ada", FULL)
    autograde(course, LAB)
    assert judge.asked == [path]


def test_a_file_that_changes_after_it_was_judged_is_judged_again(
    course: Path, judge: FakeJudge, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = submit("ada", FULL)
    enter = autograde_module._enter

    def change_first(*args: Any) -> str:
        path.write_text(path.read_text().replace("tables=2", "tables=1"))
        return enter(*args)

    monkeypatch.setattr(autograde_module, "_enter", change_first)
    assert [line.score for line in autograde(course, LAB)] == [10.0]


def test_every_student_is_reported_when_entered(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    seen: list[Graded] = []
    autograde(course, LAB, entered=seen.append)
    assert [(line.student, line.score) for line in seen] == [("ada", 15.0), ("bob", 5.0)]


def test_a_gradebook_that_was_lost_is_filled_again(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    submit("cyd", content=b"not JSON")
    autograde(course, LAB)
    before = scores(course)
    (course / "gradebook.db").unlink()
    assert {line.student: line.score for line in autograde(course, LAB)} == before == scores(course)
    assert {line.note for line in autograde(course, LAB)} == {"unchanged"}


def test_a_gradebook_from_before_a_regrade_gets_the_new_points(course: Path, judge: FakeJudge, submit: Submit) -> None:
    path = submit("bob", HALF)
    autograde(course, LAB)
    older = (course / "gradebook.db").read_bytes()
    path.write_text(path.read_text().replace("tables=1", "tables=2"))
    autograde(course, LAB)
    (course / "gradebook.db").write_bytes(older)
    [line] = autograde(course, LAB)
    assert (line.note, line.score) == ("graded", 10.0)


def test_half_a_surrogate_pair_in_a_remark_costs_nobody_the_grade(
    course: Path, judge: FakeJudge, submit: Submit, tmp_path: Path
) -> None:
    submit("ada", FULL)
    judge.flags = ("cell \ud800 failed",)
    [line] = autograde(course, LAB)
    assert (line.note, line.score) == ("graded", 15.0)
    assert [result.flags for _, result in class_results(course, LAB)] == [("cell \ufffd failed",)]
    assert autograde(course, LAB)[0].note == "unchanged"
    assert config.api(course).generate_feedback(LAB)["success"]
    page = course / "feedback" / "ada" / LAB / f"{LAB}.html"
    assert "cell \ufffd failed" in page.read_text(encoding="utf-8")


def test_a_runner_that_does_not_exist_is_named_with_those_that_do(course: Path, submit: Submit) -> None:
    submit("ada", FULL)
    with pytest.raises(ValueError, match="no runner 'cloud'; there is local"):
        autograde(course, LAB, runner="cloud")
