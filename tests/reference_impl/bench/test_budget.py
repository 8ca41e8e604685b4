"""`engine bench budget`: the same requests and the same bytes in every way, and what each makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from reference_impl.bench import budget, concurrency
from reference_impl.bench.budget_record import check_record, header, line, name_of, verdict
from reference_impl.bench.random_model import random_model
from reference_impl.bench.workload_lengths import Lengths, asks
from reference_impl.cli import main
from reference_impl.engine.options import EngineSettings
from tests.reference_impl.bench.records import changed
from tests.reference_impl.bench.scripted import OneAtATime, Time

pytestmark = pytest.mark.usefixtures("one_thread")

TERMS = budget.Terms(kv_tokens=320, requests=16, longest=64, longest_prompt=48)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """A real run with the tiny model: room for five requests of the longest length."""
    return budget.measure(EngineSettings("tiny", max_running=32), TERMS, "abc", say=lambda line: None)


def row(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in record["rows"] if name_of(row) == name)


def test_every_way_makes_the_same_tokens_in_the_same_bytes(record: dict[str, Any]) -> None:
    check_record(record)
    assert [name_of(row) for row in record["rows"]] == [
        "padded",
        "contiguous",
        "pow2",
        "paged",
        "paged + prefix cache",
        "paged, shared prompts",
        "paged + prefix cache, shared prompts",
    ]
    assert {row["tokens"] for row in record["rows"]} == {record["workload"]["output_tokens"]}
    assert record["memory"]["kv_bytes"] == 320 * 2 * 2 * 2 * 16 * 4, "keys and values, layers, heads, 16 floats of 4"


def test_reserving_holds_as_many_as_there_are_longest_lengths_and_paging_more(record: dict[str, Any]) -> None:
    reserved, paged = row(record, "contiguous"), row(record, "paged")
    assert reserved["mean_running"] == reserved["peak_running"] == 5
    assert paged["mean_running"] > 1.3 * reserved["mean_running"]
    assert paged["running_gain"] == pytest.approx(paged["mean_running"] / 5, rel=1e-3)
    assert reserved["held_share"] < paged["held_share"] < 1.0
    assert paged["steps"] < reserved["steps"], "each step makes more tokens"


def test_gains_are_over_contiguous_and_the_goal_is_that_of_paged(record: dict[str, Any]) -> None:
    reserved = row(record, "contiguous")
    assert reserved["gain"] == reserved["running_gain"] == 1.0
    for other in record["rows"]:
        assert other["gain"] == pytest.approx(other["tokens_per_s"] / reserved["tokens_per_s"], rel=1e-3)
        assert other["tokens_per_s"] == pytest.approx(other["tokens"] / other["seconds"], rel=2e-3)
    assert record["goal"]["met"] == (row(record, "paged")["gain"] >= 2.0)


@pytest.mark.parametrize(("shared", "reused"), [(False, 0), (True, 4 * 48)])
def test_only_prompts_that_share_something_find_it_in_the_cache(shared: bool, reused: int) -> None:
    # Two run at once and memory is plenty, so nobody is preempted and finds what is his own. The first four requests
    # have a system prompt each, the others the same again: 50 tokens of 100, three whole blocks of 16.
    settings = EngineSettings("tiny", max_running=2, kv_memory_bytes=1 << 20)
    lengths = Lengths("eight", True, ((100, 4),) * 8)
    found, _ = budget._row(budget.Way("paged", "hash", shared), settings, random_model("tiny"), lengths, 0)
    assert found["preemptions"] == 0
    assert found["reused_tokens"] == reused


def test_without_a_cache_nothing_is_found_again(record: dict[str, Any]) -> None:
    assert row(record, "paged")["reused_tokens"] == row(record, "paged, shared prompts")["reused_tokens"] == 0
    assert 0.3 < record["workload"]["shared_share"] <= 0.5, "of a prompt at most a half"


def test_a_crowd_is_counted_while_somebody_waits() -> None:
    time = Time()
    engine: Any = OneAtATime(time)
    account = type("Account", (), {"held": 3, "capacity": 4})()
    engine.scheduler.memory = type("Memory", (), {"account": lambda self: account})()
    seen = concurrency.crowd(engine, asks([(3, 2), (3, 1), (3, 2)], 10, 0), "one at a time", clock=time)
    # The first step leaves two behind, the second one, and then nobody waits.
    assert seen.seconds == 5.0
    assert (seen.steps, seen.tokens) == (5, 5)
    assert seen.made == [1, 1]
    assert seen.running == [1, 1]
    assert seen.held == [0.75]
    assert concurrency.Crowd(waited_s=[1.0, 3.0], running=[8, 4]).mean_running == 5.0


def test_a_real_record_can_be_drawn(record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from reference_impl.bench import plot

    assert all(path.is_file() for path in plot.draw(record, tmp_path / "budget", "budget.json"))


def test_requests_that_all_fit_at_once_measure_nothing() -> None:
    few = budget.Terms(kv_tokens=4_096, requests=3, longest=64, longest_prompt=32)
    with pytest.raises(ValueError, match="3 requests all fit at once under padded: more are needed"):
        budget.measure(EngineSettings("tiny"), few, "abc", say=lambda line: None)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("memory",), None, "record: no memory"),
        (("rows", 0, "gain"), None, "row: no gain"),
        (("rows", 3, "tokens"), 1, "paged: 1 tokens were made"),
        (("rows", 3, "gain"), 99.0, "paged: gain 99.0 and the goal"),
        (("goal", "met"), "yes", "goal: met is 'yes'"),
        (("rows",), [], "rows: paged was not measured"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_name(
    record: dict[str, Any], path: tuple[Any, ...], value: Any, said: str
) -> None:
    record = changed(record, ("goal", "met"), record["rows"][3]["gain"] >= 2.0)
    broken = changed(record, path, value)
    if path[-1] == "gain" and value:
        broken["goal"]["met"] = False
    with pytest.raises(ValueError, match=re.escape(said)):
        check_record(broken)


def test_lines_stand_under_their_headings_and_the_verdict_names_the_goal(record: dict[str, Any]) -> None:
    assert {len(line(row)) for row in record["rows"]} == {len(header())}
    assert re.search(r"paged at least 2 times contiguous: (hit|MISS)", verdict(record)[-1])


def test_the_command_measures_and_keeps(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(budget, "measure", lambda *args: asked.append(args) or record)
    kept = tmp_path / "budget.json"
    options = ["--model", "tiny", "--device", "cpu", "--kv-tokens", "320", "--requests", "16", "--max-prompt", "48"]
    assert main(["bench", "budget", *options, "--max-context", "64", "--commit", "abc", "--json", str(kept)]) == 0
    assert "paged at least 2 times contiguous" in capsys.readouterr().out
    assert json.loads(kept.read_text(encoding="utf-8")) == record
    settings, terms, commit, _ = asked[0]
    assert (settings.model, settings.device, terms, commit) == ("tiny", "cpu", TERMS, "abc")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kv-tokens", "8"], "KV memory of 4 KiB holds no block of 16 tokens"),
        (["--requests", "0"], "requests must be 1 to"),
        (["--max-context", "1"], "requests must be 1 to 0, got 240"),
        (["--workload", "x"], "no workload 'x'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "budget", "--model", "tiny", "--device", "cpu", "--dtype", "float32", *options]) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
