"""`course redteam`: what is tried, what is printed, and when it is no success.

Owns: the order of that command and its lines. The trials are `redteam.py`'s, the comparison of two records
`redteam_apart.py`'s.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from autograder import redteam as trying
from autograder import redteam_apart
from autograder.course import Course, Lab
from autograder.redteam import Told, Trial
from autograder.runners.devices import choose, here


def redteam(course: Course, args: argparse.Namespace) -> int:
    """The whole command; gives the exit code. Raises: ValueError for what the user can mend."""
    if args.compare:
        return _apart(course, *args.compare)
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {args.jobs}")
    if args.resume and not args.json:
        raise ValueError("--resume goes on with the file that --json names; say which")
    start = time.monotonic()
    trials = _kept(course, args.json) if args.resume and args.json.exists() else []
    known = {(trial.lab, trial.device, trial.kind, trial.name) for trial in trials}

    def ended(trial: Trial) -> None:
        _print_trial(trial)
        trials.append(trial)
        if args.json:
            # After each one: whatever ends this process, what was graded is there.
            told = json.dumps([each.to_json() for each in trials], indent=1) + "\n"
            args.json.write_text(told, encoding="utf-8")

    for lab, chosen in _chosen(course, args):
        for device in [d for d in here() if d in lab.devices] if args.device == "auto" else [choose(lab, args.device)]:
            left = [each for each in chosen if (lab.id, device, each.kind, each.path.stem) not in known]
            trying.run(course, lab, device, left, args.sandbox, ended, args.jobs)
    if not trials:
        raise ValueError("nothing of tests/submissions/ is meant by these arguments")
    return _told_of_trials(trials, time.monotonic() - start)


def _kept(course: Course, path: Path) -> list[Trial]:
    """The trials in a file that hold for the tests and the grader as they are now."""
    trials = [Trial.from_json(data) for data in redteam_apart.read(path)]
    suites = {lab.id: course.suite_version(lab) for lab in course.labs()}
    return [trial for trial in trials if suites.get(trial.lab) == trial.result.suite]


def _chosen(course: Course, args: argparse.Namespace) -> Iterator[tuple[Lab, list[Told]]]:
    """The submissions of each lab that the arguments mean, in the order of grading."""
    labs = [lab for lab in course.labs() if args.lab in (None, lab.id)]
    told = {lab.id: trying.corpus_of(course, lab.id) for lab in labs}
    wanted = {path.resolve() for path in args.files}
    if stray := wanted - {each.path.resolve() for found in told.values() for each in found}:
        raise ValueError(f"{min(stray)} is no submission of tests/submissions/ to {args.lab or 'any lab'}")
    for lab in labs:
        chosen = [each for each in told[lab.id] if not wanted or each.path.resolve() in wanted]
        yield lab, trying.in_order([each for each in chosen if not args.kind or each.kind in args.kind])


def _apart(course: Course, one: Path, other: Path) -> int:
    known = {
        (lab.id, told.path.stem): told.on_a_gpu for lab in course.labs() for told in trying.corpus_of(course, lab.id)
    }
    found = redteam_apart.compare(redteam_apart.read(one), redteam_apart.read(other), known)
    print("\n".join(redteam_apart.lines(found)))
    return 1 if found.apart else 0


def _print_trial(trial: Trial) -> None:
    ended = f"FAULT {'; '.join(trial.faults)}" if trial.faults else "held"
    about = f" [{', '.join(trial.catalogue)}] {trial.about}" if trial.kind == "hostile" else ""
    print(
        f"{trial.lab[:4]} {trial.device:4} {trial.kind:7} {trial.name:38} {trial.result.score:6.2f} "
        f"{trial.result.seconds:6.1f} s  {ended}{about}",
        flush=True,
    )


def _told_of_trials(trials: Sequence[Trial], whole_s: float) -> int:
    kinds = {kind: [t for t in trials if t.kind == kind] for kind in ("correct", "hostile", "wrong")}
    ids = sorted({number for trial in trials for number in trial.catalogue})
    faulty = [trial for trial in trials if trial.faults]
    gained = [trial for trial in trials if trial.gained]
    for device in sorted({trial.device for trial in trials}):
        here_s = [trial.result.seconds for trial in trials if trial.device == device]
        print(
            f"{device}: {len(here_s)} submissions, median {median(here_s):.1f} s each, the longest {max(here_s):.1f} s"
        )
    print(
        f"{len(kinds['hostile'])} attacks ({len(ids)} numbers of the catalogue: {' '.join(ids)}), "
        f"{len(kinds['correct'])} honest designs, {len(kinds['wrong'])} misconceptions; "
        f"{whole_s:.0f} s in all; {len(gained)} gained, {len(faulty)} did not hold"
    )
    for trial in faulty:
        print(f"  {trial.lab[:4]} {trial.device} {trial.kind} {trial.name}: {'; '.join(trial.faults)}")
    return 1 if faulty else 0
