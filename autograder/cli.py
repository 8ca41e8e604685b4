"""The `course` command.

Owns: arguments, exit codes and what is printed. Every subcommand is a thin call into the package that does the work,
imported only when it is asked for. Exit code 0: done (for `grade`: every file was graded, whatever the scores); 1: not
done, with the reason on standard error; 2: the command line itself was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autograder.course import Course
from autograder.judge.verdicts import SubmissionResult
from autograder.sandbox.tiers import INSTALL_HINT, TIERS, NoSandbox

if TYPE_CHECKING:
    from rich.console import Console


class UserError(Exception):
    """Something the user can mend; printed as one line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        course = Course.open(args.root)
        return int(args.run(course, args))
    except (UserError, ValueError, NoSandbox, OSError) as error:
        print(f"course {args.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="course", description="Padding to Paging: labs, grading and the site.")
    parser.add_argument("--root", type=Path, help="the course's folder (default: found above the working folder)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    labs = commands.add_parser("labs", help="student notebooks from solutions/")
    labs.add_argument("--check", action="store_true", help="write nothing; exit 1 if a notebook is not up to date")
    labs.set_defaults(run=_labs)

    grade = commands.add_parser("grade", help="grade .ipynb or .py files of one lab")
    grade.add_argument("lab")
    grade.add_argument("files", nargs="+", type=Path, metavar="FILE")
    _grading_options(grade)
    grade.add_argument("--json", type=Path, metavar="OUT", help="write the results as JSON, one object per submission")
    grade.add_argument("--feedback", type=Path, metavar="FOLDER", help="write an HTML page per submission")
    grade.set_defaults(run=_grade)

    autograde = commands.add_parser("autograde", help="grade everything in submitted/ through nbgrader's gradebook")
    autograde.add_argument("lab")
    autograde.add_argument("--student", help="only this student")
    _grading_options(autograde)
    autograde.set_defaults(run=_autograde)

    report = commands.add_parser("report", help="the class report of a lab, from the gradebook")
    report.add_argument("lab")
    report.add_argument("--out", type=Path, metavar="FOLDER")
    report.set_defaults(run=_report)

    bundle = commands.add_parser("bundle", help="what students get for a lab, as a zip without answers")
    bundle.add_argument("lab")
    bundle.add_argument("--out", type=Path, metavar="ZIP")
    bundle.set_defaults(run=_bundle)

    site = commands.add_parser("site", help="build the book")
    site.add_argument("--out", type=Path, metavar="FOLDER")
    site.set_defaults(run=_site)

    serve = commands.add_parser("serve", help="serve the built book on this machine")
    serve.add_argument("--port", type=int, default=8000)
    serve.set_defaults(run=_serve)

    sample = commands.add_parser("sample", help="make a sample class and grade it with the hidden tests")
    sample.set_defaults(run=_sample)

    doctor = commands.add_parser("doctor", help="what this machine can do, with every deny of the sandbox tried")
    doctor.set_defaults(run=_doctor)

    where = commands.add_parser("where", help="where the built things are")
    where.set_defaults(run=_where)
    return parser


def _grading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runner", choices=("local",), default="local", help="who runs the jobs")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--sandbox", choices=("auto", *TIERS), default="auto", help="none runs student code without isolation"
    )
    parser.add_argument("--slots", type=int, help="submissions graded at once (default: one a core)")


def _check_device(course: Course, args: argparse.Namespace) -> None:
    lab = course.lab(args.lab)
    if args.device == "cuda":
        raise UserError(f"{lab.id} has no group that runs on a GPU; use --device auto or cpu")
    if args.slots is not None and args.slots < 1:
        raise UserError(f"--slots must be at least 1, got {args.slots}")


def _labs(course: Course, args: argparse.Namespace) -> int:
    from autograder.release.labs import check_labs, write_labs

    if not args.check:
        for state in write_labs(course.root):
            print(f"{state.lab}: {'up to date' if state.fresh else 'written'}")
        return 0
    stale = [state for state in check_labs(course.root) if not state.fresh]
    for state in stale:
        print(f"{state.lab} is stale; run `course labs`\n{state.diff}")
    return 1 if stale else 0


def _grade(course: Course, args: argparse.Namespace) -> int:
    from rich.console import Console

    from autograder.report.html import Feedback, feedback_page
    from autograder.report.table import Line, summary_table
    from autograder.runners.local import grade_files

    _check_device(course, args)
    missing = [str(path) for path in args.files if not os.path.lexists(path)]
    if missing:
        raise UserError(f"no such file: {', '.join(missing)}; nothing was graded")
    console = Console()
    with _bar(console, len(args.files)) as shown:
        results = grade_files(course, args.lab, args.files, sandbox=args.sandbox, slots=args.slots, progress=shown)
    names = _short_names(args.files)
    lines = [Line(name, result) for name, result in zip(names, results, strict=True)]
    console.print(summary_table(args.lab, lines))
    if args.json is not None:
        args.json.write_text(json.dumps([result.to_json() for result in results], indent=1) + "\n", encoding="utf-8")
    if args.feedback is not None:
        args.feedback.mkdir(parents=True, exist_ok=True)
        for name, result in zip(names, results, strict=True):
            page = args.feedback / (name.replace("/", "-") + ".html")
            page.write_text(feedback_page(Feedback(name, args.lab, result)), encoding="utf-8")
    return 1 if any(result.status == "infra" for result in results) else 0


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Names for a table: without the folders that all paths share."""
    whole = [os.path.abspath(path) for path in paths]
    shared = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [os.path.relpath(path, shared) for path in whole]


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Callable[[SubmissionResult], None]]:
    """A progress bar with the time left; gives the function to call with each result."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("grading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("grading", total=total)
        yield lambda result: progress.advance(task)


def _autograde(course: Course, args: argparse.Namespace) -> int:
    _check_device(course, args)
    return _autograde_in(course, args.lab, course.root, args.student, args.sandbox, args.slots)


def _autograde_in(course: Course, lab: str, root: Path, student: str | None, sandbox: str, slots: int | None) -> int:
    from rich.console import Console

    from autograder.gradebook.autograde import autograde, submissions
    from autograder.report.table import Line, summary_table

    console = Console()
    with _bar(console, len(submissions(root, lab, student))) as shown:
        graded = autograde(course.root, lab, root=root, student=student, sandbox=sandbox, slots=slots, judged=shown)
    console.print(summary_table(lab, [Line(g.student, g.result, g.score, g.note) for g in graded]))
    return 1 if any(g.result.status == "infra" or g.note.startswith("nbgrader failed") for g in graded) else 0


def _report(course: Course, args: argparse.Namespace) -> int:
    from autograder.gradebook.autograde import class_results
    from autograder.report.class_report import write_class_report

    folder = args.out or course.root / "_build" / "report"
    for path in write_class_report(args.lab, class_results(course.root, course.lab(args.lab).id), folder):
        print(path)
    return 0


def _bundle(course: Course, args: argparse.Namespace) -> int:
    from autograder.release.bundle import build_bundle

    lab = course.lab(args.lab).id
    print(build_bundle(course.root, lab, args.out or course.root / "_build" / "bundle" / f"{lab}.zip"))
    return 0


def _site(course: Course, args: argparse.Namespace) -> int:
    from autograder.release.site import SiteError, build_site

    try:
        site = build_site(course.root, out=args.out)
    except SiteError as error:
        raise UserError("\n  ".join((str(error), *error.problems))) from error
    print(f"{site.html / 'index.html'}")
    return 0


def _serve(course: Course, args: argparse.Namespace) -> int:
    from autograder.release.site import SiteError, serve_site

    try:
        server = serve_site(course.root, args.port)
    except SiteError as error:
        raise UserError(str(error)) from error
    print(f"http://localhost:{server.server_port}/ (Ctrl-C ends it)")
    with suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


def _sample(course: Course, args: argparse.Namespace) -> int:
    from autograder.release.sample_class import build_sample_class

    root = course.state / "sample"
    failed = 0
    for lab in course.labs():
        for sample in build_sample_class(course.root, lab.id, root):
            print(f"  {sample.student}: {sample.what}")
        failed |= _autograde_in(course, lab.id, root, None, "auto", None)
    return failed


def _doctor(course: Course, args: argparse.Namespace) -> int:
    from autograder.sandbox.doctor import examine, tiers_here

    works = tiers_here()
    for tier, ok in works.items():
        print(f"sandbox tier {tier}: {'works' if ok else 'does not work here'}")
        if not ok and tier == "bubblewrap":
            print(f"  install it with: {INSTALL_HINT}")
        bad = 0
        for finding in examine(tier, course.root, os.getpid()) if ok else ():
            bad += not finding.ok
            print(f"  {'ok ' if finding.ok else 'BAD'} {finding.probe}: {finding.detail}")
        if bad:
            raise UserError(f"{bad} probes of tier {tier} did not end as they must; do not grade with it")
    for tool, use in (("chromium", "tests of the site"), ("nvidia-smi", "GPU groups")):
        print(f"{tool}: {shutil.which(tool) or f'not found ({use})'}")
    if not any(works.values()):
        raise UserError(f"no sandbox works here, so hidden grading is refused; {INSTALL_HINT}")
    return 0


def _where(course: Course, args: argparse.Namespace) -> int:
    for what, path in (
        ("the site", course.root / "_build" / "html" / "index.html"),
        ("the sample class", course.state / "sample"),
        ("student notebooks", course.root / "labs"),
    ):
        print(f"{what}: {path}" + ("" if path.exists() else " (not built)"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
