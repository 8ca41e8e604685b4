"""Does anything that students receive hold an answer?

Owns: the words, paths and solution lines that must never leave. It reads bytes and knows no format but the notebook's,
so that it also sees what hides in metadata or in an attached file. A short or common line is no evidence: a solution
line counts as leaked only if it is long enough to be recognised and stands nowhere in the part that is released.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORBIDDEN_WORDS = (
    "BEGIN SOLUTION",
    "END SOLUTION",
    "BEGIN HIDDEN TESTS",
    "END HIDDEN TESTS",
    "BEGIN MARK SCHEME",
    "END MARK SCHEME",
)
FORBIDDEN_IMPORTS = ("import reference_impl", "from reference_impl", "import autograder", "from autograder")
FORBIDDEN_PARTS = ("solutions", "hidden", "submissions", "reference_impl", "autograder")
"""Names of folders that no path handed to a student may contain."""
SHORTEST_LINE = 24
"""Characters, without outer blanks, from which on a solution line is taken for evidence."""


@dataclass(frozen=True)
class Leak:
    """One place where an answer would leave, and what it is."""

    path: str
    what: str


def scan_tree(folder: Path, solutions: Iterable[Path] = ()) -> list[Leak]:
    """Leaks in every file below `folder`. `solutions` are notebooks with solutions whose lines must not occur."""
    files = (
        (path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()
    )
    return _scan(files, solutions)


def scan_zip(archive: Path, solutions: Iterable[Path] = ()) -> list[Leak]:
    """Leaks in every member of a zip archive."""
    with zipfile.ZipFile(archive) as bundle:
        members = [(name, bundle.read(name)) for name in bundle.namelist() if not name.endswith("/")]
    return _scan(members, solutions)


def _scan(files: Iterable[tuple[str, bytes]], solutions: Iterable[Path]) -> list[Leak]:
    secrets = sorted({line for path in solutions for line in solution_lines(path)})
    return [leak for name, content in files for leak in _leaks(name, content, secrets)]


def _leaks(name: str, content: bytes, secrets: Sequence[str]) -> Iterator[Leak]:
    parts = Path(name).parts
    for part in FORBIDDEN_PARTS:
        if part in parts:
            yield Leak(name, f"lies in a folder {part}")
    text = _readable(content)
    for word in (*FORBIDDEN_WORDS, *FORBIDDEN_IMPORTS):
        if word.lower() in text.lower():
            yield Leak(name, f"contains {word!r}")
    lines = {line.strip() for line in text.splitlines()}
    for line in secrets:
        if line in lines:
            yield Leak(name, f"contains a line of the solution: {line!r}")


def _readable(content: bytes) -> str:
    """Text of a file; for JSON also every string in it, so that an escape or a list of lines hides nothing."""
    text = content.decode("utf-8", errors="replace")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text + "\n" + "\n".join(_strings(data))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list):
        yield from (inner for element in value for inner in _strings(element))


def solution_lines(notebook: Path) -> set[str]:
    """Lines between solution or hidden-test markers that are long enough to be evidence and stand nowhere else."""
    data = json.loads(notebook.read_text(encoding="utf-8"))
    inside: set[str] = set()
    outside: set[str] = set()
    for cell in data["cells"]:
        source = cell["source"]
        secret = False
        for line in (source if isinstance(source, str) else "".join(source)).splitlines():
            if "### BEGIN " in line:
                secret = True
            elif "### END " in line:
                secret = False
            else:
                (inside if secret else outside).add(line.strip())
    return {line for line in inside - outside if len(line) >= SHORTEST_LINE}
