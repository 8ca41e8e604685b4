"""The door between nbgrader and the judge.

Owns: one call, from a path to a result, and which runners there are. Keeping it apart lets nbgrader's side be tested
with a judge of the test's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from autograder.judge.verdicts import SubmissionResult

Progress = Callable[[SubmissionResult], None]

RUNNERS = {"local": "autograder.runners.local"}
"""Name of a runner -> the module whose `grade_files` runs the jobs."""


class JudgeUnavailable(RuntimeError):  # noqa: N818 - read by staff in nbgrader's log
    """A submission could not be judged through no fault of the student; it is to be graded again, never scored."""


def judge(
    project: Path,
    lab: str,
    paths: Sequence[Path],
    *,
    sandbox: str = "auto",
    device: str = "auto",
    slots: int | None = None,
    runner: str = "local",
    sanitize: bool = False,
    progress: Progress | None = None,
) -> list[SubmissionResult]:
    """Results of `paths` in their order. Asking twice for the same content runs it once: the runner keeps a journal.

    Raises: ValueError for an unknown lab, sandbox, device or runner.
    """
    from autograder.course import Course

    if runner not in RUNNERS:
        raise ValueError(f"no runner {runner!r}; there is {', '.join(RUNNERS)}")
    grade_files: Callable[..., list[SubmissionResult]] = importlib.import_module(RUNNERS[runner]).grade_files
    course = Course.open(project)
    options = {"sandbox": sandbox, "device": device, "slots": slots, "sanitize": sanitize}
    return grade_files(course, lab, list(paths), progress=progress, **options)
