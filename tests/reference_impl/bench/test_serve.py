"""`engine bench serve`: what a client sees, worked out by hand, and what is kept of a real run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from reference_impl.bench import serve
from reference_impl.bench.open_loop import Coming
from reference_impl.bench.serve_record import check_record, header, line
from reference_impl.cli import main
from reference_impl.engine.generate import Ask
from reference_impl.engine.options import EngineSettings
from reference_impl.model.sampling import SamplingParams
from reference_impl.sim.metrics import Targets
from tests.reference_impl.bench.records import changed
from tests.reference_impl.bench.scripted import OneAtATime, Time

pytestmark = pytest.mark.usefixtures("one_thread")


def row_of(arrivals: list[tuple[float, int]], bounds: Targets, most: int = 10, step_s: float = 1.0) -> dict[str, Any]:
    """(arrival, tokens) of each request, against an engine that makes one token a step for the oldest."""
    time = Time()
    coming = [Coming(at_s, Ask([1], SamplingParams(max_tokens=tokens))) for at_s, tokens in arrivals]
    engine: Any = OneAtATime(time, most, step_s)
    return serve.serve_rate(engine, coming, 2.0, bounds, clock=time, sleep=time.sleep)


def test_latencies_are_what_one_works_out_by_hand() -> None:
    # Tokens of the first at 1, 2, 3 s, of the second, there since 0.5 s, at 4 and 5 s, of the third at 11 s.
    row = row_of([(0.0, 3), (0.5, 2), (10.0, 1)], Targets(ttft_s=3.0, tpot_s=1.0))
    assert row["ttft_s"] == {"p50": 1.0, "p90": 3.5, "p99": 3.5, "mean": pytest.approx(5.5 / 3, rel=1e-3), "max": 3.5}
    assert row["e2e_s"] == {"p50": 3.0, "p90": 4.5, "p99": 4.5, "mean": pytest.approx(8.5 / 3, rel=1e-3), "max": 4.5}
    assert row["itl_s"] == dict.fromkeys(("p50", "p90", "p99", "mean", "max"), 1.0)
    assert row["tpot_s"] == dict.fromkeys(("p50", "p90", "p99", "mean", "max"), 1.0)
    assert row["seconds"] == 11.0
    assert row["steps"] == 6
    assert row["requests_per_s"] == pytest.approx(3 / 11, rel=1e-3)
    assert row["output_tokens_per_s"] == pytest.approx(6 / 11, rel=1e-3)


def test_a_request_is_good_if_its_first_token_and_its_pace_are_within_the_bounds() -> None:
    arrivals = [(0.0, 3), (0.5, 2), (10.0, 1)]
    assert row_of(arrivals, Targets(ttft_s=3.0, tpot_s=1.0))["good_share"] == pytest.approx(2 / 3, rel=1e-3)
    assert row_of(arrivals, Targets(ttft_s=3.5, tpot_s=1.0))["good_share"] == 1.0
    slow = row_of(arrivals, Targets(ttft_s=3.5, tpot_s=0.5))
    assert slow["good_share"] == pytest.approx(1 / 3, rel=1e-3), "an answer of one token has no pace to miss"
    assert slow["good_per_s"] == pytest.approx(1 / 11, rel=1e-3)


def test_the_queue_counts_for_as_long_as_it_is_there() -> None:
    row = row_of([(0.0, 3), (0.5, 2), (10.0, 1)], Targets())
    # The second is there when the step that ends at 2 s begins; with the one before it ends at 3 s it is served.
    assert row["queue_mean"] == pytest.approx(1 / 11, rel=1e-3)
    assert row["queue_most"] == 1
    # Half as long: one waits from 0.5 to 1 s, of 2.5 s.
    assert row_of([(0.0, 3), (0.25, 2)], Targets(), step_s=0.5)["queue_mean"] == 0.2
    assert row["preemptions"] == 6, "of this rate, and not what the engine had counted before"


def test_refused_requests_are_counted_and_none_of_them_is_good() -> None:
    row = row_of([(0.0, 1)] * 4, Targets(), most=0)
    assert row["refused"] == {"busy": 3}
    assert (row["requests"], row["completed"], row["good_share"]) == (4, 1, 0.25)
    assert row["itl_s"] is None
    assert row["tpot_s"] is None


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """A real run: the tiny model, two rates."""
    settings = EngineSettings("tiny", kv_memory_bytes=1 << 20, max_context_tokens=96, max_waiting=3, max_running=4)
    load = serve.Load((20.0, 2_000.0), 12, bounds=Targets(5.0, 1.0))
    return serve.measure(settings, load, "abc", say=lambda line: None)


def test_a_run_makes_every_token_that_was_asked_for_and_refuses_whom_it_cannot_queue(record: dict[str, Any]) -> None:
    check_record(record)
    slow, fast = record["rates"]
    assert slow["requests"] == fast["requests"] == record["workload"]["requests"] == 12
    assert sum(fast["refused"].values()) > 0, "12 requests in 6 ms, and three may wait"
    assert slow["seconds"] > 12 / 40, "a Poisson process of 20 a second"
    for row in (slow, fast):
        assert row["completed"] >= 3
        assert row["ttft_s"]["p50"] <= row["ttft_s"]["p90"] <= row["ttft_s"]["p99"] <= row["ttft_s"]["max"]
        assert row["ttft_s"]["p50"] <= row["e2e_s"]["p50"]
    assert record["engine"]["attention"] == "torch"
    assert record["model"] == {"name": "tiny", "weights": "random", "dtype": "float32"}


def test_no_rate_finds_the_prompts_of_another_in_the_cache(record: dict[str, Any]) -> None:
    from reference_impl.bench.random_model import random_model
    from reference_impl.bench.workload_lengths import clipped

    loaded, lengths = random_model("tiny"), clipped("azure_conv", 5, 96)
    first, second = (serve._coming(loaded, lengths, rate, 0, place) for place, rate in enumerate((1.0, 10.0)))
    assert [len(request.ask.prompt) for request in first] == [len(request.ask.prompt) for request in second]
    assert all(one.ask.prompt[:8] != other.ask.prompt[:8] for one, other in zip(first, second, strict=True))
    gaps = [one.arrival_s / other.arrival_s for one, other in zip(first, second, strict=True)]
    assert gaps == pytest.approx([10.0] * 5), "the same gaps in proportion"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("clock",), None, "record: no clock"),
        (("machine", "host"), "x", "machine: 'host' is no field of a machine"),
        (("engine", "kv_tokens"), "many", "engine: kv_tokens is 'many'"),
        (("rates",), [], "rates: none was measured"),
        (("rates", 0, "steps"), None, "rate: no steps"),
        (("rates", 0, "ttft_s", "p90"), None, "quantiles: no p90"),
        (("rates", 0, "completed"), 99, "rate 20: 12 requests came, 99 are accounted for"),
    ],
)
def test_a_record_of_another_shape_is_refused_by_name(
    record: dict[str, Any], path: tuple[Any, ...], value: Any, said: str
) -> None:
    # How many were refused depends on how fast this machine is.
    settled = changed(record, ("rates", 0, "refused"), {})
    settled["rates"][0]["completed"] = 12
    check_record(settled)
    with pytest.raises(ValueError, match=re.escape(said)):
        check_record(changed(settled, path, value))


def test_lines_stand_under_their_headings(record: dict[str, Any]) -> None:
    assert {len(line(row)) for row in record["rates"]} == {len(header())}


def test_the_command_measures_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "serve.json"
    options = ["--model", "tiny", "--device", "cpu", "--dtype", "float32", "--kv-memory", "1MiB", "--max-context", "64"]
    assert main(["bench", "serve", *options, "--rates", "200", "--requests", "4", "--json", str(kept)]) == 0
    assert "kept in serve.json" in capsys.readouterr().out
    check_record(json.loads(kept.read_text(encoding="utf-8")))


def test_requests_can_be_served_from_memory_of_another_kind(tmp_path: Path) -> None:
    kept = tmp_path / "serve.json"
    options = ["--model", "tiny", "--device", "cpu", "--dtype", "float32", "--kv-memory", "1MiB", "--max-context", "64"]
    more = ["--block-allocator", "contiguous", "--rates", "200", "--requests", "4", "--json", str(kept)]
    assert main(["bench", "serve", *options, *more]) == 0
    engine = json.loads(kept.read_text(encoding="utf-8"))["engine"]
    assert (engine["block_allocator"], engine["prefix_cache"]) == ("contiguous", "none")


def test_a_real_record_can_be_drawn(record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from reference_impl.bench import plot

    assert all(path.is_file() for path in plot.draw(record, tmp_path / "serve", "serve.json"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rates", "0"], "rates must be above 0 requests a second, got 0.0"),
        (["--requests", "0"], "requests must be 1 to"),
        (["--workload", "x"], "no workload 'x'"),
        (["--model", "x"], "no model 'x'"),
        (["--ttft", "0"], "the target ttft_s must be above 0, got 0.0"),
        (["--attention", "magic"], "no attention 'magic'"),
        (["--device", "warp"], "device 'warp' cannot be used"),
        (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json: there is no such folder"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "tiny", "--device", "cpu", "--dtype", "float32", "--kv-memory", "1MiB"]
    assert main(["bench", "serve", *common, *options]) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_rates_that_are_no_numbers_are_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "serve", "--rates", "fast"])
    assert "'fast' are no rates; write them as 1,2.5,10" in capsys.readouterr().err
