"""What is taken from a submission: the student's own code, as text, and nothing else.

Owns: reading an untrusted file safely and picking the cells to run. Nothing is executed, unpacked or copied here. A
notebook's cells are found by the registry of the released lab: ours come from our copy, the student's from theirs, so
a missing, duplicated or altered locked cell changes nothing. Knows nothing of grading.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.course import Lab
from autograder.sandbox.limits import Limits

# %magic, !shell, ?help before a name, and help? behind a bare name; not every line that ends in a question mark.
MAGIC_LINE = re.compile(r"^\s*(?:%|!|\?)|^\s*[\w.]+\?{1,2}\s*$")
KEPT_CELL_MAGICS = ("%%time", "%%timeit", "%%capture")


class Rejected(Exception):  # noqa: N818 - the word of the report
    """The file is no submission to this lab; the message says why, in words for the student."""


@dataclass(frozen=True)
class Cell:
    """Code to run, in order. `name` is how feedback calls it; `plain` is the source without notebook-only lines, to be
    tried when `source` does not compile as it stands (nothing of a student's is compiled on this side). `ours`: it came
    with the lab as it is, so what fails in it is no remark on the student."""

    name: str
    source: str
    plain: str = ""
    ours: bool = False


@dataclass(frozen=True)
class Submission:
    """The code taken from one file, the hash of the file, and remarks for the feedback."""

    sha256: str
    cells: tuple[Cell, ...]
    flags: tuple[str, ...]


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`. Links, pipes, devices and folders are refused unread.

    Raises: Rejected.
    """
    try:
        # O_NONBLOCK, so that opening a pipe cannot wait for its other end.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Rejected(f"{path.name} does not exist") from None
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be opened ({error.strerror})"
        raise Rejected(f"{path.name} {reason}; submit the file itself") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise Rejected(f"{path.name} is not a regular file")
        if status.st_size > max_bytes:
            raise Rejected(f"{path.name} has {status.st_size:,} bytes; at most {max_bytes:,} are taken")
        data = _read_up_to(fd, max_bytes + 1)
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise Rejected(f"{path.name} grew over {max_bytes:,} bytes while it was read")
    return data


def _read_up_to(fd: int, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count and (part := os.read(fd, min(1 << 20, count - len(parts)))):
        parts += part
    return bytes(parts)


def take(path: Path, lab: Lab, limits: Limits | None = None) -> Submission:
    """The student's code in `path`, a `.ipynb` or a `.py` file. Raises: Rejected."""
    limits = limits or Limits()
    if path.suffix not in (".ipynb", ".py"):
        raise Rejected(f"{path.name} is neither a notebook (.ipynb) nor a Python file (.py)")
    data = read_regular(path, limits.submission_bytes)
    if not data.strip():
        raise Rejected(f"{path.name} is empty")
    if data[:2] == b"PK":
        raise Rejected(f"{path.name} is a zip archive; submit the file inside it")
    try:
        # With or without the mark that some editors put before the first character.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Rejected(f"{path.name} is not UTF-8 text") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if path.suffix == ".py":
        return Submission(sha256, (Cell(path.name, text),), ())
    cells, flags = _from_notebook(path.name, text, lab, limits)
    return Submission(sha256, cells, flags)


def _from_notebook(name: str, text: str, lab: Lab, limits: Limits) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    code_cells = _code_cells(name, text, limits)
    known = {cell.id: cell for cell in lab.cells}
    ids = [_grade_id(cell) for _, cell in code_cells]
    if any(ids) and not any(i in known for i in ids):
        others = ", ".join(sorted({i for i in ids if i})[:3])
        raise Rejected(f"{name} belongs to another lab: it has none of the cells of {lab.id}, but {others}")
    flags = _registry_flags(lab, ids)
    cells = [Cell(f"cell {cell.id}", cell.source) for cell in lab.cells if cell.kind == "setup"]
    # An example of ours runs as the student left it: what it imports may be used further down.
    examples = lab.example_sources
    ours = {cell.source.strip() for cell in lab.cells if cell.kind != "solution"}
    for (number, cell), grade_id in zip(code_cells, ids, strict=True):
        source = _source(cell)
        registered = known.get(grade_id)
        if (registered is not None and registered.kind != "solution") or source.strip() in ours or not source.strip():
            continue
        label = f"cell {number}" + (f" ({grade_id})" if grade_id else "")
        cells.append(Cell(label, source, _without_magics(source), ours=source.strip() in examples))
    return tuple(cells), tuple(flags)


def _code_cells(name: str, text: str, limits: Limits) -> list[tuple[int, dict[str, Any]]]:
    """The code cells with their place in the notebook, counted from 1. Raises: Rejected unless it is format 4."""
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError):
        raise Rejected(f"{name} is not a notebook: it is not valid JSON") from None
    if not isinstance(notebook, dict) or "nbformat" not in notebook:
        raise Rejected(f"{name} is not a notebook: it has no nbformat")
    if notebook["nbformat"] != 4:
        raise Rejected(f"{name} has notebook format {str(notebook['nbformat'])[:20]}; save it as format 4")
    cells = notebook.get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise Rejected(f"{name} is not a notebook: it has no list of cells")
    if len(cells) > limits.cells:
        raise Rejected(f"{name} has {len(cells)} cells; at most {limits.cells} are taken")
    return [(number, cell) for number, cell in enumerate(cells, 1) if cell.get("cell_type") == "code"]


def _registry_flags(lab: Lab, ids: list[str]) -> list[str]:
    """Remarks on our cells that are missing or doubled; none of them costs a point by itself."""
    flags = []
    for cell in lab.cells:
        if cell.kind == "shown":
            continue
        count = ids.count(cell.id)
        if count == 0:
            lost = "nothing can be taken from it" if cell.kind == "solution" else "the course's own copy is used"
            flags.append(f"the {cell.kind} cell {cell.id} is missing; {lost}")
        elif count > 1:
            used = "all of them run, in order" if cell.kind == "solution" else "the course's own copy is used"
            flags.append(f"the {cell.kind} cell {cell.id} stands {count} times; {used}")
    return flags


def _grade_id(cell: dict[str, Any]) -> str:
    metadata = cell.get("metadata")
    meta = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grade_id = meta.get("grade_id") if isinstance(meta, dict) else None
    return grade_id[:80] if isinstance(grade_id, str) else ""


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def _without_magics(source: str) -> str:
    """The cell without the lines that only a notebook understands (%, !, ?); line numbers stay."""
    lines = source.split("\n")
    if lines[0].startswith("%%"):
        # %%bash, %%html and their like hold no Python at all.
        return "\n".join(["", *lines[1:]]) if lines[0].startswith(KEPT_CELL_MAGICS) else ""
    for number, line in enumerate(lines):
        if MAGIC_LINE.search(line):
            # `pass` at the same depth, so that a block made of one such line stays a block.
            lines[number] = line[: len(line) - len(line.lstrip())] + "pass"
    return "\n".join(lines)
