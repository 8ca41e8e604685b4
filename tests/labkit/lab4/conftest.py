"""What the tests of lab 4's notebook and checks share: its cells, from the text notebook, and the model solution."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from tests.labkit.lab4 import notebook
from tests.triton_here import import_triton

import_triton()


@pytest.fixture(scope="session")
def source_text() -> str:
    return notebook.TEXT.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def cells(source_text: str) -> list[tuple[str, str]]:
    """(grade_id or "", source) of every code cell, in order."""
    return notebook.cells_of(source_text)


@pytest.fixture(scope="session")
def solved(cells: list[tuple[str, str]]) -> Callable[[dict[str, str]], SimpleNamespace]:
    """Runs the setup and solution cells, some of them with another source; gives their functions."""
    pytest.importorskip("triton", reason="Triton is not installed here")
    return lambda changed: notebook.run_cells(cells, changed)


@pytest.fixture(scope="session")
def model_solution(solved: Callable[[dict[str, str]], SimpleNamespace]) -> SimpleNamespace:
    """The functions of the model solution, by their names."""
    return solved({})
