"""The sample class: what is in submitted/ is this class and nobody else."""

from __future__ import annotations

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


def test_a_class_that_cannot_be_made_leaves_the_earlier_one(tmp_path: Path) -> None:
    earlier = tmp_path / "root" / "submitted" / "zoe" / LAB
    earlier.mkdir(parents=True)
    project = tmp_path / "project"
    (project / "labs" / LAB).mkdir(parents=True)
    (project / "labs" / LAB / f"{LAB}.ipynb").write_text('{"cells": []}')
    with pytest.raises(ValueError, match="holds 0 solutions"):
        build_sample_class(project, LAB, tmp_path / "root")
    assert earlier.is_dir()
