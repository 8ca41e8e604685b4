"""The door between nbgrader and the judge.

Owns: one call, from a path to a result. Keeping it apart lets nbgrader's side be tested with a judge of the test's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autograder.judge.verdicts import SubmissionResult

Progress = Callable[[SubmissionResult], None]


class JudgeUnavailable(RuntimeError):  # noqa: N818 - read by staff in nbgrader's log
    """A submission could not be judged through no fault of the student; it is to be graded again, never scored."""


def judge(
    project: Path,
    lab: str,
    paths: Sequence[Path],
    *,
    sandbox: str = "auto",
    slots: int | None = None,
    progress: Progress | None = None,
) -> list[SubmissionResult]:
    """Results of `paths` in their order. Asking twice for the same content runs it once: the runner keeps a journal."""
    from autograder.course import Course
    from autograder.runners.local import grade_files

    course = Course.open(project)
    return grade_files(course, lab, list(paths), sandbox=sandbox, slots=slots, progress=progress)
