"""A class to try the grader on: a dozen submissions as they really come in.

Owns: who hands in what. Made from the released notebook and the collection in tests/submissions, so that it exercises
the lab as it is today. Nothing here says what a submission scores: that is the grader's to find.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOP = "while True:\n    pass"


@dataclass(frozen=True)
class Sample:
    """One submission: the student, and in words what was done with the notebook."""

    student: str
    what: str
    path: Path


def build_sample_class(project: Path, lab: str, root: Path) -> list[Sample]:
    """Write a sample class into `root`/submitted, replacing an earlier one; returns what was written, by student.

    Raises: ValueError if the lab has no released notebook, or too few sample solutions to choose from.
    """
    notebook = project / "labs" / lab / f"{lab}.ipynb"
    if not notebook.is_file():
        raise ValueError(f"{lab} has no released notebook: make it with `course labs`")
    released = json.loads(notebook.read_text(encoding="utf-8"))
    contents = list(_contents(released, _Solutions(project / "tests" / "submissions" / lab)))
    # Also of a student who was in an earlier class and is in this one no more.
    for earlier in (root / "submitted").glob(f"*/{lab}"):
        shutil.rmtree(earlier)
    samples = []
    for student, what, content in contents:
        folder = root / "submitted" / student / lab
        folder.mkdir(parents=True)
        path = folder / notebook.name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
        samples.append(Sample(student, what, path))
    return samples


class _Solutions:
    """The collection of solutions of a lab: correct/, wrong/, hostile/."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, kind: str, number: int = 0) -> tuple[str, str]:
        """Name and text of the `number`-th file of a kind, by name."""
        files = sorted((self._folder / kind).glob("*.py"))
        if number >= len(files):
            raise ValueError(f"{self._folder / kind} holds {len(files)} solutions; the sample class needs {number + 1}")
        return files[number].stem.replace("_", " "), files[number].read_text(encoding="utf-8")


def _contents(released: Any, solutions: _Solutions) -> Iterator[tuple[str, str, Any]]:
    """Student, what was done, and the file: a notebook or text."""
    name, correct = solutions.take("correct", 0)
    other, another = solutions.take("correct", 1)
    wrong, flawed = solutions.take("wrong", 0)
    attack, hostile = solutions.take("hostile", 0)
    full = _with(released, correct)

    def changed(change: Callable[[Any], None]) -> Any:
        notebook = copy.deepcopy(full)
        change(notebook)
        return notebook

    yield "ada", f"correct: {name}", full
    yield "bela", f"correct: {other}", _with(released, another)
    yield "chen", f"wrong: {wrong}", _with(released, flawed)
    yield "dora", "not touched", released
    yield "emil", "a file that is not JSON", "My notebook is in the other folder.\n"
    yield "fay", "notebook format 3", _as_format_3(full)
    yield "gus", "a locked cell stands twice", changed(_double_grade_cell)
    yield "hana", "a locked cell is missing", changed(_delete_grade_cell)
    yield (
        "ivan",
        "an endless loop in a scratch cell after the solution",
        changed(lambda n: n["cells"].append(_code(LOOP))),
    )
    yield "jo", "an endless loop in the solution", _with(released, f"{correct}\n\n{LOOP}\n")
    yield "kim", "a syntax error in the solution", _with(released, f"{correct}\n\ndef unfinished(:\n")
    yield "lea", f"hostile: {attack}", _with(released, hostile)


def _with(released: Any, solution: str) -> Any:
    """The released notebook with `solution` in its last solution cell: what it defines is what counts."""
    notebook = copy.deepcopy(released)
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and _nbgrader(c).get("solution")]
    cells[-1]["source"] = solution
    return notebook


def _nbgrader(cell: Any) -> Any:
    return cell["metadata"].get("nbgrader", {})


def _first_grade_cell(notebook: Any) -> Any:
    return next(cell for cell in notebook["cells"] if _nbgrader(cell).get("grade"))


def _double_grade_cell(notebook: Any) -> None:
    notebook["cells"].append(copy.deepcopy(_first_grade_cell(notebook)))


def _delete_grade_cell(notebook: Any) -> None:
    notebook["cells"].remove(_first_grade_cell(notebook))


def _code(source: str) -> Any:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "scratch",
        "metadata": {},
        "outputs": [],
        "source": source,
    }


def _as_format_3(notebook: Any) -> Any:
    """The same cells in the layout of notebooks from before 2014."""
    return {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": notebook["cells"]}]}
