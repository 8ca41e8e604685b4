"""What stock nbgrader reads when it reads a submission.

Owns: the steps of `nbgrader autograde` that come before any preprocessor. Stock, these copy every file of a submission
(following links), let one unreadable notebook go without a score, and let one doctored notebook end the whole class.
nbgrader lets a course choose the exporter (`Autograde.exporter_class`), makes it after it has listed the submissions
and before it touches one, and hands it the converter: that is the only seam used here.
"""

from __future__ import annotations

import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from nbconvert.exporters import NotebookExporter
from nbgrader.converters import Autograde  # type: ignore[import-untyped]
from nbgrader.utils import parse_utc  # type: ignore[import-untyped]
from traitlets import Dict, Unicode

from autograder.gradebook.config import RELEASE_DIRECTORY
from autograder.gradebook.submitted import compose, read_submitted
from autograder.intake import Rejected, read_regular

STAMP = "padding_to_paging"
"""Key in an autograded notebook's metadata: the result that its grades were saved from. Written last."""
MAX_SMALL_BYTES = 1_000
SECRET = "submission_secret.txt"
"""What nbgrader gives a submitter to fetch the feedback with."""


class JudgeExporter(NotebookExporter):
    """Reads a submission with limits and lays it over the released notebook; see `submitted.compose`."""

    project = Unicode("", help="Folder of the course whose labs and hidden tests grade.").tag(config=True)
    sandbox = Unicode("auto", help="Sandbox of the judge: auto, or a name that `course doctor` lists.").tag(config=True)
    runner = Unicode("local", help="Who runs the jobs: a name in `judging.RUNNERS`.").tag(config=True)

    known = Dict({}, help="Path of a submission -> its result as JSON, where it was judged already.").tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        if isinstance(self.parent, Autograde):
            guard(self.parent)

    def from_filename(self, filename: str, resources: Any = None, **kw: Any) -> Any:
        """First of the submitted file, then (nbgrader's second pass) of the autograded one."""
        path = Path(filename)
        resources = resources or {}
        resources["metadata"] = {"name": path.stem, "path": str(path.parent)}
        names = resources["nbgrader"]
        directory = self.converter.coursedir
        submitted = Path(directory.format_path(directory.submitted_directory, names["student"], names["assignment"]))
        if path.parent == submitted:
            return self._convert(self._sanitised(path, names["assignment"]), resources)
        resources["submission"] = str(submitted / path.name)
        notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
        outcome = self._convert(notebook, resources)
        write_companions(submitted, path.parent)
        return outcome

    def _convert(self, notebook: Any, resources: Any) -> Any:
        return self.from_notebook_node(notebook, resources)  # type: ignore[no-untyped-call]

    @property
    def converter(self) -> Any:
        """nbgrader's Autograde object."""
        return self.parent

    def _sanitised(self, path: Path, lab: str) -> Any:
        released = self.project_path / RELEASE_DIRECTORY / lab / path.name
        if not released.is_file():
            raise FileNotFoundError(f"{lab} is no lab of this course: there is no {released}")
        notebook = nbformat.read(released, as_version=4)  # type: ignore[no-untyped-call]
        return compose(notebook, read_submitted(path))

    @property
    def project_path(self) -> Path:
        """Where labs and hidden tests lie: the configured project, else nbgrader's own course directory."""
        return Path(self.project or self.converter.coursedir.root)


def guard(converter: Any) -> None:
    """Make the steps of `nbgrader autograde` before the preprocessors harmless for this run.

    Acts on the one converter object: which files it copies (none but what this module writes), which notebook it
    expects of each student (exactly the lab's, there or not), and what an earlier run left half done.
    """
    directory = converter.coursedir
    lab = directory.assignment_id
    folders = [Path(folder) for folder in _submission_folders(directory)]
    # A pattern with an absolute path matches submissions and nothing else.
    pattern = directory.format_path(directory.submitted_directory, "*", lab)
    if pattern not in directory.ignore:
        directory.ignore = [*directory.ignore, pattern]
    converter.assignments = {}
    for folder in folders:
        student = folder.parent.name
        if "\n" in student or not folder.is_dir():
            converter.log.warning("Not a submission: %r", str(folder))
            continue
        converter.assignments[str(folder)] = [str(folder / f"{lab}.ipynb")]
        _set_aside_bad_timestamp(folder, converter.log)
        _remove_half_done(Path(directory.format_path(directory.autograded_directory, student, lab)), lab)


def _submission_folders(directory: Any) -> list[str]:
    import glob

    return sorted(
        glob.glob(directory.format_path(directory.submitted_directory, directory.student_id, directory.assignment_id))
    )


def is_timestamp(path: Path) -> bool:
    """Is this a small regular file that holds one time?"""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_SMALL_BYTES:
        return False
    try:
        text = path.read_text(encoding="utf-8").strip()
        return not text or isinstance(parse_utc(text), datetime)
    except (ValueError, OverflowError, TypeError, OSError):
        return False


def write_companions(submitted: Path, autograded: Path) -> None:
    """The two small files that later commands of nbgrader read: `autograde` compares times when a newer submission
    comes, and `release_feedback` ends the whole class if either file is missing for one student.
    """
    time = submitted / "timestamp.txt"
    (autograded / time.name).write_text(
        time.read_text(encoding="utf-8") if is_timestamp(time) else "", encoding="utf-8"
    )
    try:
        secret = read_regular(submitted / SECRET, MAX_SMALL_BYTES).decode("ascii")
    except (Rejected, UnicodeDecodeError):
        # Without the student's own secret nobody can fetch this page from the exchange; the others can.
        secret = secrets.token_hex(32)
    (autograded / SECRET).write_text(secret, encoding="ascii")


def _set_aside_bad_timestamp(folder: Path, log: Any) -> None:
    """A timestamp that cannot be read would cost the student the whole grade: rename it, and say so."""
    path = folder / "timestamp.txt"
    if os.path.lexists(path) and not is_timestamp(path):
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        path.rename(folder / f"timestamp.unreadable.{now}")
        log.warning("%s was no time and is set aside; lateness is unknown", path)


def _remove_half_done(folder: Path, lab: str) -> None:
    """nbgrader skips a student whose autograded folder exists, even one that a killed run left without grades."""
    if folder.is_dir() and read_stamp(folder / f"{lab}.ipynb") is None:
        shutil.rmtree(folder)


def read_stamp(notebook: Path) -> dict[str, Any] | None:
    """The result (as JSON) that the grades of an autograded notebook came from; None where grading did not finish."""
    try:
        content = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    except (OSError, ValueError):
        return None
    stamp = content.metadata.get(STAMP)
    return dict(stamp) if stamp else None
