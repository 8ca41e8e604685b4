"""What a graded test can end in, and what a submission's result looks like.

Owns: the verdicts, whose fault each is, and the result records with their JSON form (the schema of `course grade
--json` and of the journal). Knows nothing of how a verdict was reached. Points are a pure function of verdicts and
weights, here and nowhere else: not finite, negative or above the maximum cannot occur.
"""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass, field
from enum import Enum
from fractions import Fraction
from typing import Any


def clean(text: str) -> str:
    """`text` without control characters and lone surrogates: what a student wrote must neither act on a terminal nor
    be impossible to write to a file."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in text)


class Verdict(Enum):
    """The end of one hidden test. INFRA is ours and never scored; INCONCLUSIVE is noise; the rest are the student's."""

    PASS = "PASS"
    WRONG = "WRONG"
    WRONG_SHAPE = "WRONG_SHAPE"
    WRONG_DTYPE = "WRONG_DTYPE"
    NONFINITE = "NONFINITE"
    RAISED = "RAISED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    CRASHED = "CRASHED"
    GPU_FAULT = "GPU_FAULT"
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    SANDBOX_VIOLATION = "SANDBOX_VIOLATION"
    MISSING = "MISSING"
    NOT_RUN = "NOT_RUN"
    INFRA = "INFRA"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class TestResult:
    """One hidden test. `message` is what the student may read: words of ours, never a hidden input or student text."""

    __test__ = False  # the name is the field's, not pytest's

    name: str
    verdict: Verdict
    message: str = ""
    counts: bool = True
    """Whether points depend on it: not for a test that this device cannot run."""


@dataclass(frozen=True)
class GroupResult:
    """One group of properties, that is one locked cell of the notebook."""

    id: str
    title: str
    max_points: float
    tests: tuple[TestResult, ...]
    counterexample: str = ""
    """A public counterexample in words, where the public check of this group finds one."""

    @property
    def points(self) -> float:
        """`max_points` times the share of the tests that count which passed, to two decimals; 0 if none counts."""
        verdicts = [test.verdict for test in self.tests if test.counts]
        if not verdicts:
            return 0.0
        passed = sum(verdict is Verdict.PASS for verdict in verdicts)
        return float(round(Fraction(str(self.max_points)) * Fraction(passed, len(verdicts)), 2))


@dataclass(frozen=True)
class TimingResult:
    """What the clock of a GPU saw of one timed case. Times of one call in microseconds; shares of what the same GPU can
    read at most, measured in the same run. Lengths and seeds stay hidden."""

    group: str
    case: str
    """Its name for the student: "equal lengths, batch 1 of 3"."""
    student_us: float
    reference_us: float
    share: float
    reference_share: float
    textbook_us: float | None = None
    """Of a textbook's kernel on such a case, one program for a sequence and head; None where it was not timed."""
    textbook_share: float | None = None


@dataclass(frozen=True)
class SubmissionResult:
    """One graded submission. `status` is graded, infra (ours, to be run again) or rejected (never a lab submission)."""

    lab: str
    submission: str
    sha256: str
    suite: str
    seed_id: str
    device: str
    seconds: float
    status: str
    groups: tuple[GroupResult, ...] = ()
    flags: tuple[str, ...] = field(default=())
    """Remarks for student and staff, e.g. a cell that failed to run, a duplicated cell, the reason of a rejection."""
    timings: tuple[TimingResult, ...] = ()
    """What was timed, on a grader with a GPU; no point depends on it beyond the verdicts."""
    gpu: str = ""
    """The kind of GPU, where one graded: shares of the ceiling do not compare between kinds."""

    @property
    def score(self) -> float:
        return float(sum(Fraction(str(group.points)) for group in self.groups))

    @property
    def max_score(self) -> float:
        return float(sum(Fraction(str(group.max_points)) for group in self.groups))

    def to_json(self) -> dict[str, Any]:
        """A plain object: the schema of grading.md, plus title and counterexample of each group, timings and GPU."""
        return {
            "lab": self.lab,
            "submission": self.submission,
            "sha256": self.sha256,
            "suite": self.suite,
            "seed_id": self.seed_id,
            "device": self.device,
            "gpu": self.gpu,
            "seconds": self.seconds,
            "status": self.status,
            "score": self.score,
            "max_score": self.max_score,
            "groups": [
                {
                    "id": group.id,
                    "title": group.title,
                    "points": group.points,
                    "max_points": group.max_points,
                    "counterexample": group.counterexample,
                    "tests": [
                        {"name": t.name, "verdict": t.verdict.value, "message": t.message, "counts": t.counts}
                        for t in group.tests
                    ],
                }
                for group in self.groups
            ],
            "flags": list(self.flags),
            "timings": [asdict(timing) for timing in self.timings],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SubmissionResult:
        """The inverse of `to_json`; points are computed again from the verdicts, not read."""
        groups = tuple(
            GroupResult(
                id=group["id"],
                title=group["title"],
                max_points=group["max_points"],
                counterexample=group["counterexample"],
                tests=tuple(
                    TestResult(t["name"], Verdict(t["verdict"]), t["message"], t.get("counts", True))
                    for t in group["tests"]
                ),
            )
            for group in data["groups"]
        )
        # Results in journals may be older than timings and GPUs.
        timings = tuple(TimingResult(**timing) for timing in data.get("timings", ()))
        keys = ("lab", "submission", "sha256", "suite", "seed_id", "device", "seconds", "status")
        told = {**{key: data[key] for key in keys}, "gpu": data.get("gpu", "")}
        return cls(**told, groups=groups, flags=tuple(data["flags"]), timings=timings)
