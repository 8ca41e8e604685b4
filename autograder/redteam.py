"""Every attack that was ever found, and honest work beside it, through the real sandbox and judge.

Owns: what counts as a gain, a leak, a harm or a delay, and the table. The submissions and what each says of itself
stand in `tests/submissions/` and are read by `tests/corpus.py`; they are graded by the runner like anybody's. Honest
work is graded first, in the middle and last, so that a grader which gives nothing to anybody, or which an attack has
damaged for those behind it, fails here too. Two records of this are compared by `redteam_apart.py`.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from autograder.course import Course, Lab, load_module
from autograder.judge.suite import HiddenTest, hidden_tests
from autograder.judge.verdicts import SubmissionResult, Verdict
from autograder.runners.local import JUDGE_GRACE_S, default_slots, grade_files

GAINED, LOST, HARMED = "gained", "honest, and lost", "a file of the course changed"
"""How the faults of these kinds begin."""
MARK = "SMUGGLED"
"""What attacks write where hidden values would stand if they could carry them out."""


@dataclass(frozen=True)
class Trial:
    """One submission on one device, what it says of itself, and what is wrong with how it ended; nothing if it held."""

    lab: str
    device: str
    kind: str
    name: str
    about: str
    catalogue: tuple[str, ...]
    result: SubmissionResult
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data: the result as `course grade` has it, and what is known of the submission."""
        return {
            **self.result.to_json(),
            "kind": self.kind, "name": self.name, "about": self.about, "catalogue": list(self.catalogue),
            "faults": list(self.faults),
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Trial:
        """The inverse of `to_json`."""
        result = SubmissionResult.from_json(data)
        lists = tuple(data["catalogue"]), result, tuple(data["faults"])
        return cls(data["lab"], data["device"], data["kind"], data["name"], data["about"], *lists)

    @property
    def gained(self) -> bool:
        """Whether it was paid for what it must not be paid for."""
        return any(fault.startswith(GAINED) for fault in self.faults)


@dataclass(frozen=True)
class Told:
    """A submission with the header that its file has."""

    kind: str
    path: Path
    about: str
    catalogue: tuple[str, ...] = ()
    honest_groups: tuple[str, ...] = ()
    killed_by: tuple[tuple[str, str], ...] = ()
    """(module, test) pairs that must not pass."""
    on_a_gpu: str = ""
    """Why a GPU may see more of it; "" if it must not."""


def corpus_of(course: Course, lab: str) -> list[Told]:
    """Every submission of a lab: the honest designs, the attacks, the misconceptions."""
    corpus = load_module(course.root / "tests" / "corpus.py", "corpus")
    told = [Told("correct", path, "an honest design") for path in corpus.files(lab, "correct")]
    for attack in corpus.hostile(lab):
        told.append(Told("hostile", attack.path, attack.attack, attack.catalogue, attack.honest_groups))
    for wrong in corpus.wrong(lab):
        told.append(Told("wrong", wrong.path, wrong.misconception, killed_by=wrong.killed_by, on_a_gpu=wrong.on_a_gpu))
    return told


def run(
    course: Course,
    lab: Lab,
    device: str,
    told: Sequence[Told],
    sandbox: str,
    say: Callable[[Trial], None],
    jobs: int | None = None,
) -> list[Trial]:
    """Grade them, `jobs` at once: if not said, one on each GPU, and on a CPU as many as it has cores.

    They are said, and come back, in the order of `waves`, whoever ends first; whom the others may have kept from a
    grade is graded again alone, and said behind its wave. Nothing is taken from the course's journal or left there.
    Raises: as `runners.local.grade_files`.
    """
    jobs = jobs or (1 if device == "cuda" else default_slots())
    watch = _Watch(course)
    trials: list[Trial] = []

    def grade(these: Sequence[Told], at_once: int, ended: Callable[[Trial], None]) -> None:
        by_path = {str(each.path): each for each in these}

        def tried(result: SubmissionResult) -> None:
            each = by_path[result.submission]
            faults = (*_faults(each, result, lab, device), *watch.harm())
            about = (each.kind, each.path.stem, each.about, each.catalogue)
            ended(Trial(lab.id, device, *about, result, faults))

        with TemporaryDirectory() as folder:
            grade_files(
                course, lab.id, [each.path for each in these], sandbox=sandbox, device=device, slots=at_once,
                progress=tried, journal=Path(folder) / "journal.sqlite",
            )  # fmt: skip

    for wave in waves(told, device, jobs):
        found: dict[str, Trial] = {}
        ahead = [str(each.path) for each in wave]

        def ended(trial: Trial, found: dict[str, Trial] = found, ahead: list[str] = ahead) -> None:
            found[trial.result.submission] = trial
            while ahead and ahead[0] in found:
                first = found[ahead.pop(0)]
                if not _disturbed(first, jobs):
                    say(first)

        def again(trial: Trial, found: dict[str, Trial] = found) -> None:
            path = trial.result.submission
            harm = (fault for fault in found[path].faults if fault.startswith(HARMED))
            found[path] = replace(trial, faults=(*harm, *trial.faults))
            say(found[path])

        grade(wave, jobs, ended)
        for each in wave:
            if _disturbed(found[str(each.path)], jobs):
                grade([each], 1, again)
        trials += (found[str(each.path)] for each in wave)
    return trials


def waves(told: Sequence[Told], device: str, jobs: int) -> list[list[Told]]:
    """Who may be graded at the same time. On a GPU that several share, attacks are among themselves, as they may take
    all of its memory; half of the honest are graded before them, half behind."""
    if device != "cuda" or jobs == 1:
        return [list(told)] if told else []
    honest = [each for each in told if each.kind == "correct"]
    before = [each for each in told if each.kind == "wrong" or each in honest[::2]]
    found = [before, [each for each in told if each.kind == "hostile"], honest[1::2]]
    return [wave for wave in found if wave]


def _disturbed(trial: Trial, jobs: int) -> bool:
    """Whether neighbours may have had a hand in it, and nothing is hidden if it is graded again."""
    lost = trial.kind == "correct" and any(fault.startswith(LOST) for fault in trial.faults)
    return jobs > 1 and (trial.result.status == "infra" or (lost and trial.device == "cuda"))


class _Watch:
    """The course's files, looked at from time to time."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._before = files_of(course)

    def harm(self) -> tuple[str, ...]:
        """What changed since the last look, in words for the instructor; nothing if nothing did."""
        after, before = files_of(self._course), self._before
        self._before = after
        changed = sorted(name for name in {*after, *before} if after.get(name) != before.get(name))
        return (f"{HARMED}: {', '.join(changed[:3])}",) if changed else ()


def _faults(told: Told, result: SubmissionResult, lab: Lab, device: str) -> Iterator[str]:
    """What is wrong with a result, in words for the instructor."""
    if result.status != "graded":
        yield f"ended as {result.status}: {' '.join(result.flags)[:200]}"
        return
    # What the runner gives a judge before it ends it, and then there is no grade.
    if result.seconds > lab.limits(device).total_s + JUDGE_GRACE_S:
        yield f"held up the queue for {result.seconds:.0f} s"
    if MARK in str(result.to_json()):
        yield "a hidden value reached the feedback"
    verdicts = {(group.id, test.name): test for group in result.groups for test in group.tests}
    if told.kind == "correct":
        timed = {test.name for test in _timed(lab)}
        lost = [n for (_, n), t in verdicts.items() if t.counts and t.verdict is not Verdict.PASS and n not in timed]
        if lost:
            yield f"{LOST} {', '.join(lost[:3])}"
    if told.kind == "wrong":
        groups = {(module, name): group for module, group, name in _where(lab)}
        named = {pair: verdicts[groups[pair], pair[1]] for pair in told.killed_by}
        alive = [f"{module}.{name}" for (module, name), t in named.items() if t.verdict is Verdict.PASS and t.counts]
        if alive:
            yield f"passed {', '.join(alive)}"
    if told.kind == "hostile":
        yield from _gains(told, result)


def _timed(lab: Lab) -> list[HiddenTest]:
    return [test for test in hidden_tests(lab) if test.timed]


def _where(lab: Lab) -> Iterator[tuple[str, str, str]]:
    """(module, group, name) of every hidden test; two modules may have tests of one name."""
    for test in hidden_tests(lab):
        yield test.run.__module__.removeprefix(f"hidden_{lab.id}_"), test.group, test.name


def _gains(told: Told, result: SubmissionResult) -> Iterator[str]:
    if not told.honest_groups and result.score > 0:
        yield f"{GAINED} {result.score:g} points"
    for group in result.groups:
        if told.honest_groups and group.id not in told.honest_groups and group.points >= group.max_points:
            yield f"{GAINED} all of {group.id}"


def files_of(course: Course) -> dict[str, str]:
    """The course's files with their hashes; what commands make in passing aside."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=course.root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        # No checkout: then all that the folders of the course hold.
        folders = ("autograder", "labs", "reference_impl", "tests", "solutions", "chapters")
        found = [path for folder in folders for path in (course.root / folder).rglob("*") if path.is_file()]
        listed = [str(path.relative_to(course.root)) for path in found if "__pycache__" not in path.parts]
    files = ((name, course.root / name) for name in listed)
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files if path.is_file()}


def in_order(told: Sequence[Told]) -> list[Told]:
    """Attacks between honest designs: some before them, one after every few, the rest behind."""
    honest = [each for each in told if each.kind == "correct"]
    others = [each for each in told if each.kind != "correct"]
    if not honest:
        return others
    spacing = max(1, len(others) // len(honest))
    ordered: list[Told] = []
    for place, each in enumerate(others):
        if place % spacing == 0 and len(honest) > 1:
            ordered.append(honest.pop(0))
        ordered.append(each)
    return [*ordered, *honest]
