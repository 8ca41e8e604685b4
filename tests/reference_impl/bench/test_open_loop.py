"""Requests come at their time, whether or not the engine keeps up; what they ask for is a trace's, made to fit."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from reference_impl.bench.open_loop import Coming, OpenLoop, at_once, warm_up
from reference_impl.bench.random_model import random_model
from reference_impl.bench.workload_lengths import SystemPrompts, asks, clipped, fitting
from reference_impl.engine.build import build_engine
from reference_impl.engine.generate import Ask
from reference_impl.engine.options import EngineSettings
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.bench.scripted import OneAtATime, Time

pytestmark = pytest.mark.usefixtures("one_thread")


def coming(arrival_s: float, tokens: int) -> Coming:
    return Coming(arrival_s, Ask([1, 2, 3], SamplingParams(max_tokens=tokens)))


def loop_of(requests: list[Coming], most: int = 10) -> tuple[OpenLoop, OneAtATime, Time]:
    time = Time()
    engine = OneAtATime(time, most)
    return OpenLoop(engine, requests, clock=time, sleep=time.sleep), engine, time  # type: ignore[arg-type]


def test_a_request_is_added_once_its_time_has_come_and_between_two_steps() -> None:
    loop, engine, time = loop_of([coming(0.5, 2), coming(1.0, 1), coming(9.0, 1)])
    steps = list(loop.steps())
    assert [(step.started_s, step.ended_s) for step in steps] == [(0.5, 1.5), (1.5, 2.5), (2.5, 3.5), (9.0, 10.0)]
    assert [added_s for added_s, _ in engine.added] == [0.5, 1.5, 9.0]
    assert time.slept == [0.5, 5.5], "it sleeps only while there is nothing to do"


def test_latency_counts_from_the_arrival_and_not_from_when_the_loop_came_round() -> None:
    loop, _, _ = loop_of([coming(0.5, 2), coming(1.0, 1)])
    list(loop.steps())
    assert loop.arrivals == {1: 0.5, 2: 1.0}


def test_a_refused_request_is_counted_by_its_reason() -> None:
    loop, engine, _ = loop_of([coming(0.0, 1)] * 5, most=2)
    steps = list(loop.steps())
    assert loop.refused == {"busy": 2}
    assert len(engine.added) == len(steps) == 3


def test_requests_out_of_order_are_an_error() -> None:
    with pytest.raises(ValueError, match="order of arrival"):
        loop_of([coming(1.0, 1), coming(0.5, 1)])


@given(st.lists(st.tuples(st.integers(0, 640).map(lambda n: n / 64), st.integers(1, 4)), max_size=8))
def test_everybody_who_comes_is_answered_or_refused(arrivals: list[tuple[float, int]]) -> None:
    requests = [coming(*arrival) for arrival in sorted(arrivals)]
    loop, engine, _ = loop_of(requests, most=2)
    made = 0
    for step in loop.steps():
        loop.check_invariants()
        made += sum(len(piece.tokens) for piece in step.pieces)
        assert step.seconds == pytest.approx(1.0)
    assert len(loop.arrivals) + loop.refused.total() == len(requests)
    assert made <= sum(tokens for _, tokens in arrivals)
    assert not engine.has_work


def test_the_warm_up_leaves_the_engine_idle_and_nothing_that_the_measured_prompts_find() -> None:
    loaded = random_model("tiny")
    settings = EngineSettings("tiny", kv_memory_bytes=1 << 20, prefix_cache="hash")
    engine = build_engine(settings, loaded=loaded).engine
    pairs = [(40, 3)] * 3
    warm_up(engine, pairs)
    assert not engine.has_work
    made = engine.scheduler.counters.made_tokens
    assert made == 9
    list(OpenLoop(engine, at_once(asks(pairs, 258, 0))).steps())
    assert engine.scheduler.counters.reused_tokens == 0
    assert engine.scheduler.counters.made_tokens == 2 * made


def test_a_trace_is_cut_to_the_model_and_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2P_TRACES", "none")
    found = clipped("azure_conv", 100, 256)
    whole = clipped("azure_conv", 100, 1 << 20)
    assert not found.is_real
    assert whole.cut == 0
    assert found.cut == sum(new != old for new, old in zip(found.pairs, whole.pairs, strict=True)) > 50
    for (prompt, new), (had_prompt, had_new) in zip(found.pairs, whole.pairs, strict=True):
        assert new == min(had_new, 128)
        assert prompt == min(had_prompt, 256 - new)
    assert found.prompt_tokens + found.output_tokens == sum(prompt + new for prompt, new in found.pairs)


def test_where_requests_that_are_too_long_are_left_out_the_others_keep_their_lengths() -> None:
    found = fitting("sharegpt_8k", 50, 100, 300)
    assert len(found.pairs) == 50
    assert all(prompt <= 100 and new >= 1 and prompt + new <= 300 for prompt, new in found.pairs)
    assert found.pairs[:10] == fitting("sharegpt_8k", 10, 100, 300).pairs
    assert found.cut == 0


def test_too_many_or_too_long_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"requests must be 1 to \d+, got 0"):
        clipped("azure_conv", 0, 100)
    with pytest.raises(ValueError, match=r"requests must be 1 to \d+, got 1000000"):
        fitting("sharegpt_8k", 1_000_000, 100, 300)
    with pytest.raises(ValueError, match="the longest request may have 1"):
        clipped("azure_conv", 5, 1)
    with pytest.raises(ValueError, match="no workload 'x'"):
        clipped("x", 5, 100)


def test_prompts_share_nothing_unless_they_are_given_a_system_prompt() -> None:
    pairs = [(100, 5), (30, 6), (100, 7), (90, 8)]
    system = SystemPrompts(count=2, tokens=40)
    own, shared = asks(pairs, 1_000, 0), asks(pairs, 1_000, 0, system=system)
    for made in (own, shared):
        assert [(len(ask.prompt), ask.params.max_tokens) for ask in made] == pairs
        assert all(ask.params.ignore_eos for ask in made)
    assert own[0].prompt[:5] != own[2].prompt[:5]
    assert shared[0].prompt[:40] == shared[2].prompt[:40]
    assert shared[0].prompt[40:45] != shared[2].prompt[40:45]
    assert shared[1].prompt[:15] == shared[3].prompt[:15], "of a short prompt one half"
    assert shared[1].prompt[15:20] != shared[3].prompt[15:20]
    assert shared[0].prompt[:5] != shared[1].prompt[:5]
    assert own[0].prompt == asks(pairs, 1_000, 0)[0].prompt != asks(pairs, 1_000, 1)[0].prompt
