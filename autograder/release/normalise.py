"""A released notebook with the same bytes whenever and wherever it is made.

Owns: what may vary in a notebook and is fixed here (cell ids, outputs, tool metadata). Last in nbgrader's list of
preprocessors for `generate_assignment`, so that the stock command and `course labs` write the same file.
"""

from __future__ import annotations

import hashlib
from typing import Any

from nbgrader.preprocessors import NbGraderPreprocessor  # type: ignore[import-untyped]

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
KEPT_CELL_METADATA = ("nbgrader", "tags", "deletable", "editable")


def stabilise(notebook: Any) -> Any:
    """Fix ids and metadata of a v4 notebook in place and return it. Cost: O(cells)."""
    notebook.metadata.clear()
    notebook.metadata.update({"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}})
    # 4.5 is the first version with cell ids.
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: set[str] = set()
    for cell in notebook.cells:
        for key in [key for key in cell.metadata if key not in KEPT_CELL_METADATA]:
            del cell.metadata[key]
        cell["id"] = _cell_id(cell, seen)
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    return notebook


def _cell_id(cell: Any, seen: set[str]) -> str:
    """The grade_id where there is one, else a digest of the text: an edit elsewhere leaves it alone."""
    grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
    base = str(grade_id).replace("_", "-")[:50] if grade_id else digest
    name, copy = base, 1
    while name in seen:
        copy += 1
        name = f"{base}-{copy}"
    seen.add(name)
    return name


class StableNotebook(NbGraderPreprocessor):  # type: ignore[misc]
    """`stabilise` as a preprocessor of nbgrader."""

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        return stabilise(nb), resources
