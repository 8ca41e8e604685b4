"""What is taken from a submission: the student's own code as text; everything odd is refused in words or left out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autograder.course import Lab
from autograder.intake import Rejected, take
from autograder.sandbox.limits import Limits


def code(source: str, grade_id: str = "", **meta: bool) -> dict[str, Any]:
    nbgrader = {"nbgrader": {"grade_id": grade_id, "grade": False, "solution": False, **meta}} if grade_id else {}
    return {"cell_type": "code", "source": source, "metadata": nbgrader, "outputs": [], "execution_count": None}


def notebook(*cells: dict[str, Any], **changes: Any) -> str:
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells), **changes})


EXAMPLE = code("import math\nprint(math.ceil(2.5))")
SETUP = code("from labkit.contracts import OutOfBlocks", "setup")
SOLUTION = code("raise NotImplementedError", "write_it", solution=True)
CHECK = code("labkit.check('lab', 'group', Thing)", "group", grade=True)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    released = tmp_path / "released.ipynb"
    released.write_text(notebook(EXAMPLE, SETUP, SOLUTION, CHECK))
    return Lab("lab", released, tmp_path)


def submit(tmp_path: Path, content: str | bytes, name: str = "mine.ipynb") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_students_cells_run_between_our_own_setup_and_no_check_runs(tmp_path: Path, lab: Lab) -> None:
    path = submit(tmp_path, notebook(SETUP, code("x = 1"), code("class Thing: pass", "write_it", solution=True), CHECK))
    taken = take(path, lab)
    assert [cell.source for cell in taken.cells] == [SETUP["source"], "x = 1", "class Thing: pass"]
    assert taken.flags == ()


def test_an_altered_locked_cell_changes_nothing(tmp_path: Path, lab: Lab) -> None:
    altered = code("class OutOfBlocks(BaseException): pass", "setup")
    forged = code("print('all passed')", "group", grade=True)
    taken = take(submit(tmp_path, notebook(altered, code("y = 2", "write_it", solution=True), forged)), lab)
    assert [cell.source for cell in taken.cells] == [SETUP["source"], "y = 2"]


def test_an_example_of_ours_runs_and_is_known_as_ours_until_it_is_changed(tmp_path: Path, lab: Lab) -> None:
    changed = code(EXAMPLE["source"] + "\n1 / 0")
    taken = take(submit(tmp_path, notebook(EXAMPLE, changed, SETUP, SOLUTION, CHECK)), lab)
    assert [(cell.name, cell.ours) for cell in taken.cells[1:]] == [
        ("cell 1", True),
        ("cell 2", False),
        ("cell 4 (write_it)", False),
    ]


def test_a_missing_check_costs_nothing_and_is_said(tmp_path: Path, lab: Lab) -> None:
    taken = take(submit(tmp_path, notebook(SETUP, code("y = 2", "write_it", solution=True))), lab)
    assert taken.flags == ("the grade cell group is missing; the course's own copy is used",)


def test_what_we_show_behind_a_solution_never_runs_and_is_not_missed(tmp_path: Path) -> None:
    shown = code("labkit.check('lab', 'a_step', thing)", "check_a_step")
    released = tmp_path / "released.ipynb"
    released.write_text(notebook(SETUP, SOLUTION, shown, CHECK))
    lab = Lab("lab", released, tmp_path)
    assert [cell.kind for cell in lab.cells] == ["setup", "solution", "shown", "grade"]
    written = code("y = 2", "write_it", solution=True)
    for cell in (shown, code("thing(in_a_launch)", "check_a_step"), code("z = 3")):
        taken = take(submit(tmp_path, notebook(SETUP, written, cell, CHECK)), lab)
        own = ["z = 3"] if cell["source"] == "z = 3" else []
        assert [cell.source for cell in taken.cells] == [SETUP["source"], "y = 2", *own]
        assert taken.flags == ()


def test_a_missing_solution_cell_is_said(tmp_path: Path, lab: Lab) -> None:
    taken = take(submit(tmp_path, notebook(SETUP, CHECK)), lab)
    assert "the solution cell write_it is missing; nothing can be taken from it" in taken.flags


def test_every_copy_of_a_doubled_solution_cell_runs_in_order(tmp_path: Path, lab: Lab) -> None:
    cells = [code(f"y = {n}", "write_it", solution=True) for n in (1, 2)]
    taken = take(submit(tmp_path, notebook(SETUP, *cells, CHECK, CHECK)), lab)
    assert [cell.source for cell in taken.cells[1:]] == ["y = 1", "y = 2"]
    assert any("group stands 2 times" in flag for flag in taken.flags)


def test_a_notebook_whose_metadata_was_lost_is_taken_by_its_text(tmp_path: Path, lab: Lab) -> None:
    taken = take(submit(tmp_path, notebook(code(SETUP["source"]), code("z = 3"), code(CHECK["source"]))), lab)
    assert [cell.source for cell in taken.cells] == [SETUP["source"], "z = 3"]


def test_lines_for_the_notebook_only_have_a_plain_twin(tmp_path: Path, lab: Lab) -> None:
    source = "%matplotlib inline\nfor i in range(2):\n    !ls\nx = 5 % 3\nThing?"
    taken = take(submit(tmp_path, notebook(SETUP, code(source, "write_it", solution=True))), lab)
    assert taken.cells[-1].source == source
    assert taken.cells[-1].plain == "pass\nfor i in range(2):\n    pass\nx = 5 % 3\npass"


def test_a_question_in_a_docstring_is_no_request_for_help(tmp_path: Path, lab: Lab) -> None:
    source = 'def f():\n    """Is it free?\n    Who knows?"""\n    %timeit 1\nf?'
    taken = take(submit(tmp_path, notebook(SETUP, code(source, "write_it", solution=True))), lab)
    assert taken.cells[-1].plain == 'def f():\n    """Is it free?\n    Who knows?"""\n    pass\npass'


def test_a_timed_cell_keeps_its_code_and_a_shell_cell_has_none(tmp_path: Path, lab: Lab) -> None:
    timed, shell = take(submit(tmp_path, notebook(SOLUTION, code("%%time\nx = 1"), code("%%bash\nls"))), lab).cells[-2:]
    assert (timed.plain, shell.plain) == ("\nx = 1", "")


def test_a_byte_order_mark_is_no_part_of_the_code(tmp_path: Path, lab: Lab) -> None:
    taken = take(submit(tmp_path, b"\xef\xbb\xbfclass Thing: pass\n", "mine.py"), lab)
    assert taken.cells[0].source == "class Thing: pass\n"
    assert take(submit(tmp_path, b"\xef\xbb\xbf" + notebook(SOLUTION).encode()), lab).cells


def test_a_python_file_is_one_cell(tmp_path: Path, lab: Lab) -> None:
    taken = take(submit(tmp_path, "class Thing: pass\n", "mine.py"), lab)
    assert [(cell.name, cell.source) for cell in taken.cells] == [("mine.py", "class Thing: pass\n")]


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"", "mine.ipynb", "empty"),
        (b" \n", "mine.py", "empty"),
        (b"not json", "mine.ipynb", "not valid JSON"),
        (b"[" * 200_000, "mine.ipynb", "not valid JSON"),
        (b"{}", "mine.ipynb", "no nbformat"),
        (b"[1]", "mine.ipynb", "no nbformat"),
        (notebook(nbformat=3).encode(), "mine.ipynb", "format 3"),
        (notebook(nbformat="4").encode() + b"x", "mine.ipynb", "not valid JSON"),
        (json.dumps({"nbformat": 4, "cells": 3}).encode(), "mine.ipynb", "no list of cells"),
        (json.dumps({"nbformat": 4, "cells": [3]}).encode(), "mine.ipynb", "no list of cells"),
        (notebook(code("x", "another_lab_cell", solution=True)).encode(), "mine.ipynb", "another_lab_cell"),
        (b"PK\x03\x04rest", "mine.ipynb", "zip archive"),
        (b"\xff\xfe\x00", "mine.py", "not UTF-8"),
        (b"x = 1", "mine.txt", "neither a notebook"),
    ],
)
def test_what_is_no_submission_is_rejected_in_words(
    tmp_path: Path, lab: Lab, content: bytes, name: str, words: str
) -> None:
    with pytest.raises(Rejected, match=words):
        take(submit(tmp_path, content, name), lab)


def test_a_file_over_the_cap_is_refused_by_its_size_before_it_is_read(tmp_path: Path, lab: Lab) -> None:
    path = tmp_path / "huge.ipynb"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(Rejected, match="104,857,600 bytes"):
        take(path, lab)


def test_too_many_cells_are_refused(tmp_path: Path, lab: Lab) -> None:
    with pytest.raises(Rejected, match="11 cells"):
        take(submit(tmp_path, notebook(*[SOLUTION] * 11)), lab, replace(Limits(), cells=10))


def test_a_link_is_refused_wherever_it_leads(tmp_path: Path, lab: Lab) -> None:
    link = tmp_path / "link.py"
    link.symlink_to("/etc/passwd")
    with pytest.raises(Rejected, match="symbolic link"):
        take(link, lab)


def test_pipes_folders_and_missing_files_are_refused_without_waiting(tmp_path: Path, lab: Lab) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    for name in ("pipe.py", "folder.py"):
        with pytest.raises(Rejected, match="not a regular file"):
            take(tmp_path / name, lab)
    with pytest.raises(Rejected, match="does not exist"):
        take(tmp_path / "gone.py", lab)


@pytest.mark.parametrize("odd", [None, 3, "x", ["x", 3], {"a": 1}])
def test_odd_sources_and_metadata_are_read_as_empty(tmp_path: Path, lab: Lab, odd: Any) -> None:
    cell = {"cell_type": "code", "source": odd, "metadata": odd}
    assert take(submit(tmp_path, notebook(cell, SOLUTION)), lab).cells
