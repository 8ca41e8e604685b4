"""The batch job: the published script to the token, a floor computed by hand, a record that fits its schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from reference_impl.bench import offline
from reference_impl.bench.offline import Floor, Job, check_record, floor_of, lines, measure, script_asks
from reference_impl.bench.profiled_step import kind_of, start_all
from reference_impl.bench.serving_command import RESULTS
from reference_impl.cli import main
from reference_impl.engine.build import build_engine
from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Ask
from reference_impl.engine.options import EngineSettings
from reference_impl.engine.outputs import FinishReason
from reference_impl.model.sampling import SamplingParams
from reference_impl.sim.fit import offline_script

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    settings = EngineSettings("tiny", max_running=4, kv_memory_bytes=2**22, max_context_tokens=400)
    said: list[str] = []
    jobs = [Job("tiny", "sharegpt_8k", 6, turns=2), Job("tiny", "azure_conv", 3, turns=1)]
    found = measure(settings, jobs, "abc", said.append)
    assert len([line for line in said if "a second" in line]) == 3
    return found


def test_the_script_is_the_published_one() -> None:
    asks = script_asks()
    assert [(len(ask.prompt), ask.params.max_tokens) for ask in asks] == offline_script()
    assert (len(asks), sum(ask.params.max_tokens for ask in asks)) == (256, 133_966)
    assert {(ask.params.temperature, ask.params.ignore_eos) for ask in asks} == {(0.6, True)}
    assert all(0 <= token <= 10_000 for ask in asks for token in ask.prompt)


def test_the_floor_reads_every_token_in_every_step_and_all_weights_as_often_as_the_longest_answer_needs() -> None:
    job = [Ask([1] * 10, SamplingParams(max_tokens=3)), Ask([1] * 5, SamplingParams(max_tokens=1))]
    # 10, 11 and 12 tokens are read for the first answer, 5 for the second.
    assert floor_of(job, 1_000, 7) == Floor(3_000, 38 * 7)
    assert Floor(3_000, 266).seconds(1_633.0) == 2.0


def test_the_scripts_floor_is_that_of_the_design() -> None:
    floor = floor_of(script_asks(), 1_192_000_000, 114_688)
    assert round(floor.kv_bytes / 1e12, 1) == 13.9
    assert round(floor.weight_bytes / 1e12, 1) == 1.2


def test_a_record_says_what_was_run_and_fits_its_schema(record: dict[str, Any]) -> None:
    check_record(record)
    assert record["commit"] == "abc"
    assert [(run["model"], run["lengths"], run["requests"], len(run["turns"])) for run in record["runs"]] == [
        ("tiny", "sharegpt_8k", 6, 2),
        ("tiny", "azure_conv", 3, 1),
    ]
    assert record["read_gb_s"] is None, "there is no read ceiling of a CPU"
    for run in record["runs"]:
        assert run["tokens_per_s"] > 0
        assert run["goal"] is None, "the goal is for the script on a GPU"
        assert run["step"] is run["floor_tokens_per_s"] is None
    assert "tiny float32, 6 requests (sharegpt_8k" in lines(record)[1]


def test_a_job_of_a_trace_that_is_not_there_says_that_its_lengths_were_sampled(
    record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2P_TRACES", "none")
    assert [Job(lengths=name, requests=requests).asks(512, 400)[1] for name, requests in (("azure_conv", 3),)] == [
        False
    ]
    assert Job().asks(512, 4_096)[1], "the script is what was published"
    run = record["runs"][0]
    assert "sampled" in "\n".join(lines(record | {"runs": [run | {"is_real": False}]}))
    assert "sampled" not in "\n".join(lines(record | {"runs": [run | {"is_real": True}]}))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tokens_per_s", "fast", "tokens_per_s is 'fast'"),
        ("turns", [], "there are none"),
        ("turns", [{"seconds": 1.0}], "no steps"),
        ("extra", 1, "'extra' is no field"),
        ("goal", {"tokens_per_s": 1e9, "met": True}, "but met is True"),
    ],
)
def test_a_run_that_is_wrong_is_refused(record: dict[str, Any], field: str, value: Any, said: str) -> None:
    broken = copy.deepcopy(record)
    broken["runs"][1][field] = value
    with pytest.raises(ValueError, match=said):
        check_record(broken)


def test_a_record_without_runs_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="runs: there are none"):
        check_record({**record, "runs": []})


def test_figures_of_a_gpu_are_said_as_well(record: dict[str, Any]) -> None:
    step = {"requests": 6, "context_tokens": 9, "gpu_ms": 1.5, "wall_ms": 2.0, "kinds": {"attention": 1.25}}
    run = record["runs"][0]
    goal = {"tokens_per_s": run["tokens_per_s"] + 1, "met": False}
    bytes_ = {"weight_bytes": 10**12, "kv_bytes": 2 * 10**12}
    full = {**run, "floor_tokens_per_s": 8.0, "share": 0.5, "step": step, "goal": goal, **bytes_}
    told = {**record, "read_gb_s": 3_000.0, "runs": [full]}
    check_record(told)
    said = "\n".join(lines(told))
    for words in ("read 3,000 GB/s", "3.0 TB to read", "50%", "2.00 ms, the GPU 1.50", "1.250 ms  attention", "MISS"):
        assert words in said


def test_the_kept_record_fits_its_schema() -> None:
    check_record(json.loads((RESULTS / "offline.json").read_text(encoding="utf-8")))


def test_one_job_is_kept_only_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reference_impl.bench.serving_command.RESULTS", tmp_path)
    options = ["--dtype", "float32", "--device", "cpu", "--turns", "1", "--memory-share", "0.001", "--max-running", "4"]
    job = ["bench", "offline", "--model", "tiny", "--lengths", "azure_code", "--requests", "2", *options]
    assert main(job) == 0
    assert "tiny float32, 2 requests (azure_code" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main([*job, "--json", str(tmp_path / "mine.json")]) == 0
    check_record(json.loads((tmp_path / "mine.json").read_text(encoding="utf-8")))


def test_a_job_with_keys_and_values_in_8_bits_says_so_and_has_half_of_their_bytes_and_no_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reference_impl.bench.serving_command.RESULTS", tmp_path)
    options = ["--dtype", "bfloat16", "--device", "cpu", "--turns", "1", "--memory-share", "0.001"]
    job = ["bench", "offline", "--model", "tiny", "--lengths", "azure_code", "--requests", "2", *options]
    kept = []
    for kind in ("auto", "fp8"):
        assert main([*job, "--kv-cache-dtype", kind, "--json", str(tmp_path / f"{kind}.json")]) == 0
        kept.append(json.loads((tmp_path / f"{kind}.json").read_text(encoding="utf-8"))["runs"][0])
    assert [run["dtype"] for run in kept] == ["bfloat16", "bfloat16, KV fp8"]
    assert kept[0]["kv_bytes"] == 2 * kept[1]["kv_bytes"]
    assert kept[1]["goal"] is None
    assert "tiny bfloat16, KV fp8, 2 requests" in capsys.readouterr().out


def test_the_command_without_a_job_runs_those_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any]
) -> None:
    asked: list[Job] = []
    monkeypatch.setattr("reference_impl.bench.serving_command.RESULTS", tmp_path)
    monkeypatch.setattr(offline, "measure", lambda settings, jobs, *rest: asked.extend(jobs) or record)
    assert main(["bench", "offline", "--kv-cache-dtype", "fp8"]) == 0
    assert list(tmp_path.iterdir()) == [], "other bytes are no record of what is kept"
    asked.clear()
    assert main(["bench", "offline", "--turns", "2"]) == 0
    assert [(job.model, job.lengths, job.requests, job.turns) for job in asked] == [
        ("qwen3-0.6b", "script", 256, 2),
        ("llama-3.2-1b", "script", 256, 2),
        ("qwen3-0.6b", "azure_conv", 256, 2),
        ("qwen3-0.6b", "sharegpt_8k", 256, 2),
    ]
    assert json.loads((tmp_path / "offline.json").read_text(encoding="utf-8")) == record


def engine(**settings: Any) -> Engine:
    wanted = {"max_running": 8, "kv_memory_bytes": 2**22, "max_context_tokens": 400} | settings
    return build_engine(EngineSettings("tiny", **wanted)).engine


def test_the_step_that_is_looked_at_is_one_in_which_all_decode() -> None:
    ours = engine(max_tokens_per_step=16)
    job = [Ask([1] * size, SamplingParams(max_tokens=20)) for size in (3, 40, 9)]
    made = start_all(ours, job)
    assert made is not None
    assert (ours.last_step.decode_tokens, ours.last_step.prefill_tokens) == (3, 0)
    ours.abort_all()
    assert {piece.finish for piece in ours.step() if piece.finish} == {FinishReason.ABORT}
    assert not ours.has_work


@pytest.mark.parametrize(
    ("settings", "new_tokens"),
    [({"max_running": 2}, 9), ({"max_tokens_per_step": 16}, 1)],
    ids=["fewer run at once", "the first end before the last begin"],
)
def test_where_all_never_decode_at_once_there_is_no_such_step(settings: dict[str, int], new_tokens: int) -> None:
    ours = engine(**settings)
    assert start_all(ours, [Ask([1] * 40, SamplingParams(max_tokens=new_tokens))] * 3) is None
    assert not ours.has_work


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [("_paged_decode", "attention"), ("nvjet_tst_64x8", "matrix products"), ("Memcpy DtoH", "copies"), ("_x", "_x")],
)
def test_kernels_are_told_apart_by_their_names(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_numbers_that_make_no_sense_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="turns must be at least 1, got 0"):
        Job(turns=0)
    with pytest.raises(ValueError, match="the script has 256 requests, not 10: give a trace as lengths"):
        Job(requests=10)
    with pytest.raises(ValueError, match="requests must be 1 to"):
        measure(EngineSettings("tiny"), [Job("tiny", "sharegpt_8k", 10**9)], "abc", print)


def test_a_request_that_is_refused_is_an_error_and_no_result() -> None:
    settings = EngineSettings("tiny", kv_memory_bytes=2**15, max_context_tokens=400)
    with pytest.raises(ValueError, match=r"a request of \d+ tokens was refused"):
        measure(settings, [Job("tiny", "sharegpt_8k", 6, turns=1)], "abc", lambda line: None)
