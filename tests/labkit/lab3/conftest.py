"""What the tests of lab 3's checks, recorder and player share: the model solution, from the text notebook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[3] / "solutions" / "lab3_block_allocator" / "lab3_block_allocator.md"


@pytest.fixture(scope="session")
def source_text() -> str:
    return SOURCE.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def cells(source_text: str) -> list[tuple[str, str]]:
    """(grade_id or "", source) of every code cell, in order."""
    found = []
    for body in re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", source_text, flags=re.DOTALL):
        header, _, source = body[4:].partition("---\n") if body.startswith("---\n") else ("", "", body)
        grade_id = re.search(r"grade_id: (\w+)", header)
        found.append((grade_id.group(1) if grade_id else "", source))
    return found


@pytest.fixture(scope="session")
def model_solution(cells: list[tuple[str, str]]) -> Any:
    """The class that the source notebook defines."""
    namespace: dict[str, Any] = {}
    for grade_id, source in cells:
        if grade_id in ("setup", "block_allocator"):
            exec(source, namespace)
    return namespace["BlockAllocator"]
