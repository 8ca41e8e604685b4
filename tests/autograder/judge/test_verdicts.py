"""Points are a pure function of verdicts; results survive JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, TimingResult, Verdict

TESTS = st.lists(st.builds(TestResult, st.text(max_size=8), st.sampled_from(Verdict), st.text(max_size=8)), max_size=6)
GROUPS = st.lists(
    st.builds(
        GroupResult,
        st.text(max_size=5),
        st.text(max_size=5),
        st.integers(0, 20).map(float),
        TESTS.map(tuple),
        st.text(max_size=5),
    ),
    max_size=4,
)


def result(groups: list[GroupResult]) -> SubmissionResult:
    return SubmissionResult("lab", "s.py", "00", "1-ab", "cd", "cpu", 1.5, "graded", tuple(groups), ("flag",))


@settings(deadline=None)
@given(GROUPS)
def test_points_are_finite_and_between_zero_and_the_maximum(groups: list[GroupResult]) -> None:
    graded = result(groups)
    assert math.isfinite(graded.score)
    assert 0 <= graded.score <= graded.max_score
    for group in groups:
        assert 0 <= group.points <= group.max_points


@settings(deadline=None)
@given(GROUPS)
def test_a_result_is_the_same_after_json(groups: list[GroupResult]) -> None:
    assert SubmissionResult.from_json(json.loads(json.dumps(result(groups).to_json()))) == result(groups)


def test_a_group_pays_the_share_of_its_tests_that_passed() -> None:
    tests = tuple(TestResult(str(n), Verdict.PASS if n else Verdict.WRONG) for n in range(3))
    assert GroupResult("g", "G", 10.0, tests).points == 6.67


def test_only_pass_pays() -> None:
    for verdict in Verdict:
        paid = GroupResult("g", "G", 10.0, (TestResult("t", verdict),)).points
        assert paid == (10.0 if verdict is Verdict.PASS else 0.0)


def test_a_group_without_tests_pays_nothing() -> None:
    assert GroupResult("g", "G", 10.0, ()).points == 0.0


def test_points_written_into_a_result_file_are_not_believed() -> None:
    data = result([GroupResult("g", "G", 10.0, (TestResult("t", Verdict.WRONG),))]).to_json()
    data["score"] = data["groups"][0]["points"] = 1e9
    assert SubmissionResult.from_json(data).score == 0.0


def test_a_test_that_cannot_run_here_counts_neither_for_nor_against() -> None:
    passed, wrong = TestResult("a", Verdict.PASS), TestResult("b", Verdict.WRONG)
    elsewhere = TestResult("c", Verdict.NOT_RUN, counts=False)
    assert GroupResult("g", "G", 10, (passed, elsewhere)).points == 10
    assert GroupResult("g", "G", 10, (passed, wrong, elsewhere, elsewhere)).points == 5
    assert GroupResult("g", "G", 10, (elsewhere,)).points == 0
    assert GroupResult("g", "G", 10, (passed, TestResult("d", Verdict.NOT_RUN))).points == 5


def test_whether_a_test_counts_survives_json() -> None:
    tests = (TestResult("a", Verdict.PASS), TestResult("b", Verdict.NOT_RUN, "elsewhere", counts=False))
    result = SubmissionResult(
        "lab", "x.py", "0", "1", "s", "cpu", 1.0, "graded", (GroupResult("g", "G", 10, tests),), ()
    )
    assert SubmissionResult.from_json(result.to_json()) == result


def test_timings_survive_json_and_a_result_from_before_there_were_any_is_read() -> None:
    timing = TimingResult("bandwidth_equal", "equal lengths, batch 1 of 3", 130.0, 118.0, 0.823, 0.914)
    timed = replace(result([]), timings=(timing, replace(timing, case="equal lengths, batch 2 of 3")))
    data = json.loads(json.dumps(timed.to_json()))
    assert SubmissionResult.from_json(data) == timed
    del data["timings"]
    assert SubmissionResult.from_json(data) == result([])
