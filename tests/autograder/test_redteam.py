"""`course redteam` fails on a gain, a leak, a harm or a delay, and on honest work that is not paid; else it holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autograder import redteam
from autograder.cli import main
from autograder.course import Course, Lab
from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, Verdict
from autograder.redteam import Told
from autograder.sandbox import tiers

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "submissions"


@pytest.fixture
def lab() -> Lab:
    return Course.open(ROOT).lab("lab4_paged_attention")


def result(*verdicts: tuple[str, str, Verdict], status: str = "graded", seconds: float = 1.0) -> SubmissionResult:
    """A result with one group for each of (group, test, verdict), ten points each."""
    groups = tuple(
        GroupResult(group, group, 10.0, (TestResult(test, verdict, "words of ours"),))
        for group, test, verdict in verdicts
    )
    return SubmissionResult("lab4_paged_attention", "x.py", "0", "1.0", "s", "cpu", seconds, status, groups, ())


def faults(lab: Lab, told: Told, graded: SubmissionResult) -> list[str]:
    return list(redteam._faults(told, graded, lab, "cpu"))


PATH = Path("x.py")
PAID, LOST = ("decode", "test_a", Verdict.PASS), ("decode", "test_a", Verdict.WRONG)
STORED = ("store_kv", "test_s", Verdict.PASS)


def test_an_attack_without_an_honest_part_may_earn_nothing(lab: Lab) -> None:
    attack = Told("hostile", PATH, "an attack", ("C1",))
    assert faults(lab, attack, result(LOST)) == []
    assert faults(lab, attack, result(PAID, ("layout", "test_l", Verdict.WRONG))) == ["gained 10 points"]


def test_an_attack_may_earn_its_honest_part_and_no_other_group(lab: Lab) -> None:
    attack = Told("hostile", PATH, "an attack", ("C1",), ("store_kv",))
    assert faults(lab, attack, result(STORED, LOST)) == []
    assert faults(lab, attack, result(STORED, PAID)) == ["gained all of decode"]


def test_an_honest_design_may_be_slow_and_nothing_else(lab: Lab) -> None:
    honest = Told("correct", PATH, "an honest design")
    slow = ("bandwidth_equal", "test_equal_lengths_reach_75_percent", Verdict.WRONG)
    assert faults(lab, honest, result(PAID, slow)) == []
    assert faults(lab, honest, result(LOST, slow)) == ["honest, and lost test_a"]


def test_a_misconception_must_lose_the_tests_that_it_names(lab: Lab) -> None:
    name = "test_caches_go_by_their_strides"
    wrong = Told("wrong", PATH, "a misconception", killed_by=(("test_layout", name), ("test_store_kv", name)))
    lost, stored = ("layout", name, Verdict.WRONG), ("store_kv", name, Verdict.WRONG)
    assert faults(lab, wrong, result(lost, stored)) == []
    # Tests of one name in two modules are two tests.
    assert faults(lab, wrong, result(lost, ("store_kv", name, Verdict.PASS))) == [f"passed test_store_kv.{name}"]


def test_a_delay_a_leak_and_a_fault_of_ours_are_told(lab: Lab) -> None:
    attack = Told("hostile", PATH, "an attack", ("C1",))
    (late,) = faults(lab, attack, result(LOST, seconds=10_000.0))
    assert late.startswith("held up the queue")
    leaked = result(LOST)
    (group,) = leaked.groups
    told = replace(group, tests=(replace(group.tests[0], message=f"Not so: {redteam.MARK} 17"),))
    assert faults(lab, attack, replace(leaked, groups=(told,))) == ["a hidden value reached the feedback"]
    (ours,) = faults(lab, attack, result(LOST, status="infra"))
    assert ours.startswith("ended as infra")


def test_honest_work_stands_between_the_attacks() -> None:
    told = [Told("correct", PATH, str(n)) for n in range(3)] + [Told("hostile", PATH, str(n)) for n in range(7)]
    kinds = [each.kind for each in redteam.in_order(told)]
    assert sorted(kinds) == sorted(each.kind for each in told)
    assert kinds[0] == kinds[-1] == "correct"
    assert "correct" in kinds[1:-1]


@pytest.mark.slow
@pytest.mark.skipif(
    not any(tiers.works(tier) for tier in ("bubblewrap", "unshare")), reason="no sandbox tier works on this machine"
)
def test_the_command_tries_each_kind_and_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CORPUS / "lab3_block_allocator"
    files = [
        folder / "correct/deque_ring.py",
        folder / "hostile/forged_equality.py",
        folder / "wrong/no_copy_at_all.py",
    ]
    out = tmp_path / "trials.json"
    arguments = ["--root", str(ROOT), "redteam", "--device", "cpu", "--json", str(out), *map(str, files)]
    status = main(arguments)
    printed = capsys.readouterr().out
    trials = {trial["name"]: trial for trial in json.loads(out.read_text())}
    # Whoever works on a file of the course meanwhile is seen, and is no attack.
    others = [fault for trial in trials.values() for fault in trial["faults"] if "a file of the course" not in fault]
    assert others == []
    assert status == int(any(trial["faults"] for trial in trials.values()))
    assert trials["deque_ring"]["score"] == 100.0
    assert trials["forged_equality"]["score"] < 100.0
    assert "1 attacks (" in printed
    assert "1 honest designs, 1 misconceptions" in printed


def test_a_file_outside_the_corpus_is_no_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stray = tmp_path / "stray.py"
    stray.write_text("")
    known = CORPUS / "lab3_block_allocator" / "correct" / "deque_ring.py"
    assert main(["--root", str(ROOT), "redteam", str(known), str(stray)]) == 1
    assert "stray.py is no submission of tests/submissions/" in capsys.readouterr().err
