"""A well-formed notebook from whatever was handed in.

Owns: reading a submission for display (never following a link, never more than a limit), and laying the student's own
cells over the released notebook, so that locked cells are the course's, none is missing and none occurs twice. What is
graded is decided by intake and the judge from the file itself; this notebook is what formgrader and feedback show.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat.notebooknode import NotebookNode

from autograder.intake import Rejected, read_regular
from autograder.sandbox.limits import Limits

MAX_CELLS = 2_000
MAX_SHOWN_CHARACTERS = 100_000
"""Characters of one cell's text that are kept for display."""


Cell = tuple[str, str, str]
"""cell_type, grade_id or "", source."""


def read_submitted(path: Path) -> tuple[Cell, ...]:
    """The first `MAX_CELLS` cells of the notebook at `path`. Never raises: an unreadable file has none.

    Cost: at most the intake's limit of bytes is read.
    """
    try:
        data = json.loads(read_regular(path, Limits().submission_bytes))
    except (Rejected, ValueError, RecursionError):
        # Why it cannot be read is said by the judge's result, which looks at the same file.
        return ()
    listed = data.get("cells") if isinstance(data, dict) else None
    return tuple(_cells(listed[:MAX_CELLS])) if isinstance(listed, list) else ()


def _cells(listed: Iterable[Any]) -> Iterator[Cell]:
    for cell in listed:
        if not isinstance(cell, dict):
            continue
        kind = cell.get("cell_type")
        source = cell.get("source")
        if isinstance(source, list):
            source = "".join(part for part in source if isinstance(part, str))
        if not isinstance(source, str):
            source = ""
        yield (kind if kind in ("code", "markdown", "raw") else "raw"), _grade_id(cell), _clean(source)


def _grade_id(cell: dict[str, Any]) -> str:
    metadata = cell.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grade_id = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    return grade_id if isinstance(grade_id, str) else ""


def _clean(text: str) -> str:
    """Half a surrogate pair is valid in JSON and cannot be written to a file."""
    if len(text) > MAX_SHOWN_CHARACTERS:
        text = text[:MAX_SHOWN_CHARACTERS] + "\n... cut for display ..."
    return text.encode("utf-8", errors="replace").decode("utf-8")


def compose(released: NotebookNode, submitted: Sequence[Cell]) -> NotebookNode:
    """The student's cells, in the student's order, with every registered cell of `released` exactly once.

    A registered cell keeps the course's type, metadata and, unless it is a solution cell, text. A second copy of one
    stays as an unregistered cell; a missing one is put back after the one before it.
    """
    notebook = copy.deepcopy(released)
    registry = {_grade_id(cell): cell for cell in notebook.cells if _grade_id(cell)}
    if not submitted:
        return notebook
    cells: list[NotebookNode] = []
    place: dict[str, NotebookNode] = {}
    for number, (kind, grade_id, source) in enumerate(submitted):
        if grade_id in registry and grade_id not in place:
            cell = registry[grade_id]
            if cell.metadata.nbgrader.get("solution", False):
                cell.source = source
            place[grade_id] = cell
        else:
            cell = _plain(kind, source, number)
        cells.append(cell)
    _put_back_missing(cells, registry, place)
    notebook.cells = cells
    return notebook


def _put_back_missing(cells: list[NotebookNode], registry: dict[str, NotebookNode], place: dict[str, Any]) -> None:
    index = 0
    for grade_id, cell in registry.items():
        if grade_id not in place:
            cells.insert(index, cell)
        index = next(i for i, other in enumerate(cells) if other is cell) + 1


def _plain(kind: str, source: str, number: int) -> NotebookNode:
    make: dict[str, Any] = {
        "code": nbformat.v4.new_code_cell,
        "markdown": nbformat.v4.new_markdown_cell,
        "raw": nbformat.v4.new_raw_cell,
    }
    cell: NotebookNode = make[kind](source)
    cell["id"] = f"own-{number}"
    return cell
