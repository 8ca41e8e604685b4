"""What leaves the gradebook: pages that run nothing, and a CSV that a spreadsheet cannot be tricked with."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from nbgrader.utils import capture_log

from autograder.gradebook import config
from autograder.gradebook.autograde import autograde
from autograder.gradebook.collect import MAX_FILES, copy_regular_files
from autograder.gradebook.export import SafeCsvExportPlugin

from .conftest import FULL, HALF, LAB, FakeJudge, Submit, cell

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def feedback(course: Path, student: str) -> str:
    assert config.api(course).generate_feedback(LAB)["success"]
    return (course / "feedback" / student / LAB / f"{LAB}.html").read_text()


def test_generate_feedback_gives_a_page_with_score_groups_and_work(
    course: Path, judge: FakeJudge, submit: Submit
) -> None:
    submit("bob", HALF)
    autograde(course, LAB)
    page = feedback(course, "bob")
    assert "<strong>5 of 15 points</strong>" in page
    assert "<h2>Title of tables</h2>" in page
    assert "points: tables=1" in page


def test_the_page_shows_what_a_human_changed(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("bob", HALF)
    autograde(course, LAB)
    with config.api(course).gradebook as book:
        book.find_grade("tables", LAB, LAB, "bob").manual_score = 8.0
        book.find_comment("answer", LAB, LAB, "bob").manual_comment = "Better than it looks."
        book.db.commit()
    page = feedback(course, "bob")
    assert "<strong>8 of 15 points</strong>" in page
    assert "8 of 10 points (the autograder gave 5)" in page
    assert "Better than it looks." in page


def test_nothing_that_a_student_wrote_is_markup_in_the_page(course: Path, judge: FakeJudge, submit: Submit) -> None:
    """N25: names, remarks, Markdown and code."""

    def add(notebook: Any) -> None:
        notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": ATTACK})
        cell(notebook, "tables")["outputs"] = [
            {"output_type": "display_data", "data": {"text/html": ATTACK}, "metadata": {}}
        ]

    judge.flags = (f"cell 7 raised {ATTACK}",)
    student = "<script>alert(3)<script>"
    submit(student, f"# {ATTACK}\n{HALF}", add)
    autograde(course, LAB)
    page = feedback(course, student)
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<img" not in page


def test_the_page_asks_nothing_of_a_network(course: Path, judge: FakeJudge, submit: Submit) -> None:
    submit("bob", HALF)
    autograde(course, LAB)
    page = feedback(course, "bob")
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def export(course: Path, target: Path) -> list[dict[str, str]]:
    api = config.api(course)
    plugin = SafeCsvExportPlugin(parent=api)
    plugin.to = str(target)
    with api.gradebook as book:
        plugin.export(book)
    with target.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_export_gives_one_line_a_student(course: Path, judge: FakeJudge, submit: Submit, tmp_path: Path) -> None:
    submit("ada", FULL)
    submit("bob", HALF)
    autograde(course, LAB)
    with config.api(course).gradebook as book:
        book.add_student("cyd")
    lines = export(course, tmp_path / "grades.csv")
    assert [(line["student_id"], line["score"], line["max_score"]) for line in lines] == [
        ("ada", "15.0", "15.0"),
        ("bob", "5.0", "15.0"),
        ("cyd", "0.0", "15.0"),
    ]


@pytest.mark.parametrize("name", ['Smith, "J"', "line\nend", "=HYPERLINK(1)", "+1", "-1", "@SUM(1)", " =1", "\t=1"])
def test_a_name_neither_shifts_columns_nor_becomes_a_formula(
    course: Path, judge: FakeJudge, submit: Submit, tmp_path: Path, name: str
) -> None:
    """N26."""
    submit("ada", FULL)
    autograde(course, LAB)
    with config.api(course).gradebook as book:
        book.update_or_create_student("ada", last_name=name, email="a@b.org")
    [line] = export(course, tmp_path / "grades.csv")
    assert line["email"] == "a@b.org"
    assert line["score"] == "15.0"
    assert line["last_name"].removeprefix("'") == name
    assert not line["last_name"].lstrip().startswith(("=", "+", "-", "@"))


class TestCollect:
    """The exchange is a folder that students can write to."""

    def test_regular_files_are_taken_and_nothing_else(self, tmp_path: Path) -> None:
        private = tmp_path / "private"
        private.write_text("of the instructor")
        source = tmp_path / "ada+mini+2026"
        source.mkdir()
        (source / "mini.ipynb").write_text("{}")
        (source / "link").symlink_to(private)
        (source / "folder").mkdir()
        os.mkfifo(source / "pipe")
        left_out = copy_regular_files(source, tmp_path / "copy")
        assert [path.name for path in (tmp_path / "copy").iterdir()] == ["mini.ipynb"]
        assert len(left_out) == 3

    def test_a_link_in_place_of_the_whole_submission_gives_nothing(self, tmp_path: Path) -> None:
        other = tmp_path / "bob"
        other.mkdir()
        (other / "mini.ipynb").write_text("{}")
        (tmp_path / "eve").symlink_to(other, target_is_directory=True)
        assert copy_regular_files(tmp_path / "eve", tmp_path / "copy")
        assert not list((tmp_path / "copy").iterdir())

    def test_the_number_of_files_is_capped(self, tmp_path: Path) -> None:
        source = tmp_path / "ada"
        source.mkdir()
        for i in range(MAX_FILES + 5):
            (source / f"{i:04}").write_text("")
        assert copy_regular_files(source, tmp_path / "copy")
        assert len(list((tmp_path / "copy").iterdir())) == MAX_FILES


def test_release_fetch_submit_collect_autograde_feedback_export(
    course: Path, judge: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way through the filesystem exchange, with three students and one link planted by hand."""
    exchange = tmp_path / "exchange"
    exchange.mkdir(mode=0o777)
    exchange.chmod(0o777)

    def nbgrader(root: Path, **traits: Any) -> Any:
        api = config.api(root, course)
        api.config.Exchange.root = str(exchange)
        api.exchange.update_config(api.config)
        api.coursedir.assignment_id = LAB
        for name, value in traits.items():
            setattr(api.coursedir, name, value)
        return api

    def run(api: Any, action: str) -> None:
        step = getattr(api.exchange, action)(coursedir=api.coursedir, authenticator=api.authenticator, parent=api)
        outcome = capture_log(step)
        assert outcome["success"], outcome

    run(nbgrader(course), "ReleaseAssignment")
    for student, solution in {"ada": FULL, "bob": HALF, "cyd": ""}.items():
        home = tmp_path / student
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.chdir(home)
        api = nbgrader(home, student_id=student)
        run(api, "FetchAssignment")
        notebook = home / LAB / f"{LAB}.ipynb"
        notebook.write_text(notebook.read_text().replace("raise NotImplementedError()", solution.replace("\n", "\\n")))
        run(api, "Submit")
    private = tmp_path / "private"
    private.write_text("of the instructor")
    inbound = exchange / config.COURSE_ID / "inbound"
    [sent] = inbound.glob("cyd+*")
    sent.chmod(0o755)
    (sent / "extra.txt").symlink_to(private)
    # Stock release_feedback ends the whole class where this file is missing.
    (sent / "submission_secret.txt").unlink()
    run(nbgrader(course), "Collect")
    collected = {path.name for path in (course / "submitted" / "cyd" / LAB).iterdir()}
    assert collected == {f"{LAB}.ipynb", "timestamp.txt"}

    assert {line.student: line.score for line in autograde(course, LAB)} == {"ada": 15.0, "bob": 5.0, "cyd": 0.0}
    assert "15 of 15 points" in feedback(course, "ada")
    assert [line["score"] for line in export(course, tmp_path / "grades.csv")] == ["15.0", "5.0", "0.0"]
    run(nbgrader(course), "ReleaseFeedback")
    assert len(list((exchange / config.COURSE_ID / "feedback").glob("*.html"))) == 3
