"""`solutions/<lab>/<lab>.md` becomes `labs/<lab>/<lab>.ipynb`.

Owns: the two steps (jupytext, then nbgrader's generate_assignment), where the notebook with solutions lies meanwhile,
and whether the committed notebook is fresh. Nothing is edited by hand on the way: stubs come from the solution
markers. The text source is never inside nbgrader's source directory, so it cannot be copied to a release.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.gradebook.config import RELEASE_DIRECTORY, SOURCE_DIRECTORY, api
from autograder.release.leak import Leak, scan_tree

SCRATCH_RELEASE = ".course/release"


class LabError(ValueError):
    """A lab's source cannot become a notebook; the text names the lab and the reason."""


@dataclass(frozen=True)
class LabState:
    """One lab after `write` or `check`. `diff` is empty where the committed notebook is what the source makes."""

    lab: str
    path: Path
    diff: str = ""

    @property
    def fresh(self) -> bool:
        return not self.diff


def lab_ids(root: Path) -> list[str]:
    """Labs that have a text source, sorted."""
    return sorted(path.stem for path in (root / "solutions").glob("*/*.md") if path.stem == path.parent.name)


def write_labs(root: Path, labs: Iterable[str] | None = None) -> list[LabState]:
    """Make the notebooks of `labs` (default: all), enter them in the gradebook, and write those that changed.

    Each state carries the difference that was written. Raises: LabError, nothing of that lab written.
    """
    states = []
    for lab in _chosen(root, labs):
        content = generate(root, lab, root)
        target = root / RELEASE_DIRECTORY / lab / f"{lab}.ipynb"
        state = LabState(lab, target, _diff(target, content, root))
        if not state.fresh:
            write_atomically(target, content.encode())
        states.append(state)
    return states


def check_labs(root: Path, labs: Iterable[str] | None = None) -> list[LabState]:
    """Compare the committed notebooks of `labs` (default: all) with what their sources make. Writes nothing."""
    states = []
    for lab in _chosen(root, labs):
        with tempfile.TemporaryDirectory() as scratch:
            content = generate(root, lab, Path(scratch))
        target = root / RELEASE_DIRECTORY / lab / f"{lab}.ipynb"
        states.append(LabState(lab, target, _diff(target, content, root)))
    return states


def generate(root: Path, lab: str, course: Path) -> str:
    """The text of the student's notebook of `lab`.

    `course` is the nbgrader course directory whose gradebook learns the cells; it gets `.course/source` and
    `.course/release`. Raises: LabError if nbgrader refuses, or if an answer would leak.
    """
    source = make_source(root, lab, course)
    outcome = api(course, root, release_directory=SCRATCH_RELEASE).generate_assignment(lab, force=True)
    if not outcome["success"]:
        raise LabError(f"{lab}: nbgrader could not make the notebook.\n{_reason(outcome)}")
    released = course / SCRATCH_RELEASE / lab
    leaks = scan_tree(released, solutions=[source])
    if leaks:
        raise LabError(f"{lab}: the notebook would give answers away.\n{_listed(leaks)}")
    return (released / f"{lab}.ipynb").read_text(encoding="utf-8")


def make_source(root: Path, lab: str, course: Path) -> Path:
    """Convert the text notebook of `lab` to the notebook with solutions that nbgrader reads; returns its path.

    Raises: LabError if there is no such lab or the text is not a notebook.
    """
    import jupytext  # type: ignore[import-untyped]
    import nbformat

    text = root / "solutions" / lab / f"{lab}.md"
    if not text.is_file():
        raise LabError(f"{lab}: there is no {text.relative_to(root)}; labs here: {', '.join(lab_ids(root)) or 'none'}")
    try:
        notebook: Any = jupytext.read(text, fmt="md:myst")
    except Exception as error:
        # jupytext raises whatever its YAML and Markdown readers raise.
        raise LabError(f"{lab}: {text.relative_to(root)} is not a text notebook: {error}") from error
    folder = course / SOURCE_DIRECTORY / lab
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("jupytext", "mystnb"):
        notebook.metadata.pop(name, None)
    target = folder / f"{lab}.ipynb"
    text_form: str = nbformat.writes(notebook, version=4)  # type: ignore[no-untyped-call]
    write_atomically(target, (text_form + "\n").encode())
    return target


def _chosen(root: Path, labs: Iterable[str] | None) -> list[str]:
    known = lab_ids(root)
    chosen = known if labs is None else list(labs)
    unknown = [lab for lab in chosen if lab not in known]
    if unknown:
        raise LabError(f"no such lab: {', '.join(unknown)}; labs here: {', '.join(known) or 'none'}")
    return chosen


def _diff(target: Path, content: str, root: Path) -> str:
    before = target.read_text(encoding="utf-8") if target.is_file() else ""
    name = target.relative_to(root).as_posix()
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        content.splitlines(keepends=True),
        f"{name} (committed)",
        f"{name} (made)",
        n=1,
    )
    return "".join(lines)


def write_atomically(target: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never half of one; an error leaves nothing new behind."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        # Ctrl-C too.
        os.unlink(name)
        raise


def _reason(outcome: dict[str, Any]) -> str:
    """What nbgrader's log says went wrong, without its tracebacks: those say nothing to an author."""
    log = str(outcome.get("log") or outcome.get("error", ""))
    errors = re.findall(r"^\s*[\w.]*(?:Error|Exception): .+$", log, flags=re.MULTILINE)
    return "\n".join(dict.fromkeys(f"  {error.strip()}" for error in errors)) or log[-1000:]


def _listed(leaks: Iterable[Leak]) -> str:
    return "\n".join(f"  {leak.path}: {leak.what}" for leak in leaks)
