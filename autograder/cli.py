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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autograder.course import Course
from autograder.gradebook.judging import RUNNERS, judge
from autograder.judge.verdicts import SubmissionResult
from autograder.nvml import gpus
from autograder.runners.devices import DEVICES, choose
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
    grade.add_argument("--sanitize", action="store_true", help="on a GPU: accesses outside of tensors too, ungraded")
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
    site.add_argument(
        "--instructor", action="store_true", help="with the answers of solutions/chapters/, into .course/instructor"
    )
    site.set_defaults(run=_site)

    pdf = commands.add_parser("pdf", help="print the book into one PDF, with Chromium; builds what changed first")
    pdf.add_argument("--out", type=Path, metavar="FILE", help="(default: _build/padding-to-paging.pdf)")
    pdf.add_argument("--site", type=Path, metavar="FOLDER", help="print this built site, build nothing")
    pdf.set_defaults(run=_pdf)

    serve = commands.add_parser("serve", help="serve the built book on this machine")
    serve.add_argument("--port", type=int, default=8000)
    serve.set_defaults(run=_serve)

    sample = commands.add_parser("sample", help="make a sample class and grade it with the hidden tests")
    sample.set_defaults(run=_sample)

    doctor = commands.add_parser("doctor", help="what this machine can do, with every deny of the sandbox tried")
    doctor.set_defaults(run=_doctor)

    redteam = commands.add_parser("redteam", help="every attack and every honest design, graded: nobody may gain")
    redteam.add_argument("files", nargs="*", type=Path, metavar="FILE", help="only these of tests/submissions/")
    redteam.add_argument("--lab", help="only this lab")
    redteam.add_argument(
        "--kind", choices=("correct", "hostile", "wrong"), action="append", help="only these; may be said again"
    )
    redteam.add_argument("--device", choices=DEVICES, default="auto", help="auto takes every device that is here")
    redteam.add_argument("--sandbox", choices=("auto", *TIERS), default="auto")
    redteam.add_argument(
        "--jobs", type=int, help="graded at once (default: one a core); on GPUs, on each of them (default: one)"
    )
    redteam.add_argument("--json", type=Path, metavar="OUT", help="write every trial as JSON, with all verdicts")
    redteam.add_argument("--resume", action="store_true", help="leave out what is in OUT already, of the same suite")
    redteam.add_argument(
        "--compare", nargs=2, type=Path, metavar="JSON", help="grade nothing: tell the verdicts of two such files apart"
    )
    redteam.set_defaults(run=_redteam)

    noise = commands.add_parser("noise", help="how much gradings of one kernel's speed differ on this GPU")
    noise.add_argument("lab")
    noise.add_argument("file", type=Path, metavar="FILE")
    noise.add_argument("--times", type=int, default=5, help="gradings with one seed (default 5)")
    noise.add_argument("--draws", type=int, default=5, help="and with another seed each (default 5)")
    noise.add_argument("--sandbox", choices=("auto", *TIERS), default="auto")
    noise.add_argument("--json", type=Path, metavar="OUT", help="write every grading and the spreads")
    noise.set_defaults(run=_noise)

    where = commands.add_parser("where", help="where the built things are")
    where.set_defaults(run=_where)
    return parser


def _grading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runner", choices=tuple(RUNNERS), default="local", help="who runs the jobs")
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="auto takes a GPU if there is one and the lab has use for it"
    )
    parser.add_argument(
        "--sandbox", choices=("auto", *TIERS), default="auto", help="none runs student code without isolation"
    )
    parser.add_argument(
        "--slots",
        type=int,
        help="submissions graded at once (default: one a core); on GPUs, on each of them (default: one)",
    )


def _check_device(course: Course, args: argparse.Namespace) -> None:
    choose(course.lab(args.lab), args.device)
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
        raise UserError(f"no such file: {', '.join(missing)}; nothing was graded")
    whole = [os.path.abspath(path) for path in files]
    twice = sorted({str(path) for path, name in zip(files, whole, strict=True) if whole.count(name) > 1})
    if twice:
        raise UserError(f"given more than once: {', '.join(twice)}; nothing was graded")
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        why = "it is a folder" if json_file.is_dir() else f"there is no folder {json_file.parent}"
        raise UserError(f"cannot write --json {json_file}: {why}; nothing was graded")
    if feedback is not None and feedback.exists() and not feedback.is_dir():
        raise UserError(f"cannot write --feedback {feedback}: it is no folder; nothing was graded")


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


def _autograde(course: Course, args: argparse.Namespace) -> int:
    _check_device(course, args)
    options = {"sandbox": args.sandbox, "device": args.device, "slots": args.slots, "runner": args.runner}
    options["student"] = args.student
    return _autograde_in(course, args.lab, course.root, options)


def _autograde_in(course: Course, lab: str, root: Path, options: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autograder.gradebook.autograde import autograde, submissions
    from autograder.report.table import Line, summary_table

    console = Console()
    # `autograde` names its results by real paths.
    root = root.resolve()
    work = submissions(root, lab, options.get("student"))
    with _progress(console, {str(path): student for student, path in work.items()}) as shown:
        graded = autograde(course.root, lab, root=root, judged=shown, **options)
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
        site = build_site(course.root, out=args.out, answers=args.instructor)
    except SiteError as error:
        raise UserError(str(error)) from error
    print(f"{site.html / 'index.html'}")
    return 0


def _pdf(course: Course, args: argparse.Namespace) -> int:
    from autograder.release.pdf import can_print, print_book
    from autograder.release.site import SiteError, build_site

    try:
        can_print()
        html = args.site or build_site(course.root).html
        print(print_book(html, args.out or course.root / "_build" / "padding-to-paging.pdf").file)
    except SiteError as error:
        raise UserError(str(error)) from error
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
        failed |= _autograde_in(course, lab.id, root, {})
    return failed


def _redteam(course: Course, args: argparse.Namespace) -> int:
    from autograder.redteam_command import redteam

    return redteam(course, args)


def _noise(course: Course, args: argparse.Namespace) -> int:
    from autograder.noise_command import noise

    return noise(course, args)


def _doctor(course: Course, args: argparse.Namespace) -> int:
    from autograder.sandbox.doctor import examine, tiers_here
    from autograder.sandbox.tiers import without_bytecode

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
    packages = {name for lab in course.labs() for name in lab.suite.PACKAGES}
    if slow := without_bytecode(sorted(packages)):
        print(
            f"bytecode: {len(slow)} packages of the labs have none, so every worker spends seconds on compiling them; "
            f"run: {sys.executable} -m compileall -q {slow[0].parent}"
        )
    for tool, use in (("chromium", "tests of the site"), ("nvidia-smi", "GPU groups")):
        print(f"{tool}: {shutil.which(tool) or f'not found ({use})'}")
    for gpu in gpus():
        print(f"GPU /dev/{gpu.node}: {gpu.name or 'of unknown name, as libnvidia-ml is missing'}")
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
