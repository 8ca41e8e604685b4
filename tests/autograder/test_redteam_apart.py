"""Two records of `course redteam` are told apart test by test, and what may differ is told from what may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autograder.cli import main
from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, Verdict
from autograder.redteam import Trial
from autograder.redteam_apart import compare, lines, read

ROOT = Path(__file__).parents[2]
ONLY_THERE = TestResult("test_fast", Verdict.NOT_RUN, "It is fast. Runs on a grader with a GPU only: a reason.", False)


def trial(device: str, *decode: TestResult, name: str = "a", kind: str = "correct", seconds: float = 1.0) -> Any:
    """As it stands in a file: a group `decode` with these tests, and one of speed."""
    fast = ONLY_THERE if device == "cpu" else TestResult("test_fast", Verdict.WRONG, "It is fast. Not so: slower.")
    groups = (GroupResult("decode", "Decode", 10.0, decode), GroupResult("speed", "Speed", 10.0, (fast,)))
    result = SubmissionResult("lab", f"{name}.py", "0", "1", "s", device, seconds, "graded", groups)
    found = Trial("lab", device, kind, name, "about", (), result, ())
    assert Trial.from_json(found.to_json()) == found
    return found.to_json()


def ended(verdict: Verdict, message: str = "It holds.") -> TestResult:
    return TestResult("test_one", verdict, message)


def test_the_same_verdicts_are_no_difference_and_what_one_device_cannot_run_is_told_with_its_reason() -> None:
    found = compare([trial("cpu", ended(Verdict.PASS))], [trial("cuda", ended(Verdict.PASS), seconds=3.0)])
    assert found.apart == []
    assert (found.same["decode"], found.same["speed"], found.median_s) == (1, 0, (1.0, 3.0))
    told = list(lines(found))
    assert told[0] == "1 submissions on cpu and on cuda, median 1.0 s and 3.0 s each"
    assert "  speed: 1 tests count on one device only. Runs on a grader with a GPU only: a reason." in told
    assert told[-1].startswith("0 differences, 0 of them")


def test_a_test_that_passes_on_one_device_only_is_told_with_the_words_of_the_other() -> None:
    wrong = ended(Verdict.WRONG, "It holds. Not so: by far.")
    found = compare([trial("cpu", wrong, kind="wrong")], [trial("cuda", ended(Verdict.PASS), kind="wrong")])
    assert len(found.apart) == 1
    assert "wrong a, decode.test_one: WRONG on cpu, PASS on cuda. It holds. Not so: by far." in list(lines(found))


def test_a_misconception_may_say_why_a_gpu_sees_more_of_it() -> None:
    wrong = ended(Verdict.WRONG, "It holds. Not so: by far.")
    pair = ([trial("cpu", ended(Verdict.PASS), kind="wrong")], [trial("cuda", wrong, kind="wrong")])
    found = compare(*pair, {("lab", "a"): "programs race"})
    assert found.apart == []
    assert "wrong a: 1 tests differ, as they may: programs race" in list(lines(found))
    # Honest work has no such excuse.
    honest = compare([trial("cpu", ended(Verdict.PASS))], [trial("cuda", wrong)], {("lab", "a"): "programs race"})
    assert len(honest.apart) == 1


def test_records_made_with_two_course_keys_say_so() -> None:
    one, other = trial("cpu", ended(Verdict.PASS)), trial("cuda", ended(Verdict.PASS))
    assert not any("course key" in line for line in lines(compare([one], [other])))
    other["seed_id"] = "another"
    assert any("1 submissions met other hidden values" in line for line in lines(compare([one], [other])))


def test_to_fail_by_another_name_is_the_same() -> None:
    found = compare([trial("cpu", ended(Verdict.CRASHED))], [trial("cuda", ended(Verdict.GPU_FAULT))])
    assert (found.apart, found.other_words["decode"]) == ([], 1)


def test_an_attack_may_be_seen_on_one_device_only() -> None:
    pair = ([trial("cpu", ended(Verdict.PASS), kind="hostile")], [trial("cuda", ended(Verdict.WRONG), kind="hostile")])
    found = compare(*pair)
    assert (len(found.differences), found.apart) == (1, [])


def test_a_submission_that_met_no_test_on_one_device_differs() -> None:
    none = TestResult("every test", Verdict.CRASHED, "the process ended")
    found = compare([trial("cpu", none)], [trial("cuda", ended(Verdict.PASS), TestResult("test_two", Verdict.PASS))])
    assert [difference.test for difference in found.apart] == ["every test"]


def test_submissions_that_one_record_lacks_are_named() -> None:
    one = [trial("cpu", ended(Verdict.PASS)), trial("cpu", ended(Verdict.PASS), name="b")]
    assert "in one record only: b" in list(lines(compare(one, [trial("cuda", ended(Verdict.PASS))])))
    with pytest.raises(ValueError, match="no submission in common"):
        compare(one[1:], [trial("cuda", ended(Verdict.PASS))])


def test_the_command_fails_if_honest_work_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "cpu.json", tmp_path / "cuda.json", tmp_path / "other.json"]
    files[0].write_text(json.dumps([trial("cpu", ended(Verdict.PASS))]))
    files[1].write_text(json.dumps([trial("cuda", ended(Verdict.PASS))]))
    files[2].write_text(json.dumps([trial("cuda", ended(Verdict.WRONG))]))
    command = ["--root", str(ROOT), "redteam", "--compare"]
    assert main([*command, str(files[0]), str(files[1])]) == 0
    assert main([*command, str(files[0]), str(files[2])]) == 1
    assert "PASS on cpu, WRONG on cuda" in capsys.readouterr().out
    files[2].write_text("{}")
    assert main([*command, str(files[0]), str(files[2])]) == 1
    assert "is no record of `course redteam --json`" in capsys.readouterr().err
    assert read(files[0])[0]["name"] == "a"
    files[2].write_text(json.dumps([trial("cpu", ended(Verdict.PASS)), trial("cuda", ended(Verdict.PASS))]))
    assert main([*command, str(files[0]), str(files[2])]) == 1
    assert "has trials of cpu and cuda; write a file for each" in capsys.readouterr().err
