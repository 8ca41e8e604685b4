"""The batch job: the published script to the token, a floor computed by hand, a record that fits its schema."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from reference_impl.bench import offline
from reference_impl.bench.offline import Floor, Job, check_record, floor_of, lines, measure, script_asks, start_all
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
    found = measure(settings, Job("sharegpt_8k", 6, turns=2), "abc", said.append)
    assert len([line for line in said if "a second" in line]) == 2
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
    assert (record["model"], record["lengths"], record["requests"], record["commit"]) == (
        "tiny",
        "sharegpt_8k",
        6,
        "abc",
    )
    assert len(record["turns"]) == 2
    assert record["tokens_per_s"] > 0
    assert record["goal"] is None, "the goal is for the script on a GPU"
    assert record["step"] is record["floor_tokens_per_s"] is None, "there is no read ceiling of a CPU"
    assert "tiny float32" in lines(record)[0]


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
def test_a_record_that_is_wrong_is_refused(record: dict[str, Any], field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_record({**copy.deepcopy(record), field: value})


def test_figures_of_a_gpu_are_said_as_well(record: dict[str, Any]) -> None:
    step = {"requests": 6, "context_tokens": 9, "gpu_ms": 1.5, "wall_ms": 2.0, "kinds": {"attention": 1.25}}
    goal = {"tokens_per_s": record["tokens_per_s"] + 1, "met": False}
    full = {**record, "read_gb_s": 3_000.0, "floor_tokens_per_s": 8.0, "share": 0.5, "step": step, "goal": goal}
    check_record(full)
    said = "\n".join(lines(full))
    assert all(words in said for words in ("50%", "2.00 ms, the GPU 1.50", "1.250 ms  attention", "MISS"))


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
    assert offline._kind(kernel) == kind


def test_numbers_that_make_no_sense_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="turns must be at least 1, got 0"):
        Job(turns=0)
    with pytest.raises(ValueError, match="the script has 256 requests, not 10: give a trace as lengths"):
        Job(requests=10)
    with pytest.raises(ValueError, match="requests must be 1 to"):
        measure(EngineSettings("tiny"), Job("sharegpt_8k", 10**9), "abc", print)


def test_a_request_that_is_refused_is_an_error_and_no_result() -> None:
    settings = EngineSettings("tiny", kv_memory_bytes=2**15, max_context_tokens=400)
    with pytest.raises(ValueError, match=r"a request of \d+ tokens was refused"):
        measure(settings, Job("sharegpt_8k", 6, turns=1), "abc", lambda line: None)
