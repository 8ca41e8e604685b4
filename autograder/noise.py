"""How much the clock of a GPU says of one kernel differs between gradings, and how wide bands must be for that.

Owns: gradings of one submission's speed, its spread, and the rule for bands: from one edge to the next at least three
times the spread, so that the same kernel never stands two bands apart and seldom in another. Sandbox, recording, clock
and tests are those of every grading; the tests of correctness are left out. Some gradings have one seed, which shows
the noise of the machine; the others a seed each, which shows the luck of the draw beside it.
Cost: a grading is the start of a worker and of two processes on the GPU, and the clock's rounds: most of a minute.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autograder.course import Course, Lab
from autograder.gpu.turns import Turns
from autograder.intake import take
from autograder.judge.grade import on_the_gpu, own_gpu
from autograder.judge.remote import Plan, Session
from autograder.judge.suite import HiddenTest, SuiteBroken, hidden_tests, run_test
from autograder.sandbox.launch import StartFailed

if TYPE_CHECKING:
    from autograder.gpu.subject import Seen

STEP_IN_SPREADS = 3.0
"""From the edge of one band to the next, in spreads."""
PERCENT = re.compile(r"_reach_(\d+)_percent$")
"""How the name of a test tells the band it stands for."""


@dataclass(frozen=True)
class Grading:
    """One grading: the share of the read ceiling for each group, and what ended a group without one."""

    seed: int
    shares: dict[str, float]
    ended: dict[str, str]
    cases: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    gpu: str = ""


@dataclass(frozen=True)
class Spread:
    """Of one group, with two edges or more. A spread is the largest share over the smallest, less one; None below two
    gradings."""

    group: str
    shares: tuple[float, ...]
    of_one_seed: float | None
    of_all: float | None
    edges: tuple[float, ...]

    @property
    def step(self) -> float:
        """The smallest step between two bands, relative to the lower."""
        return min(upper / lower - 1 for lower, upper in pairwise(self.edges))

    @property
    def step_due(self) -> float | None:
        """What the step must be at least, by the larger of the spreads."""
        return None if self.of_all is None else STEP_IN_SPREADS * self.of_all

    @property
    def wide_enough(self) -> bool | None:
        """Whether the bands are so wide."""
        return None if self.step_due is None else self.step >= self.step_due

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "step": self.step, "step_due": self.step_due, "wide_enough": self.wide_enough}


def gradings(once: Callable[[int], Grading], times: int, draws: int, say: Callable[[Grading], None]) -> list[Grading]:
    """`times` gradings with one seed, and one with each of `draws` others; each is said when it is there."""
    seed, *others = (secrets.randbits(63) for _ in range(1 + draws))
    found = []
    for each in (*[seed] * times, *others):
        found.append(once(each))
        say(found[-1])
    return found


def spreads(found: Sequence[Grading], bands: dict[str, tuple[float, ...]]) -> list[Spread]:
    """The spread of every group that has bands. The first grading's seed is the one that was tried again."""
    told = []
    for group, edges in bands.items():
        shares = tuple(g.shares[group] for g in found if group in g.shares)
        same = [g.shares[group] for g in found if g.seed == found[0].seed and group in g.shares]
        told.append(Spread(group, shares, _spread(same), _spread(shares), edges))
    return told


def _spread(shares: Sequence[float]) -> float | None:
    return max(shares) / min(shares) - 1 if len(shares) > 1 else None


def timed_tests(lab: Lab) -> list[HiddenTest]:
    """The hidden tests of the lab that ask for speed."""
    return [test for test in hidden_tests(lab) if test.timed]


def bands_of(tests: Sequence[HiddenTest]) -> dict[str, tuple[float, ...]]:
    """Group -> the edges of its bands, ascending, as shares. Raises: ValueError if no test has a band."""
    edges: dict[str, list[float]] = {}
    for test in tests:
        if test.timed and (told := PERCENT.search(test.name)):
            edges.setdefault(test.group, []).append(int(told[1]) / 100)
    found = {group: tuple(sorted(percents)) for group, percents in edges.items() if len(percents) > 1}
    if not found:
        raise ValueError("the lab has no group of tests whose names tell bands of speed")
    return found


def grader(course: Course, lab: Lab, path: Path, tier: str) -> Callable[[int], Grading]:
    """What grades the speed of the file on this machine's GPU with a given seed. Raises: Rejected for a bad file."""
    limits = lab.limits("cuda")
    submission = take(path, lab, limits)
    tests = timed_tests(lab)
    plan = Plan(submission.cells, tier, limits, tuple(lab.suite.PACKAGES), lab.environment("cuda"), gpu=True)

    def once(seed: int) -> Grading:
        return _grade(course, lab, tests, Session(plan), seed)

    return once


def _grade(course: Course, lab: Lab, tests: Sequence[HiddenTest], session: Session, seed: int) -> Grading:
    from autograder.gpu.stand import Stand

    start = time.monotonic()
    (name, _), *_ = lab.suite.PROVIDES.items()
    seen: Seen = []
    shares: dict[str, float] = {}
    ended: dict[str, str] = {}
    gpu = ""
    try:
        with Stand(Turns(course.state, own_gpu().node, session.pardon)) as stand:
            make, reference = on_the_gpu(lab, name, session, {}, stand, seen)
            gpu = stand.gpu
            session.sealed = True
            for test in tests:
                known = len(seen)
                result = run_test(test, make, seed, reference)
                if timings := [timing for _, timing in seen[known:]]:
                    shares[test.group] = statistics.geometric_mean(timing.share for timing in timings)
                elif test.group not in shares:
                    ended[test.group] = f"{result.verdict.value}: {result.message}"
    except (StartFailed, SuiteBroken) as fault:
        ended = {test.group: f"INFRA: {fault}" for test in tests}
    finally:
        session.close()
    cases = tuple({"case": case, **asdict(timing), "share": timing.share} for case, timing in seen)
    return Grading(seed, shares, ended, cases, time.monotonic() - start, gpu)


def lines(found: Sequence[Spread]) -> list[str]:
    """What was found, in words for staff."""
    told = []
    for each in found:
        edges = "/".join(f"{100 * edge:.0f}" for edge in each.edges)
        head = f"{each.group}: {len(each.shares)} gradings with a time; bands {edges} %, smallest step {each.step:.1%}"
        if each.of_all is None or each.step_due is None:
            told.append(f"{head}; too few to tell a spread")
            continue
        middle = statistics.median(each.shares)
        told.append(f"{head}; shares {min(each.shares):.4f} to {max(each.shares):.4f}, median {middle:.4f}")
        same = "not tried" if each.of_one_seed is None else f"{each.of_one_seed:.2%}"
        verdict = "wide enough" if each.wide_enough else "TOO NARROW"
        told.append(
            f"  spread {same} with one seed, {each.of_all:.2%} over all draws: "
            f"steps of {each.step_due:.1%} or more, so these bands are {verdict}"
        )
    return told


def record(lab: str, path: Path, suite: str, found: Sequence[Grading], told: Sequence[Spread]) -> dict[str, Any]:
    """The study as plain data; groups with their spreads, and every grading."""
    return {
        "lab": lab,
        "submission": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "suite": suite,
        "median_s": statistics.median(grading.seconds for grading in found),
        "groups": [each.to_json() for each in told],
        "gradings": [asdict(grading) for grading in found],
    }
