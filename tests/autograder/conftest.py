"""A small course on disk, so that the grader is tried apart from the real lab's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autograder.course import Course

LAB = "lab3_block_allocator"
HONEST = Path(__file__).parents[1] / "submissions" / LAB / "hostile" / "works_later.py"

SUITE = """
VERSION = "9"
PACKAGES = ()
METHODS = ("allocate", "append", "fork", "free", "block_table", "num_tokens", "slot_mapping")
PROVIDES = {"BlockAllocator": METHODS}
REFERENCE = {"BlockAllocator": "reference_impl.memory"}
"""

HIDDEN_TABLES = '''
GROUP = "tables"


def test_holds_what_it_was_given(make):
    """A sequence has the tokens it was given."""
    subject = make(4, 2)
    subject.allocate(1, 3)
    assert subject.num_tokens(1) == 3, "the count is not what was given"


def test_appends(make, seed):
    """Appending grows a sequence."""
    assert isinstance(seed, int)
    subject = make(4, 2)
    subject.allocate(1, 1)
    subject.append(1, 2)
    assert subject.num_tokens(1) == 3, "the count did not grow"
'''
HIDDEN_COST = '''
GROUP = "cost"


def test_does_many_things(make):
    """A thousand calls are answered."""
    subject = make(1000, 2)
    assert subject.timed_batch_s([("allocate", (seq, 1)) for seq in range(1000)]) > 0
    assert subject.num_free_blocks == 0, "blocks are left"
'''


def cell(source: str, grade_id: str, **meta: Any) -> dict[str, Any]:
    nbgrader = {"grade_id": grade_id, "grade": False, "solution": False, "locked": True, **meta}
    return {"cell_type": "code", "source": source, "metadata": {"nbgrader": nbgrader}, "outputs": []}


@pytest.fixture
def small_course(tmp_path: Path) -> Course:
    """Lab 3 with three hidden tests in two groups worth 10 and 5 points."""
    root = tmp_path / "course"
    hidden = root / "tests" / "hidden" / LAB
    released = root / "labs" / LAB / f"{LAB}.ipynb"
    hidden.mkdir(parents=True)
    released.parent.mkdir(parents=True)
    (root / "_toc.yml").write_text("format: jb-book\n")
    (hidden / "suite.py").write_text(SUITE)
    (hidden / "test_tables.py").write_text(HIDDEN_TABLES)
    (hidden / "test_cost.py").write_text(HIDDEN_COST)
    cells = [
        cell("from labkit.contracts import OutOfBlocks", "setup"),
        cell("raise NotImplementedError", "write", solution=True, locked=False),
        cell("check", "tables", grade=True, points=10),
        cell("check", "cost", grade=True, points=5),
    ]
    released.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))
    return Course.open(root)


@pytest.fixture
def honest() -> str:
    """The source of an allocator that is right, as `Honest`."""
    source = HONEST.read_text()
    return (
        "from labkit.contracts import OutOfBlocks\n"
        + source[source.index("class Honest") : source.index("class BlockAllocator")]
    )
