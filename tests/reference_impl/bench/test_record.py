"""The record of the benchmarks: what every kept file must be, and that goals are held against what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from reference_impl.bench import command
from reference_impl.bench import record as record_module
from reference_impl.bench.cases import CASES, RATIOS, Case, NotHere
from reference_impl.bench.goals import FLAT, Goal
from reference_impl.bench.record import check_record, lean, table
from reference_impl.cli import main
from tests.reference_impl.bench.records import changed

RESULTS = Path(record_module.__file__).parent / "results"


def measured(name: str, median_s: float) -> dict[str, Any]:
    return {"extra_info": {"name": name}, "stats": {"median": median_s, "iqr": median_s / 10, "rounds": 25, "max": 9.0}}


LARGE, SMALL = RATIOS["new pool: cost at 1,000,000 blocks over 1,000"]
GROW = "manager: grow in place"


@pytest.fixture
def record() -> dict[str, Any]:
    """A pool that is fast when it is small and too slow when it is large, and a manager without a fault."""
    blocks = CASES[SMALL].operations
    entries = [measured(SMALL, blocks / 4e6), measured(LARGE, blocks / 1e6), measured(GROW, 1e-4)]
    return lean({"benchmarks": entries, "machine_info": {"node": "secret-host"}}, {"a case": "no trace"})


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_no_kept_record_names_a_host_a_user_or_a_path(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp|usr)\b|[\w.-]+@[\w-]+", text)
    assert len(text) < 40_000
    assert json.loads(text)["suite"] == path.stem


def test_the_kept_record_has_the_schema_and_every_case() -> None:
    path = RESULTS / "memory.json"
    assert path.is_file(), "engine bench memory"
    kept = json.loads(path.read_text(encoding="utf-8"))
    check_record(kept)
    names = {row["name"] for row in kept["benchmarks"]}
    assert names | kept["skipped"].keys() == CASES.keys(), "measured again, or the case was renamed"


def test_a_record_is_what_was_measured_and_nothing_of_the_host(record: dict[str, Any]) -> None:
    check_record(record)
    assert "secret" not in json.dumps(record)
    small, large, grow = record["benchmarks"]
    assert (small["rate"], small["goal"]["met"]) == (4e6, True)
    assert (large["rate"], large["goal"]["met"]) == (1e6, False)
    assert small["median_s"] == pytest.approx(small["operations"] / 4e6, rel=1e-3)
    assert grow["per_operation_s"] == pytest.approx(1e-4 / CASES[GROW].operations, rel=1e-3)
    assert record["ratios"] == [
        {
            "name": "new pool: cost at 1,000,000 blocks over 1,000",
            "ratio": 4.0,
            "goal": {"figure": "ratio", "value": FLAT.value, "met": False},
        }
    ]


def test_the_table_says_hit_or_miss_of_each_goal_and_why_a_case_is_missing(record: dict[str, Any]) -> None:
    lines = table(record)
    assert [line.rpartition(": ")[2] for line in lines[1:5]] == ["hit", "MISS", "hit", "MISS"]
    assert "at least 2,000,000 blocks/s" in lines[1]
    assert "4.00  at most 2" in lines[4]
    assert lines[5] == "a case: skipped, no trace"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("suite",), None, "record: no suite"),
        (("host",), "x", "record: 'host' is no field"),
        (("machine", "cores"), "2", "machine: cores is '2'"),
        (("benchmarks", 0, "rate"), None, f"{SMALL}: no rate"),
        (("benchmarks", 0, "median_s"), "fast", f"{SMALL}: median_s is 'fast'"),
        (("benchmarks", 1, "goal", "met"), True, f"{LARGE}: 1000000.0 and the goal 2000000.0, but met is True"),
        (("benchmarks",), [], "benchmarks: none were measured"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_name(
    record: dict[str, Any], path: tuple[Any, ...], value: Any, said: str
) -> None:
    broken = changed(record, path, value)
    with pytest.raises(ValueError, match=re.escape(said)):
        check_record(broken)


@pytest.mark.parametrize(
    ("goal", "good", "bad"), [(Goal("rate", 5.0), 5.0, 4.9), (Goal("median_s", 5.0), 5.0, 5.1), (FLAT, 1.0, 2.1)]
)
def test_more_is_better_of_rates_and_less_of_everything_else(goal: Goal, good: float, bad: float) -> None:
    assert goal.is_met(good)
    assert not goal.is_met(bad)


def prepared(case: Case) -> Any:
    try:
        return (case.part or case.prepare)()
    except NotHere as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", [name for name in CASES if "1,000,000" not in name and CASES[name].part is None])
def test_every_case_does_what_it_says_twice_over_if_it_is_reusable(name: str) -> None:
    case = CASES[name]
    state = prepared(case)
    case.run(state)
    if case.reusable:
        case.run(state)


def test_a_ratio_is_of_cases_of_one_kind() -> None:
    for large, small in RATIOS.values():
        assert CASES[large].unit == CASES[small].unit
        assert CASES[large].run is CASES[small].run


def test_a_profile_names_the_functions_that_take_the_time() -> None:
    assert "take" in command.profile(CASES[SMALL])


def test_an_unknown_case_is_an_error_that_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--only", "no such case"]) == 1
    assert "manager: grow in place" in capsys.readouterr().err


def test_the_command_measures_prints_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    kept = tmp_path / "out.json"
    assert main(["bench", "memory", "--only", GROW, "--json", str(kept)]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"{GROW}.*at most 600 ns: (hit|MISS)", shown)
    record = json.loads(kept.read_text(encoding="utf-8"))
    check_record(record)
    assert [row["name"] for row in record["benchmarks"]] == [GROW]


def test_where_no_case_can_be_measured_nothing_else_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("P2P_TRACES", "none")
    monkeypatch.setattr(
        "reference_impl.bench.command.subprocess.run", lambda *args, **options: pytest.fail(f"{args} was run")
    )
    assert main(["bench", "memory", "--only", "Mooncake"]) == 1
    assert "skipped, the recorded Mooncake trace is not on this machine" in capsys.readouterr().err
