"""`course noise`: one kernel's speed graded again and again on this machine's GPU, and what follows for the bands.

Owns: the arguments, the lines and the file of that command. The gradings and the rule are `noise.py`'s.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from autograder import noise as study
from autograder.course import Course
from autograder.intake import Rejected
from autograder.runners.devices import choose
from autograder.sandbox import tiers


def noise(course: Course, args: argparse.Namespace) -> int:
    """The whole command; gives the exit code: 1 if bands are too narrow, or no grading had a time.

    Raises: ValueError for what the user can mend.
    """
    lab = course.lab(args.lab)
    if args.times < 1 or args.draws < 0:
        raise ValueError(f"--times must be at least 1 and --draws at least 0, got {args.times} and {args.draws}")
    bands = study.bands_of(study.timed_tests(lab))
    choose(lab, "cuda")
    try:
        once = study.grader(course, lab, args.file, tiers.choose(args.sandbox))
    except Rejected as rejected:
        raise ValueError(f"{args.file}: {rejected}") from None
    suite = course.suite_version(lab)
    found: list[study.Grading] = []

    def ended(grading: study.Grading) -> None:
        _print_grading(grading)
        found.append(grading)
        if args.json:
            # After each one: whatever ends this process, what was measured is there.
            told = study.record(lab.id, args.file, suite, found, study.spreads(found, bands))
            Path(args.json).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    study.gradings(once, args.times, args.draws, ended)
    told = study.spreads(found, bands)
    print("\n".join(study.lines(told)))
    return 0 if all(each.wide_enough for each in told) else 1


def _print_grading(grading: study.Grading) -> None:
    shares = [f"{group} {share:.4f}" for group, share in grading.shares.items()]
    print("; ".join([*shares, *grading.ended.values(), f"{grading.seconds:.1f} s"]), flush=True)
