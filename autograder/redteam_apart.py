"""Two records of `course redteam`, test by test: where a CPU and a GPU differ about a submission, and why.

Owns: which differences are expected. A test that needs a GPU counts nowhere else, and says so itself. An attack may be
seen on one device only: kernels are recorded on a GPU, and run as they are without one. What is left must be the same:
honest work and misconceptions pass and fail the same tests, by whatever name they fail, unless a misconception says why
a GPU sees more of it: programs that race there run one after another in Triton's interpreter. Two records that were
made with different course keys, or with different hidden tests, met different hidden values, and so had other luck;
that is said. Knows nothing of grading.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

NEEDED = ("lab", "device", "kind", "name", "groups", "seconds")


@dataclass(frozen=True)
class Difference:
    """One test that one record has as passed and the other not."""

    kind: str
    submission: str
    group: str
    test: str
    verdicts: tuple[str, str]
    why: str
    """The words of the record in which it did not pass."""
    known: str = ""
    """Why the two devices may differ about this submission; "" if they must not."""


@dataclass(frozen=True)
class Apart:
    """What two records say of the submissions that both have."""

    devices: tuple[str, str]
    median_s: tuple[float, float]
    submissions: int
    alone: tuple[str, ...]
    """Submissions that one record has only."""
    same: Counter[str]
    """Group -> tests that ended alike in both."""
    other_words: Counter[str]
    """Group -> tests that failed in both, and by another name."""
    one_device: Mapping[tuple[str, str, str], int]
    """(group, test, reason) of a test that counts on one device only -> submissions."""
    differences: tuple[Difference, ...]
    other_seeds: int
    """Submissions that met other hidden values in the one record than in the other."""

    @property
    def apart(self) -> list[Difference]:
        """What must not be: differences in honest work, and in misconceptions that do not say why."""
        return [difference for difference in self.differences if difference.kind != "hostile" and not difference.known]


def read(path: Path) -> list[dict[str, Any]]:
    """The record in a file. Raises: ValueError if it is none, OSError if it cannot be read."""
    trials = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(trials, list) or not all(isinstance(t, dict) and set(NEEDED) <= t.keys() for t in trials):
        raise ValueError(f"{path} is no record of `course redteam --json`")
    if len(devices := {trial["device"] for trial in trials}) > 1:
        raise ValueError(f"{path} has trials of {' and '.join(sorted(devices))}; write a file for each with --device")
    return trials


def compare(
    one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]], known: Mapping[tuple[str, str], str] | None = None
) -> Apart:
    """Every submission that is in both. Raises: ValueError if there is none.

    known: (lab, misconception) -> why a GPU may see more of it.
    """
    known = known or {}
    named = [{(trial["lab"], trial["kind"], trial["name"]): trial for trial in trials} for trials in (one, other)]
    both = [key for key in named[0] if key in named[1]]
    if not both:
        raise ValueError("the two records have no submission in common")
    same: Counter[str] = Counter()
    words: Counter[str] = Counter()
    one_device: Counter[tuple[str, str, str]] = Counter()
    differences = []
    for key in both:
        for group, first, second in _pairs(named[0][key], named[1][key]):
            verdicts = (first["verdict"], second["verdict"])
            if not (first["counts"] and second["counts"]):
                reason = second["message"] if first["counts"] else first["message"]
                one_device[group, first["name"], reason] += 1
            elif ("PASS" in verdicts) and verdicts[0] != verdicts[1]:
                why = second["message"] if verdicts[0] == "PASS" else first["message"]
                reason = known.get((key[0], key[2]), "") if key[1] == "wrong" else ""
                differences.append(Difference(key[1], key[2], group, first["name"], verdicts, why, reason))
            elif verdicts[0] != verdicts[1]:
                words[group] += 1
            else:
                same[group] += 1
    alone = tuple(sorted(key[2] for key in named[0].keys() ^ named[1].keys()))
    devices = (one[0]["device"], other[0]["device"])
    seconds = tuple(median(found[key]["seconds"] for key in both) for found in named)
    seeds = sum(named[0][key].get("seed_id") != named[1][key].get("seed_id") for key in both)
    return Apart(
        devices, (seconds[0], seconds[1]), len(both), alone, same, words, one_device, tuple(differences), seeds
    )  # fmt: skip


def _pairs(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(group, test, test) for each test that both results have; tests of one name in a group go by their order."""
    groups = {group["id"]: group for group in other["groups"]}
    for group in one["groups"]:
        tests = [found["tests"] for found in (group, groups.get(group["id"], {"tests": []}))]
        if [test["name"] for test in tests[0]] != [test["name"] for test in tests[1]]:
            # A submission that met no test at all is told in one line for a group.
            tests = [[{**test, "name": "every test"} for test in found[:1]] for found in tests]
        yield from ((group["id"], *pair) for pair in zip(*tests, strict=False))


def lines(found: Apart) -> Iterator[str]:
    """The comparison in words: totals for each group, then what one device leaves out, then every difference."""
    yield (
        f"{found.submissions} submissions on {found.devices[0]} and on {found.devices[1]}, "
        f"median {found.median_s[0]:.1f} s and {found.median_s[1]:.1f} s each"
    )
    if found.alone:
        yield f"in one record only: {', '.join(found.alone)}"
    differing = Counter(difference.group for difference in found.differences)
    skipped = Counter({group: 0 for group, _, _ in found.one_device})
    for (group, _, _), count in found.one_device.items():
        skipped[group] += count
    for group in {**found.same, **found.other_words, **differing, **skipped}:
        yield (
            f"  {group:20} {found.same[group]:5} alike, {found.other_words[group]:4} failed by another name, "
            f"{skipped[group]:4} on one device only, {differing[group]:4} differ"
        )
    reasons = Counter((group, reason.rpartition(". ")[2]) for group, _, reason in found.one_device)
    for (group, reason), count in reasons.items():
        yield f"  {group}: {count} tests count on one device only. {reason}"
    if found.other_seeds:
        yield f"{found.other_seeds} submissions met other hidden values there: grade both with one key, at one commit"
    yield from _told_together(found.differences)
    for difference in sorted(found.apart, key=lambda d: (d.kind, d.submission)):
        first, second = difference.verdicts
        yield (
            f"{difference.kind} {difference.submission}, {difference.group}.{difference.test}: "
            f"{first} on {found.devices[0]}, {second} on {found.devices[1]}. {difference.why}"
        )
    yield (
        f"{len(found.differences)} differences, {len(found.apart)} of them in honest work or misconceptions"
        + (
            ""
            if found.apart
            else ": the same verdicts, but for what runs on one device only and for what is said above"
        )
    )


def _told_together(differences: Sequence[Difference]) -> Iterator[str]:
    """One line for each attack and each misconception that may be seen on one device only."""
    tests = Counter((d.kind, d.submission, d.known) for d in differences if d.kind == "hostile" or d.known)
    for (kind, submission, known), count in sorted(tests.items()):
        reason = known or next(d.why for d in differences if d.submission == submission).rpartition(": ")[2]
        yield f"{kind} {submission}: {count} tests differ, as they may: {reason}"
