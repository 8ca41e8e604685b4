"""`course autograde LAB`: everything in submitted/, through nbgrader, in one process.

Owns: the order of work. All submissions are judged first (several at a time, each journalled when it is finished), then
nbgrader enters them one student at a time. A step is skipped only if the autograded notebook carries exactly this
result, a mark that is written last, and the gradebook holds its points. So a run that was killed anywhere is simply run
again, and so is one whose gradebook was lost or replaced by an older one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autograder.gradebook.config import api
from autograder.gradebook.exporter import read_stamp
from autograder.gradebook.judging import judge
from autograder.judge.verdicts import SubmissionResult
from autograder.release.labs import generate
from autograder.report.text import clean_values


@dataclass(frozen=True)
class Graded:
    """One student after `autograde`. `score` is the gradebook's, None if nothing was entered; `note` says what
    happened: graded, unchanged, or why not."""

    student: str
    result: SubmissionResult
    score: float | None
    note: str


def submissions(root: Path, lab: str, student: str | None = None) -> dict[str, Path]:
    """Student -> expected notebook, there or not, for every folder in submitted/. Sorted by student.

    Raises: ValueError if there is none, naming where was looked.
    """
    found = {
        folder.parent.name: folder / f"{lab}.ipynb"
        for folder in sorted((root / "submitted").glob(f"*/{lab}"))
        if folder.is_dir() and student in (None, folder.parent.name)
    }
    if not found:
        who = f"from {student} " if student else ""
        raise ValueError(f"no submission {who}to {lab} in {root / 'submitted'}")
    return found


def autograde(
    project: Path,
    lab: str,
    *,
    root: Path | None = None,
    student: str | None = None,
    sandbox: str = "auto",
    device: str = "auto",
    slots: int | None = None,
    runner: str = "local",
    force: bool = False,
    judged: Callable[[SubmissionResult], None] | None = None,
    entered: Callable[[Graded], None] | None = None,
) -> list[Graded]:
    """Judge and enter every submission of `lab`; one entry a student, sorted.

    `project` holds labs and hidden tests, `root` (default: the same) is nbgrader's course directory. `judged` is called
    with each result as it comes, `entered` with each student after nbgrader is done. One student's failure is that
    student's note. Raises: ValueError for an unknown lab or if nothing was submitted.
    """
    root = (root or project).resolve()
    work = submissions(root, lab, student)
    ensure_assignment(project, lab, root)
    options: dict[str, Any] = {"sandbox": sandbox, "device": device, "slots": slots, "runner": runner}
    results = judge(project, lab, list(work.values()), progress=judged, **options)
    # Handed over, since a file of the grader that is edited meanwhile would make the journal ask for a new grading.
    known = {str(path): result.to_json() for path, result in zip(work.values(), results, strict=True)}
    nbgrader = api(root, project, sandbox=sandbox, runner=runner, known=known)
    graded = []
    for name, result in zip(work, results, strict=True):
        note = _enter(nbgrader, root, lab, name, result, force)
        line = Graded(name, result, _score(nbgrader, lab, name), note)
        graded.append(line)
        if entered is not None:
            entered(line)
    return graded


def ensure_assignment(project: Path, lab: str, root: Path) -> None:
    """Enter the cells and points of `lab` in the gradebook of `root` if they are not there yet."""
    nbgrader = api(root, project)
    with nbgrader.gradebook as book:
        known = any(assignment.name == lab and assignment.notebooks for assignment in book.assignments)
    if not known:
        generate(project, lab, root)


def _enter(nbgrader: Any, root: Path, lab: str, student: str, result: SubmissionResult, force: bool) -> str:
    """Let nbgrader take in one student; returns what happened."""
    if result.status == "infra":
        return f"not graded, our fault: {'; '.join(result.flags)}"
    stamp = read_stamp(root / "autograded" / student / lab / f"{lab}.ipynb")
    same = stamp is not None and _same(SubmissionResult.from_json(stamp), result)
    if same and not force and _is_entered(nbgrader, lab, student, result):
        return "unchanged"
    outcome = nbgrader.autograde(lab, student, force=True)
    if outcome["success"]:
        return "graded"
    lines = [line for line in str(outcome.get("log") or outcome.get("error", "")).splitlines() if line.strip()]
    return "nbgrader failed: " + (lines[-1] if lines else "no reason given")


def _same(before: SubmissionResult, now: SubmissionResult) -> bool:
    # As the stamp holds it: cleaned.
    now = SubmissionResult.from_json(clean_values(now.to_json()))
    keys = ("sha256", "suite", "seed_id", "status", "groups", "flags")
    return all(getattr(before, key) == getattr(now, key) for key in keys)


def _is_entered(nbgrader: Any, lab: str, student: str, result: SubmissionResult) -> bool:
    """Does the gradebook hold the points of `result`? A human's score beside them does not matter."""
    from nbgrader.api import MissingEntry  # type: ignore[import-untyped]

    with nbgrader.gradebook as book:
        try:
            submission = book.find_submission(lab, student)
        except MissingEntry:
            return False
        held = {grade.name: grade.auto_score for notebook in submission.notebooks for grade in notebook.grades}
    return all(held.get(group.id) == group.points for group in result.groups)


def _score(nbgrader: Any, lab: str, student: str) -> float | None:
    """The gradebook's score before any penalty for lateness."""
    from nbgrader.api import MissingEntry

    with nbgrader.gradebook as book:
        try:
            return round(float(book.find_submission(lab, student).score), 2)
        except MissingEntry:
            return None


def class_results(root: Path, lab: str) -> list[tuple[str, SubmissionResult]]:
    """Student and result of every submission that was graded in `root`, sorted; nothing is graded here."""
    found: Sequence[Path] = sorted((root / "autograded").glob(f"*/{lab}/{lab}.ipynb"))
    stamps = [(path.parent.parent.name, read_stamp(path)) for path in found]
    return [(student, SubmissionResult.from_json(stamp)) for student, stamp in stamps if stamp is not None]
