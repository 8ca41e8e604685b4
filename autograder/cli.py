"""The `course` command.

Owns: arguments, exit codes and what is printed. Every subcommand is a thin call into the package that does the work,
imported only when it is asked for. Exit code 0: done (for `grade`: every file was graded, whatever the scores); 1: not
done, with the reason on standard error; 2: the command line itself was wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autograder.course import Course
from autograder.gradebook.judging import RUNNERS
from autograder.nvml import gpus
from autograder.runners.devices import DEVICES
from autograder.sandbox.tiers import INSTALL_HINT, TIERS, NoSandbox


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
    from autograder.grade_command import grade

    return grade(course, args)


def _autograde(course: Course, args: argparse.Namespace) -> int:
    from autograder.grade_command import autograde

    return autograde(course, args)


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
    from autograder.grade_command import autograde_in
    from autograder.release.sample_class import build_sample_class

    root = course.state / "sample"
    failed = 0
    for lab in course.labs():
        for sample in build_sample_class(course.root, lab.id, root):
            print(f"  {sample.student}: {sample.what}")
        failed |= autograde_in(course, lab.id, root, {})
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
