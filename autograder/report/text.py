"""A result in plain words.

Owns: the sentence for each verdict and the plain-text report in the notebook's locked cells. No markup, no colour, no
character that a terminal would act on.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any

from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, TimingResult, Verdict, clean

__all__ = [
    "WORDS",
    "clean",
    "clean_values",
    "group_text",
    "heading_text",
    "line_of",
    "mean_shares_text",
    "percent_text",
    "points_text",
    "report_text",
    "title_of",
]

WORDS = {
    Verdict.PASS: "passed",
    Verdict.WRONG: "wrong result",
    Verdict.WRONG_SHAPE: "wrong shape",
    Verdict.WRONG_DTYPE: "wrong type of number or value",
    Verdict.NONFINITE: "infinite or not a number",
    Verdict.RAISED: "raised an error",
    Verdict.TIMEOUT: "took too long and was stopped",
    Verdict.OUT_OF_MEMORY: "ran out of memory",
    Verdict.CRASHED: "the process ended",
    Verdict.GPU_FAULT: "fault on the GPU",
    Verdict.PROTOCOL_VIOLATION: "returned something that cannot be graded",
    Verdict.SANDBOX_VIOLATION: "did something that is not allowed here",
    Verdict.MISSING: "missing",
    Verdict.NOT_RUN: "not run",
    Verdict.INFRA: "not graded, our fault",
    Verdict.INCONCLUSIVE: "unclear, a human will look",
}


def clean_values(value: Any) -> Any:
    """A plain object with every text in it cleaned, for a file: half a surrogate pair cannot be written as UTF-8."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: clean_values(inner) for key, inner in value.items()}
    return [clean_values(inner) for inner in value] if isinstance(value, list) else value


def points_text(points: float) -> str:
    """Points without needless zeros, to two decimals."""
    return f"{points:.2f}".rstrip("0").rstrip(".")


def percent_text(share: float) -> str:
    """A share as students read it, to a tenth of a percent."""
    return f"{100 * share:.1f} %"


def mean_shares_text(timings: Sequence[TimingResult]) -> str:
    """Whose share of the read ceiling is which over all of `timings`, at least one: geometric means, as the bands ask
    for. The textbook's only if it was timed in all of them."""
    parts = [f"yours {percent_text(geometric_mean(t.share for t in timings))}"]
    textbook = [t.textbook_share for t in timings if t.textbook_share is not None]
    if len(textbook) == len(timings):
        parts.append(f"a textbook's kernel {percent_text(geometric_mean(textbook))}")
    parts.append(f"the reference {percent_text(geometric_mean(t.reference_share for t in timings))}")
    return ", ".join(parts)


def title_of(test: TestResult) -> str:
    """The name of a hidden test as a sentence: `test_forks_share_blocks` is "forks share blocks"."""
    return test.name.removeprefix("test_").replace("_", " ")


def line_of(test: TestResult) -> str:
    """One hidden test: what it asks, how it ended, and why."""
    line = f"{WORDS[test.verdict]}: {title_of(test)}"
    return clean(f"{line}. {test.message}" if test.message and test.verdict is not Verdict.PASS else line)


def group_text(group: GroupResult, timings: Sequence[TimingResult] = ()) -> str:
    """One group: points, each test, the speed if `timings` (those of the whole result) have it, and the public
    counterexample where there is one."""
    lines = [f"{group.title}: {points_text(group.points)} of {points_text(group.max_points)} points"]
    for test in group.tests:
        lines.append(("  [x] " if test.verdict is Verdict.PASS else "  [ ] ") + line_of(test))
    timed = [timing for timing in timings if timing.group == group.id]
    if timed:
        lines.append(f"Share of the read ceiling: {mean_shares_text(timed)}.")
    if group.counterexample:
        lines += ["An example that you can try yourself:", *_indented(group.counterexample)]
    return clean("\n".join(lines)) + "\n"


def heading_text(result: SubmissionResult) -> str:
    """Score and remarks, above the first group."""
    if result.status == "rejected":
        first = "This submission could not be graded, so every graded group has 0 points."
    else:
        first = f"Score from the autograder: {points_text(result.score)} of {points_text(result.max_score)} points."
    where = [f"Graded on a GPU: {result.gpu}."] if result.gpu else []
    return clean("\n".join([first, *where, *(f"Remark: {flag}" for flag in result.flags)])) + "\n\n"


def report_text(result: SubmissionResult) -> str:
    """The whole result."""
    return heading_text(result) + "\n".join(group_text(group, result.timings) for group in result.groups)


def _indented(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]
