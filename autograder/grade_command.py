"""`course grade` and `course autograde`: what is checked first, shown meanwhile, and written at the end.

Owns: the order of these commands, their lines and their files. The work is the runner's and the gradebook's; rich,
which draws the tables, is imported when there is something to draw.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autograder.course import Course
from autograder.gradebook.judging import judge
from autograder.judge.verdicts import SubmissionResult
from autograder.runners.devices import choose

if TYPE_CHECKING:
    from rich.console import Console


def _check_device(course: Course, args: argparse.Namespace) -> None:
    choose(course.lab(args.lab), args.device)
    if args.slots is not None and args.slots < 1:
        raise ValueError(f"--slots must be at least 1, got {args.slots}")


def grade(course: Course, args: argparse.Namespace) -> int:
    """`course grade`: gives the exit code. Raises: ValueError for what the user can mend."""
    from rich.console import Console

    from autograder.report.table import Line, summary_table

    _check_device(course, args)
    _check_files(args.files, args.json, args.feedback)
    console = Console()
    names = _short_names(args.files)
    options = {"sandbox": args.sandbox, "device": args.device, "slots": args.slots, "runner": args.runner}
    options["sanitize"] = args.sanitize
    with _progress(console, dict(zip(map(str, args.files), names, strict=True))) as shown:
        results = judge(course.root, args.lab, args.files, progress=shown, **options)
    lines = [Line(name, result) for name, result in zip(names, results, strict=True)]
    console.print(summary_table(args.lab, lines))
    if args.json is not None:
        args.json.write_text(json.dumps([result.to_json() for result in results], indent=1) + "\n", encoding="utf-8")
    if args.feedback is not None:
        _write_feedback(args.feedback, args.lab, zip(names, results, strict=True))
    return 1 if any(result.status == "infra" for result in results) else 0


def _check_files(files: Sequence[Path], json_file: Path | None, feedback: Path | None) -> None:
    """Everything about paths that can be known before an hour of grading is spent."""
    missing = [str(path) for path in files if not os.path.lexists(path)]
    if missing:
        raise ValueError(f"no such file: {', '.join(missing)}; nothing was graded")
    whole = [os.path.abspath(path) for path in files]
    twice = sorted({str(path) for path, name in zip(files, whole, strict=True) if whole.count(name) > 1})
    if twice:
        raise ValueError(f"given more than once: {', '.join(twice)}; nothing was graded")
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        why = "it is a folder" if json_file.is_dir() else f"there is no folder {json_file.parent}"
        raise ValueError(f"cannot write --json {json_file}: {why}; nothing was graded")
    if feedback is not None and feedback.exists() and not feedback.is_dir():
        raise ValueError(f"cannot write --feedback {feedback}: it is no folder; nothing was graded")


def _write_feedback(folder: Path, lab: str, named: Iterator[tuple[str, SubmissionResult]]) -> None:
    """One page a submission, in the sub-folders that the submissions lie in."""
    from autograder.report.html import Feedback, feedback_page

    for name, result in named:
        page = folder / f"{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(feedback_page(Feedback(name, lab, result)), encoding="utf-8")


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Names for a table: without the folders that all paths share."""
    whole = [os.path.abspath(path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [os.path.relpath(path, shared) for path in whole]


@contextmanager
def _progress(console: Console, names: Mapping[str, str]) -> Iterator[Callable[[SubmissionResult], None]]:
    """Gives the function to call with each result as it comes: a bar with the time left on a terminal, one line a
    submission in a file or a pipe. `names`: path of a submission -> its name.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not console.is_terminal:
        yield lambda result: print(_progress_line(names[result.submission], result), flush=True)
        return

    columns = (TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("grading", total=len(names))
        yield lambda result: progress.advance(task)


def _progress_line(name: str, result: SubmissionResult) -> str:
    """Name, score (or why there is none), seconds and the first remark, on one line."""
    from autograder.report.text import clean, points_text

    end = f"{points_text(result.score)} points" if result.status == "graded" else result.status
    return clean("; ".join([f"{name}: {end}", f"{result.seconds:.1f} s", *result.flags[:1]])).replace("\n", " ")


def autograde(course: Course, args: argparse.Namespace) -> int:
    """`course autograde`: gives the exit code. Raises: ValueError for what the user can mend."""
    _check_device(course, args)
    options = {"sandbox": args.sandbox, "device": args.device, "slots": args.slots, "runner": args.runner}
    options["student"] = args.student
    return autograde_in(course, args.lab, course.root, options)


def autograde_in(course: Course, lab: str, root: Path, options: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autograder.gradebook import autograde as book
    from autograder.report.table import Line, summary_table

    console = Console()
    # `autograde` names its results by real paths.
    root = root.resolve()
    work = book.submissions(root, lab, options.get("student"))
    with _progress(console, {str(path): student for student, path in work.items()}) as shown:
        graded = book.autograde(course.root, lab, root=root, judged=shown, **options)
    console.print(summary_table(lab, [Line(g.student, g.result, g.score, g.note) for g in graded]))
    return 1 if any(g.result.status == "infra" or g.note.startswith("nbgrader failed") for g in graded) else 0
