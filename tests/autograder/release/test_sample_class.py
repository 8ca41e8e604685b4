"""The sample class: what is in submitted/ is this class and nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autograder.release.sample_class import build_sample_class

PROJECT = Path(__file__).resolve().parents[3]
LAB = "lab3_block_allocator"


def test_a_new_class_leaves_nobody_of_an_earlier_one(tmp_path: Path) -> None:
    gone, other_lab = tmp_path / "submitted" / "zoe" / LAB, tmp_path / "submitted" / "ada" / "another_lab"
    for folder in (gone, other_lab):
        folder.mkdir(parents=True)
        (folder / "work.ipynb").write_text("{}")
    students = [sample.student for sample in build_sample_class(PROJECT, LAB, tmp_path)]
    assert sorted(path.parent.name for path in (tmp_path / "submitted").glob(f"*/{LAB}")) == students
    assert (other_lab / "work.ipynb").is_file()
    assert build_sample_class(PROJECT, LAB, tmp_path)


def test_a_solution_stands_where_no_stub_behind_it_takes_its_place(tmp_path: Path) -> None:
    stub, written = "raise NotImplementedError", "answer = 42"
    marked = [
        {"cell_type": "code", "source": stub, "metadata": {"nbgrader": {"grade_id": name, **meta}}}
        for name, meta in (("first", {"solution": True}), ("last", {"solution": True}), ("group", {"grade": True}))
    ]
    project = tmp_path / "project"
    (project / "labs" / LAB).mkdir(parents=True)
    (project / "labs" / LAB / f"{LAB}.ipynb").write_text(json.dumps({"cells": marked}))
    for kind in ("correct", "wrong", "hostile"):
        folder = project / "tests" / "submissions" / LAB / kind
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.py").write_text(written)
    samples = build_sample_class(project, LAB, tmp_path / "root")
    cells = json.loads(samples[0].path.read_text())["cells"]
    assert [cell["source"] for cell in cells] == [stub, written, stub]


def test_a_class_that_cannot_be_made_leaves_the_earlier_one(tmp_path: Path) -> None:
    earlier = tmp_path / "root" / "submitted" / "zoe" / LAB
    earlier.mkdir(parents=True)
    project = tmp_path / "project"
    (project / "labs" / LAB).mkdir(parents=True)
    (project / "labs" / LAB / f"{LAB}.ipynb").write_text('{"cells": []}')
    with pytest.raises(ValueError, match="holds 0 solutions"):
        build_sample_class(project, LAB, tmp_path / "root")
    assert earlier.is_dir()
