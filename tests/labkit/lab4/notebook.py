"""The text notebook of lab 4 as cells that can be run here.

Owns: reading it, making the stub that students get, and running solution cells. Triton reads a kernel's source as a
file, so each cell is entered in Python's cache of sources under a name of its own.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TEXT = Path(__file__).parents[3] / "solutions" / "lab4_paged_attention" / "lab4_paged_attention.md"
SOLUTIONS = ("page_walk", "merge", "write_store_kv", "one_head", "grouped", "work", "split", "hand_in")
MARKED = re.compile(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION\n", flags=re.DOTALL | re.MULTILINE)
_numbers = count()


def cells_of(text: str) -> list[tuple[str, str]]:
    """(grade_id or "", source) of every code cell, in order."""
    found = []
    for body in re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", text, flags=re.DOTALL):
        header, _, source = body[4:].partition("---\n") if body.startswith("---\n") else ("", "", body)
        grade_id = re.search(r"grade_id: (\w+)", header)
        found.append((grade_id.group(1) if grade_id else "", source))
    return found


def stubbed(source: str) -> str:
    """A cell as students get it: every marked region replaced as nbgrader does it."""
    return MARKED.sub(r"\1# YOUR CODE HERE\n\1raise NotImplementedError()\n", source)


def run_cells(cells: Sequence[tuple[str, str]], changed: dict[str, str]) -> SimpleNamespace:
    """Run the setup and solution cells, those in `changed` with another source; gives what they define."""
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for grade_id, source in cells:
        if grade_id == "setup" or grade_id in SOLUTIONS:
            text = changed.get(grade_id, source)
            name = f"<cell {grade_id} {next(_numbers)}>"
            # No modification time: checkcache leaves such an entry alone.
            linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
            exec(compile(text, name, "exec"), namespace)
    return SimpleNamespace(**namespace)
