"""What the server tells of itself adds up to what was asked of it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")

from reference_impl.engine.async_engine import AsyncEngine, State
from reference_impl.engine.engine import Engine, StepReport
from reference_impl.engine.outputs import FinishReason, Piece, Usage
from reference_impl.engine.server.metrics import Metrics, Snapshot
from reference_impl.engine.stream import RequestFailedError
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import Sampled
from tests.reference_impl.engine.driving import GREEDY, pieces_of, tiny_engine
from tests.reference_impl.engine.faults import Faults, once
from tests.reference_impl.engine.same_tokens import LAB5, LAB6
from tests.reference_impl.engine.server.http_serving import samples_of, serving

pytestmark = pytest.mark.usefixtures("one_thread")
IDLE = Snapshot(running=0, waiting=0, waiting_by_reason={}, kv_usage=0.0, preemptions=0)


def samples(metrics: Metrics, now: Snapshot = IDLE) -> dict[str, float]:
    return samples_of(metrics.render(now).decode())


def made(
    request: int, choice: int, tokens: int = 1, *, finish: FinishReason | None = None, usage: Usage | None = None
) -> Piece:
    return Piece(request, choice, "", (Sampled(0),) * tokens, finish, None, usage)


def test_times_are_measured_from_arrival_and_from_token_to_token() -> None:
    metrics = Metrics("tiny")
    metrics.admitted(0, 30, arrival_s=100.0)
    metrics.stepped([], StepReport(20, 0, 1), 101.0)
    metrics.stepped([made(0, 0), made(0, 1)], StepReport(10, 0, 1), 102.0)
    metrics.stepped([made(0, 0), made(0, 1, finish=FinishReason.STOP)], StepReport(0, 2, 2), 102.25)
    last = made(0, 0, finish=FinishReason.LENGTH, usage=Usage(30, 16, 5, 30))
    metrics.stepped([last], StepReport(0, 1, 1), 103.0)
    metrics.check_invariants()
    found = samples(metrics)
    assert found["vllm:time_to_first_token_seconds_sum"] == 2.0
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 3
    assert found["vllm:inter_token_latency_seconds_sum"] == 0.25 + 0.25 + 0.75
    assert found["vllm:e2e_request_latency_seconds_sum"] == 2.25 + 3.0
    assert found["vllm:request_time_per_output_token_seconds_sum"] == 0.25 + 0.5
    assert found["vllm:iteration_tokens_total_sum"] == 33
    assert found["vllm:iteration_tokens_total_count"] == 4
    assert found["vllm:prompt_tokens_total"] == 30
    assert found["vllm:prefix_cache_queries_total"] == 30
    assert found["vllm:prefix_cache_hits_total"] == found["vllm:prompt_tokens_cached_total"] == 16
    assert found["vllm:generation_tokens_total"] == 5
    assert found["vllm:request_generation_tokens_sum"] == 5
    assert found['vllm:request_success_total{finished_reason="stop"}'] == 1
    assert found['vllm:request_success_total{finished_reason="length"}'] == 1


def test_the_time_per_token_of_an_answer_that_waits_for_another_begins_with_its_own_first_token() -> None:
    metrics = Metrics("tiny")
    metrics.admitted(0, 30, arrival_s=0.0)
    metrics.stepped([made(0, 0)], StepReport(30, 0, 1), 1.0)
    metrics.stepped([made(0, 0, finish=FinishReason.LENGTH)], StepReport(0, 1, 1), 2.0)
    metrics.stepped([made(0, 1)], StepReport(30, 0, 1), 10.0)
    metrics.check_invariants()
    metrics.stepped([made(0, 1, finish=FinishReason.LENGTH)], StepReport(0, 1, 1), 10.5)
    found = samples(metrics)
    assert found["vllm:request_time_per_output_token_seconds_count"] == 2
    assert found["vllm:request_time_per_output_token_seconds_sum"] == 1.0 + 0.5
    assert found["vllm:inter_token_latency_seconds_sum"] == 1.0 + 0.5
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:time_to_first_token_seconds_sum"] == 1.0


def test_a_request_that_never_ran_has_no_first_token() -> None:
    metrics = Metrics("tiny")
    metrics.admitted(3, 10, arrival_s=1.0)
    metrics.stepped([made(3, 0, 0, finish=FinishReason.ABORT, usage=Usage(10, 0, 0))], StepReport(), 2.0)
    found = samples(metrics)
    assert found["vllm:time_to_first_token_seconds_count"] == 0
    assert found["vllm:prompt_tokens_total"] == 0
    assert found['vllm:request_success_total{finished_reason="abort"}'] == 1
    assert found["vllm:iteration_tokens_total_count"] == 0


def test_what_the_scheduler_says_is_shown_as_it_is_now() -> None:
    metrics = Metrics("tiny")
    busy = Snapshot(running=3, waiting=2, waiting_by_reason={"no room": 2}, kv_usage=0.75, preemptions=4)
    found = samples(metrics, busy)
    assert found["vllm:num_requests_running"] == 3
    assert found["vllm:num_requests_waiting"] == 2
    assert found["vllm:kv_cache_usage_perc"] == 0.75
    assert found["vllm:num_preemptions_total"] == 4
    assert found['vllm:num_requests_waiting_by_reason{reason="no room"}'] == 2
    found = samples(metrics, replace(IDLE, preemptions=5))
    assert found["vllm:num_requests_running"] == 0
    assert found["vllm:num_preemptions_total"] == 5
    assert found['vllm:num_requests_waiting_by_reason{reason="no room"}'] == 0


def test_two_servers_in_one_process_do_not_mix() -> None:
    one, other = Metrics("tiny"), Metrics("tiny")
    one.refused("busy")
    assert samples(one)['engine:requests_refused_total{kind="busy"}'] == 1
    assert 'engine:requests_refused_total{kind="busy"}' not in samples(other)


def test_everything_that_was_asked_over_http_is_counted_once(tiny: LoadedModel) -> None:
    asked = {"model": "tiny", "ignore_eos": True, "temperature": 0}
    prompts, answers, tokens = 0, 0, 0
    # Little memory, so that requests are preempted.
    engine = tiny_engine(tiny, blocks=24, block_size=4).engine
    with serving(engine) as served:
        for number in range(6):
            call = {
                **asked,
                "prompt": "p" * 20,
                "max_tokens": 10 + number,
                "n": 1 + number % 3,
                "cache_salt": str(number % 2),
            }
            usage = served.post("/v1/completions", call).json()["usage"]
            prompts += usage["prompt_tokens"]
            answers += call["n"]
            tokens += usage["completion_tokens"]
        assert served.post("/v1/completions", {**asked, "prompt": "p", "max_tokens": 0}).status_code == 400
        assert served.post("/v1/completions", {**asked, "prompt": "", "max_tokens": 1}).status_code == 400
        response = served.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        found = samples_of(response.text)
        counters = engine.scheduler.counters
    assert found["vllm:prompt_tokens_total"] == prompts == 120
    assert found["vllm:generation_tokens_total"] == tokens == found["vllm:request_generation_tokens_sum"]
    assert found['vllm:request_success_total{finished_reason="length"}'] == answers
    assert found["vllm:e2e_request_latency_seconds_count"] == answers
    assert found["vllm:time_to_first_token_seconds_count"] == 6
    assert found["vllm:inter_token_latency_seconds_count"] == tokens - answers
    assert found["vllm:prefix_cache_hits_total"] > 0
    assert found["vllm:num_preemptions_total"] == counters.preemptions
    assert found["vllm:iteration_tokens_total_sum"] == counters.scheduled_tokens
    assert found["vllm:iteration_tokens_total_count"] == counters.steps
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert math.isclose(found["vllm:kv_cache_usage_perc"], 0)
    assert found['engine:requests_refused_total{kind="invalid"}'] >= 1


def counted(metrics: Metrics, engine: Engine) -> tuple[float, ...]:
    """Prompt tokens looked up and found, and those computed and cached."""
    found = samples(metrics, Snapshot.of(engine))
    names = ("prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "prompt_tokens_cached")
    return tuple(found[f"vllm:{name}_total"] for name in names)


def test_a_prompt_that_was_aborted_while_it_waited_was_not_looked_up(tiny: LoadedModel) -> None:
    engine, metrics = tiny_engine(tiny, prefix_cache="hash").engine, Metrics("tiny")
    request = engine.add([7] * 100, GREEDY)
    metrics.admitted(request, 100, 0.0)
    engine.abort(request)
    metrics.stepped(engine.step(), engine.last_step, 1.0)
    assert counted(metrics, engine) == (0, 0, 0, 0)


@pytest.mark.parametrize("parts", [{"prefix_cache": "none"}, {"scheduler": LAB6}], ids=["none", "lab 6"])
def test_without_a_prefix_cache_nothing_is_looked_up(tiny: LoadedModel, parts: dict[str, str]) -> None:
    engine, metrics = tiny_engine(tiny, **parts).engine, Metrics("tiny")
    metrics.admitted(engine.add([7] * 100, GREEDY), 100, 0.0)
    metrics.stepped(pieces_of(engine), engine.last_step, 1.0)
    assert counted(metrics, engine) == (0, 0, 100, 0)


@pytest.mark.parametrize("cache", ["hash", "radix", LAB5], ids=["hash", "radix", "lab 5"])
def test_a_prompt_that_was_aborted_half_computed_was_looked_up_and_none_of_it_counts_as_cached(
    tiny: LoadedModel, cache: str
) -> None:
    engine, metrics = tiny_engine(tiny, prefix_cache=cache, max_tokens_per_step=16).engine, Metrics("tiny")
    engine.add([7] * 90, GREEDY)
    pieces_of(engine)
    request = engine.add([7] * 88 + [8] * 52, GREEDY)
    metrics.admitted(request, 140, 0.0)
    metrics.stepped(engine.step(), engine.last_step, 1.0)
    engine.abort(request)
    metrics.stepped(pieces_of(engine), engine.last_step, 2.0)
    assert counted(metrics, engine) == (140, 88, 0, 0)


def test_memory_in_use_is_a_share_of_all_memory(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, blocks=16, block_size=4).engine
    engine.add(list(b"p" * 30), GREEDY)
    engine.step()
    now = Snapshot.of(engine)
    assert (now.running, now.waiting) == (1, 0)
    assert now.kv_usage == 8 / 16


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_after_a_step_that_failed_the_engine_goes_on_and_counts_what_it_did(tiny: LoadedModel, overlap: str) -> None:
    engine = tiny_engine(tiny, overlap=overlap).engine
    Faults(engine, once("before", 2))
    metrics = Metrics("tiny")
    served = AsyncEngine(engine, observer=metrics)

    async def test() -> None:
        async with served:
            with pytest.raises(RequestFailedError, match="RuntimeError: out of memory before anything"):
                await (await served.submit([[5, 6, 7]], GREEDY)).whole()
            (piece,) = await (await served.submit([[5, 6, 7]], GREEDY)).whole()
            assert len(piece.tokens) == 8

    asyncio.run(asyncio.wait_for(test(), 20))
    assert served.state is State.STOPPED
    found = samples_of(metrics.render(Snapshot.of(engine)).decode())
    assert found['vllm:request_success_total{finished_reason="error"}'] == 1
    assert found["vllm:generation_tokens_total"] == 2 + 8
    assert found["vllm:iteration_tokens_total_sum"] == 3 + 1 + 3 + 7, "steps that landed, and no other"
