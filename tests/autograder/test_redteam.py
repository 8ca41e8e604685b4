"""`course redteam` fails on a gain, a leak, a harm or a delay, and on honest work that is not paid; else it holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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


class Runner:
    """Stands in for the grader: what each file ends in at its first, second... try, in a drawn order of ending."""

    def __init__(self, ends: dict[str, list[SubmissionResult]], turned: bool = False) -> None:
        self._ends = ends
        self._turned = turned
        self.asked: list[tuple[list[str], int]] = []

    def __call__(self, course: object, lab: str, paths: list[Path], **options: Any) -> list[SubmissionResult]:
        self.asked.append(([path.stem for path in paths], options["slots"]))
        results = [replace(self._ends[path.stem].pop(0), submission=str(path)) for path in paths]
        for each in reversed(results) if self._turned else results:
            options["progress"](each)
        return results


def told_of(**kinds: str) -> list[Told]:
    return [Told(kind, Path(f"{name}.py"), f"about {name}") for name, kind in kinds.items()]


def tried(
    monkeypatch: pytest.MonkeyPatch, lab: Lab, runner: Runner, told: list[Told], device: str, jobs: int
) -> tuple[list[str], list[redteam.Trial]]:
    """The names in the order in which they were said, and the trials that came back."""
    said: list[str] = []
    monkeypatch.setattr(redteam, "grade_files", runner)
    monkeypatch.setattr(redteam, "files_of", lambda course: {})
    course = Course.open(ROOT)
    trials = redteam.run(course, lab, device, told, "auto", lambda trial: said.append(trial.name), jobs)
    return said, trials


def test_trials_are_told_in_their_order_whoever_ends_first(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    told = told_of(a="correct", b="wrong", c="correct")
    runner = Runner({name: [result(PAID)] for name in "abc"}, turned=True)
    said, trials = tried(monkeypatch, lab, runner, told, "cpu", 3)
    assert said == [trial.name for trial in trials] == ["a", "b", "c"]
    assert runner.asked == [(["a", "b", "c"], 3)]


def test_on_a_gpu_that_is_shared_attacks_are_among_themselves(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    told = told_of(a="correct", x="hostile", b="wrong", y="hostile", c="correct")
    runner = Runner({name: [result(LOST if name in "xy" else PAID)] for name in "axbyc"})
    said, trials = tried(monkeypatch, lab, runner, told, "cuda", 2)
    assert [names for names, _ in runner.asked] == [["a", "b"], ["x", "y"], ["c"]]
    assert said == [trial.name for trial in trials] == ["a", "b", "x", "y", "c"]


def test_whom_neighbours_may_have_disturbed_is_graded_again_alone(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    noise = result(LOST, status="infra")
    ends = {"a": [result(LOST), result(PAID)], "b": [noise, result(LOST)], "c": [result(PAID)]}
    runner = Runner(ends)
    said, trials = tried(monkeypatch, lab, runner, told_of(a="correct", b="wrong", c="correct"), "cuda", 2)
    assert runner.asked == [(["a", "b"], 2), (["a"], 1), (["b"], 1), (["c"], 2)]
    assert said == ["a", "b", "c"]
    assert [trial.faults for trial in trials] == [(), (), ()]


def test_a_gain_is_a_gain_however_many_were_graded_at_once(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    runner = Runner({"x": [result(PAID), result(LOST)]})
    _, (trial,) = tried(monkeypatch, lab, runner, told_of(x="hostile"), "cuda", 4)
    assert trial.gained
    assert len(runner.asked) == 1


def test_alone_from_the_start_nobody_is_graded_twice(monkeypatch: pytest.MonkeyPatch, lab: Lab) -> None:
    runner = Runner({"a": [result(LOST)], "x": [result(LOST)]})
    _, trials = tried(monkeypatch, lab, runner, told_of(a="correct", x="hostile"), "cuda", 1)
    assert runner.asked == [(["a", "x"], 1)]
    assert [bool(trial.faults) for trial in trials] == [True, False]


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = Course.open(ROOT).suite_version(Course.open(ROOT).lab("lab4_paged_attention"))
    folder = CORPUS / "lab4_paged_attention" / "correct"
    files = [folder / "block_by_block.py", folder / "work_list.py"]
    monkeypatch.setattr(redteam, "files_of", lambda course: {})
    out = tmp_path / "trials.json"
    arguments = ["--root", str(ROOT), "redteam", "--device", "cpu", "--json", str(out)]
    asked = []
    for chosen in (files[:1], files):
        runner = Runner({path.stem: [replace(result(PAID), suite=suite)] for path in files})
        monkeypatch.setattr(redteam, "grade_files", runner)
        assert main([*arguments, "--resume", *map(str, chosen)]) == 0
        asked.append([names for names, _ in runner.asked])
    assert asked == [[["block_by_block"]], [["work_list"]]]
    assert [trial["name"] for trial in json.loads(out.read_text())] == ["block_by_block", "work_list"]
    assert "2 honest designs" in capsys.readouterr().out.splitlines()[-1]
    # Another suite's verdicts are nobody's any more.
    out.write_text(out.read_text().replace(suite, "0.9-older"))
    runner = Runner({path.stem: [replace(result(PAID), suite=suite)] for path in files})
    monkeypatch.setattr(redteam, "grade_files", runner)
    assert main([*arguments, "--resume", *map(str, files)]) == 0
    assert [names for names, _ in runner.asked] == [["block_by_block", "work_list"]]


def test_a_file_outside_the_corpus_is_no_trial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stray = tmp_path / "stray.py"
    stray.write_text("")
    known = CORPUS / "lab3_block_allocator" / "correct" / "deque_ring.py"
    assert main(["--root", str(ROOT), "redteam", str(known), str(stray)]) == 1
    assert "stray.py is no submission of tests/submissions/" in capsys.readouterr().err
