"""Stock `nbgrader autograde` with this course's configuration: no kernel, no aborted class, the judge's points.

N1 to N28 number the known attacks on stock nbgrader; each of those tested here works there.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import nbformat
import pytest

from autograder.judge.verdicts import TimingResult

from .conftest import FULL, HALF, LAB, FakeJudge, Submit, cell, scores, stock_autograde

LIES = {
    "N1 ast_transformers": "get_ipython().ast_transformers.append(object())",
    "N2 forged output": "get_ipython().events.register('pre_run_cell', lambda info: get_ipython().displayhook(10.0))",
    "N3 reading tests": "get_ipython().events.register('pre_run_cell', lambda i: open('leak', 'w').write(i.raw_cell))",
    "N5 eq": "class Yes:\n    def __eq__(self, other): return True",
    "N6 trigger": "import sqlite3; sqlite3.connect('../../../gradebook.db').execute('DROP TABLE grade')",
    "N13 exit": "import os; os._exit(0)",
    "N14 loop": "while True: pass",
    "N15 flood": "print('x' * 5_000_000)",
    "N16 daemon": "import os\nif os.fork() == 0: os.setsid(); open('daemon.txt', 'w')",
}


def autograded(course: Path, student: str) -> Any:
    return nbformat.read(course / "autograded" / student / LAB / f"{LAB}.ipynb", as_version=4)


def locked_text(notebook: Any, grade_id: str) -> str:
    return str(cell(notebook, grade_id)["outputs"][0]["text"])


def test_scores_are_the_judges(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    submit("cyd", "")
    assert stock_autograde(course)["success"]
    assert scores(course) == {"ada": 15.0, "bob": 5.0, "cyd": 0.0}


def test_the_report_stands_in_the_locked_cells(course: Path, judge: FakeJudge, submit: Submit) -> None:
    judge.flags = ("the grade cell growth stands 2 times",)
    submit("bob", HALF)
    stock_autograde(course)
    notebook = autograded(course, "bob")
    first, second = locked_text(notebook, "tables"), locked_text(notebook, "growth")
    assert "Score from the autograder: 5 of 15 points." in first
    assert "Remark: the grade cell growth stands 2 times" in first
    assert "[x] passed: tables test 0" in first
    assert "[ ] wrong result: tables test 1. It differs." in first
    assert second.startswith("Title of growth: 0 of 5 points")


def test_what_the_clock_saw_stands_in_the_locked_cell_of_its_group(
    course: Path, judge: FakeJudge, submit: Submit
) -> None:
    judge.timings = (TimingResult("growth", "equal lengths, batch 1 of 1", 131.0, 118.0, 0.8, 0.9),)
    submit("bob", HALF)
    stock_autograde(course)
    notebook = autograded(course, "bob")
    line = "Share of the read ceiling: yours 80.0 %, the reference 90.0 %."
    assert line in locked_text(notebook, "growth")
    assert line not in locked_text(notebook, "tables")


@pytest.mark.parametrize("lie", LIES)
def test_nothing_that_a_cell_does_reaches_the_grade_since_no_cell_runs_here(
    course: Path, judge: FakeJudge, submit: Submit, lie: str
) -> None:
    submit("eve", LIES[lie])
    submit("zoe", FULL)
    before = set(course.rglob("*"))
    assert stock_autograde(course)["success"]
    assert scores(course) == {"eve": 0.0, "zoe": 15.0}
    new = {path.relative_to(course).parts[0] for path in set(course.rglob("*")) - before}
    assert new == {"autograded"}


def test_forged_outputs_in_the_submitted_file_are_not_read(course: Path, judge: FakeJudge, submit: Submit) -> None:
    """N2 without a hook: the execute_result is simply written into the file."""

    def forge(notebook: Any) -> None:
        cell(notebook, "tables")["outputs"] = [
            {"output_type": "execute_result", "data": {"text/plain": "10.0"}, "metadata": {}, "execution_count": 1}
        ]

    submit("eve", "", forge)
    stock_autograde(course)
    assert scores(course) == {"eve": 0.0}
    assert "10.0" not in json.dumps(cell(autograded(course, "eve"), "tables")["outputs"])


def test_files_beside_the_notebook_are_not_copied(
    course: Path, judge: FakeJudge, submit: Submit, tmp_path: Path
) -> None:
    """N7, N8, N28: shadowing modules, links, pipes and folders stay where they are."""
    private = tmp_path / "private.txt"
    private.write_text("of the instructor")
    folder = submit("eve", HALF).parent
    (folder / "yaml.py").write_text("raise SystemExit")
    (folder / "notes.txt").symlink_to(private)
    (folder / "etc").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(folder / "pipe")
    (folder / "submission_secret.txt").symlink_to(private)
    (folder / "deep").mkdir()
    (folder / "deep" / "torch.py").write_text("raise SystemExit")
    (folder / "timestamp.txt").write_text("2026-11-01 10:00:00.000000 UTC")
    assert stock_autograde(course)["success"]
    copied = {path.name for path in (course / "autograded" / "eve" / LAB).iterdir()}
    assert "instructor" not in (course / "autograded" / "eve" / LAB / "submission_secret.txt").read_text()
    assert copied == {f"{LAB}.ipynb", "submission_secret.txt", "timestamp.txt"}


def test_a_link_instead_of_the_notebook_is_refused(
    course: Path, judge: FakeJudge, submit: Submit, tmp_path: Path
) -> None:
    """N8: a classmate's notebook is not graded as one's own, and is not shown."""
    other = submit("ada", FULL)
    path = submit("eve", "")
    path.unlink()
    path.symlink_to(other)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"ada": 15.0, "eve": 0.0}
    assert FULL not in json.dumps(autograded(course, "eve"))


def test_edited_points_locks_and_tests_are_the_courses_again(course: Path, judge: FakeJudge, submit: Submit) -> None:
    """N9."""

    def edit(notebook: Any) -> None:
        locked = cell(notebook, "tables")
        locked["source"] = "print('mine')"
        locked["metadata"]["nbgrader"].update(points=1000, locked=False, solution=True)
        notebook["metadata"]["kernelspec"] = {"name": "evil", "display_name": "evil", "argv": ["sh"]}

    submit("eve", HALF, edit)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"eve": 5.0}
    restored = cell(autograded(course, "eve"), "tables")
    assert restored["source"] == "# Graded by hidden tests: tables."
    assert restored["metadata"]["nbgrader"]["points"] == 10


def test_a_deleted_grade_cell_is_put_back_and_scored(course: Path, judge: FakeJudge, submit: Submit) -> None:
    """N10: stock leaves the score empty and waits for a human for ever."""

    def delete(notebook: Any) -> None:
        notebook["cells"].remove(cell(notebook, "tables"))

    submit("bob", HALF, delete)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 5.0}
    ids = [c.metadata.get("nbgrader", {}).get("grade_id") for c in autograded(course, "bob").cells]
    assert [i for i in ids if i] == ["answer", "tables", "growth"]


def test_a_deleted_solution_cell_gives_nothing_and_stops_nobody(course: Path, judge: FakeJudge, submit: Submit) -> None:
    def delete(notebook: Any) -> None:
        notebook["cells"] = [c for c in notebook["cells"] if c["cell_type"] == "markdown"]

    submit("bob", FULL, delete)
    submit("zoe", FULL)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 0.0, "zoe": 15.0}


@pytest.mark.parametrize("grade_id", ["tables", "answer"])
def test_a_doubled_cell_does_not_end_the_class(course: Path, judge: FakeJudge, submit: Submit, grade_id: str) -> None:
    """N11: stock aborts here, and nobody after this student is graded."""

    def double(notebook: Any) -> None:
        notebook["cells"].append(dict(cell(notebook, grade_id)))

    submit("ada", FULL)
    submit("bob", HALF, double)
    submit("zoe", FULL)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"ada": 15.0, "bob": 5.0, "zoe": 15.0}


@pytest.mark.parametrize("version", [0, 1, 99, -1, "3", None, [3], 1e400])
def test_a_lie_about_the_schema_version_does_not_end_the_class(
    course: Path, judge: FakeJudge, submit: Submit, version: Any
) -> None:
    """N12."""

    def lie(notebook: Any) -> None:
        for c in notebook["cells"]:
            if "nbgrader" in c["metadata"]:
                c["metadata"]["nbgrader"]["schema_version"] = version

    submit("bob", HALF, lie)
    submit("zoe", FULL)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 5.0, "zoe": 15.0}


BROKEN: dict[str, bytes] = {
    "not JSON": b"this is no notebook",
    "empty": b"",
    "a JSON list": b"[]",
    "a JSON number": b"17",
    "not UTF-8": b"\xff\xfe\x00{",
    "nested without end": b"[" * 100_000,
    "no cells": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
    "cells of wrong kind": b'{"nbformat": 4, "metadata": 3, '
    b'"cells": [1, null, {"cell_type": 5, "source": 7, "metadata": []}]}',
    "format 3": b'{"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": []}]}',
    "format 99": b'{"nbformat": 99, "metadata": {}, "cells": []}',
    "half a surrogate": b'{"nbformat": 4, "metadata": {}, '
    b'"cells": [{"cell_type": "code", "metadata": {}, "source": "\\ud800"}]}',
    "grade_id of wrong kind": b'{"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "code", "source": "", '
    b'"metadata": {"nbgrader": {"grade_id": {"a": 1}, "grade": true}}}]}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_gets_zero_and_a_page_and_stops_nobody(
    course: Path, judge: FakeJudge, submit: Submit, kind: str
) -> None:
    submit("bob", content=BROKEN[kind])
    submit("zoe", FULL)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 0.0, "zoe": 15.0}
    assert cell(autograded(course, "bob"), "tables")["outputs"]


def test_a_huge_file_is_not_read(course: Path, judge: FakeJudge, submit: Submit) -> None:
    path = submit("bob", "")
    with path.open("wb") as stream:
        stream.truncate(100 << 20)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 0.0}
    assert (course / "autograded" / "bob" / LAB / f"{LAB}.ipynb").stat().st_size < 1 << 20


def test_a_folder_without_the_notebook_is_scored_like_a_broken_one(
    course: Path, judge: FakeJudge, submit: Submit
) -> None:
    path = submit("bob", FULL)
    path.rename(path.with_name("my_solution.ipynb"))
    submit("zoe", FULL)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 0.0, "zoe": 15.0}


def test_a_pipe_or_socket_instead_of_the_notebook_holds_nobody_up(
    course: Path, judge: FakeJudge, submit: Submit
) -> None:
    path = submit("bob", "")
    path.unlink()
    os.mkfifo(path)
    other = submit("cyd", "")
    other.unlink()
    here = Path.cwd()
    os.chdir(other.parent)  # the name of a socket may be short only
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind(other.name)
    finally:
        os.chdir(here)
    assert stock_autograde(course)["success"]
    server.close()
    assert scores(course) == {"bob": 0.0, "cyd": 0.0}


@pytest.mark.parametrize("content", [b"yesterday", b"\xff", b"x" * 10_000])
def test_a_timestamp_that_is_none_costs_no_grade(
    course: Path, judge: FakeJudge, submit: Submit, content: bytes
) -> None:
    path = submit("bob", HALF)
    (path.parent / "timestamp.txt").write_bytes(content)
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 5.0}
    assert list(path.parent.glob("timestamp.unreadable.*"))


def test_a_fault_of_ours_scores_nobody_and_the_next_run_repairs_it(
    course: Path, judge: FakeJudge, submit: Submit
) -> None:
    submit("bob", HALF)
    submit("zoe", FULL)
    judge.infra = {"bob"}
    assert not stock_autograde(course)["success"]
    assert scores(course)["zoe"] == 15.0
    assert not (course / "autograded" / "bob" / LAB).exists()
    judge.infra = set()
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 5.0, "zoe": 15.0}


def test_half_done_work_of_a_killed_run_is_done_again(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("bob", HALF)
    half = course / "autograded" / "bob" / LAB
    half.mkdir(parents=True)
    (half / f"{LAB}.ipynb").write_bytes((course / "submitted" / "bob" / LAB / f"{LAB}.ipynb").read_bytes())
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 5.0}


def test_finished_work_is_not_graded_again(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("bob", HALF)
    stock_autograde(course)
    asked = len(judge.asked)
    assert stock_autograde(course)["success"]
    assert len(judge.asked) == asked


def test_a_newer_submission_is_graded(course: Path, judge: FakeJudge, submit: Submit) -> None:
    path = submit("bob", HALF)
    (path.parent / "timestamp.txt").write_text("2026-11-01 10:00:00.000000 UTC")
    stock_autograde(course)
    path.write_text(path.read_text().replace("tables=1", "tables=2"))
    (path.parent / "timestamp.txt").write_text("2026-11-02 10:00:00.000000 UTC")
    assert stock_autograde(course)["success"]
    assert scores(course) == {"bob": 10.0}


def test_the_students_own_cells_are_kept_for_a_human_reader(course: Path, judge: FakeJudge, submit: Submit) -> None:
    def add(notebook: Any) -> None:
        own = {"cell_type": "markdown", "metadata": {"nbgrader": 7}, "source": ["My ", "idea"], "attachments": {"a": 1}}
        notebook["cells"].insert(2, own)

    submit("bob", HALF, add)
    assert stock_autograde(course)["success"]
    sources = [c.source for c in autograded(course, "bob").cells]
    assert sources == [
        "# A small lab",
        HALF,
        "My idea",
        "# Graded by hidden tests: tables.",
        "# Graded by hidden tests: growth.",
    ]
