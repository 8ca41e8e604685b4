"""Steps that fail: those in them end with an error, the others have their answers, and nothing is left behind.

All of it holds for an engine that takes one step after the other and for one whose steps overlap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_impl.engine import engine as engine_module
from reference_impl.engine.engine import Engine
from reference_impl.engine.outputs import FinishReason, in_one_line
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine import driving
from tests.reference_impl.engine.driving import GREEDY, blocks_in_use, heard, tiny_engine
from tests.reference_impl.engine.faults import Faults, heard_through, once
from tests.reference_impl.engine.same_tokens import LAB3, LAB5, LAB6

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, params=["off", "on"], ids=["one step after the other", "steps overlap"])
def overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(driving, "OVERLAP", request.param)
    return str(request.param)


def alone(tiny: LoadedModel, prompt: list[int]) -> list[int]:
    """The answer in an engine where nothing fails."""
    engine = tiny_engine(tiny).engine
    request = engine.add(prompt, GREEDY)
    return heard(engine)[request, 0].token_ids


@pytest.mark.parametrize("what", ["before", "behind", "tokens"])
def test_who_is_in_a_step_that_fails_ends_with_an_error_and_the_others_go_on(tiny: LoadedModel, what: str) -> None:
    engine = tiny_engine(tiny, max_running=2).engine
    Faults(engine, once(what, 3))
    prompts = [[5, 6, 7], [8, 9], [1, 2, 3, 4], [11]]
    requests = [engine.add(prompt, GREEDY) for prompt in prompts]
    told, errors = heard_through(engine)
    assert len(errors) == 1
    for request, prompt in zip(requests, prompts, strict=True):
        found, whole = told[request, 0], alone(tiny, prompt)
        if request in requests[:2]:
            assert found.finish is FinishReason.ERROR
            assert found.token_ids == whole[:3], "what was made before is not lost"
        else:
            assert (found.finish, found.token_ids) == (FinishReason.LENGTH, whole)
    assert engine.broken is None
    assert blocks_in_use(engine) == 0
    again = engine.add(prompts[0], GREEDY)
    assert heard(engine)[again, 0].token_ids == alone(tiny, prompts[0])


def test_what_came_of_a_failed_step_is_said_at_once_and_by_itself(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny).engine
    Faults(engine, once("before", 0))
    request = engine.add([5, 6, 7], GREEDY)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.step()
    assert blocks_in_use(engine) == 0
    report = engine.last_step
    (piece,) = engine.step()
    assert (piece.request, piece.finish) == (request, FinishReason.ERROR)
    assert piece.error == "RuntimeError: out of memory before anything was computed"
    assert piece.usage is not None
    assert engine.last_step is report
    assert not engine.has_work


def test_all_answers_of_a_request_end_with_it(tiny: LoadedModel) -> None:
    for at in range(4):
        engine = tiny_engine(tiny).engine
        Faults(engine, once("tokens", at))
        request = engine.add([5, 6, 7], replace(GREEDY, n=3))
        told, _ = heard_through(engine)
        assert [told[request, choice].finish for choice in range(3)] == [FinishReason.ERROR] * 3
        assert {len(told[request, choice].tokens) for choice in range(3)} == {at}
        assert blocks_in_use(engine) == 0


def test_a_prompt_that_is_computed_in_part_outlives_tokens_of_others_that_are_no_good(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, max_tokens_per_step=8).engine
    Faults(engine, once("tokens", 1))
    short = engine.add([5, 6, 7], GREEDY)
    long = engine.add(list(range(40)), GREEDY)
    told, _ = heard_through(engine)
    assert told[short, 0].finish is FinishReason.ERROR
    assert told[long, 0].token_ids == alone(tiny, list(range(40)))


@pytest.mark.parametrize(
    "parts", [{"block_allocator": LAB3}, {"prefix_cache": LAB5}, {"scheduler": LAB6}], ids=["lab 3", "lab 5", "lab 6"]
)
def test_somebodys_parts_get_their_blocks_back_too(tiny: LoadedModel, parts: dict[str, str]) -> None:
    engine = tiny_engine(tiny, overlap="auto", max_running=2, **parts).engine
    Faults(engine, once("behind", 2))
    prompts = [[5, 6, 7], [8, 9], [1, 2, 3, 4]]
    requests = [engine.add(prompt, GREEDY) for prompt in prompts]
    told, _ = heard_through(engine)
    ends = [told[request, 0].finish for request in requests]
    assert ends == [FinishReason.ERROR, FinishReason.ERROR, FinishReason.LENGTH]
    assert told[requests[2], 0].token_ids == alone(tiny, prompts[2])
    assert engine.broken is None
    assert blocks_in_use(engine) == 0


def test_an_error_of_the_scheduler_ends_everybody_and_the_engine_says_so(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, max_running=1).engine
    requests = [engine.add([5, 6, 7], GREEDY) for _ in range(2)]
    engine.step()

    def schedule() -> Any:
        raise ValueError("no plan")

    engine.scheduler.schedule = schedule  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no plan"):
        engine.step()
    assert engine.broken == "ValueError: no plan"
    told = heard(engine)
    assert [told[request, 0].finish for request in requests] == [FinishReason.ERROR] * 2
    engine.check_invariants()
    with pytest.raises(RuntimeError, match="serves nobody until it is made anew: ValueError: no plan"):
        engine.add([1], GREEDY)


def test_an_error_of_the_scheduler_ends_everybody_whatever_else_goes_wrong_in_that_step(tiny: LoadedModel) -> None:
    """Where steps overlap the one before lands behind the error, and its tokens are no good."""
    engine = tiny_engine(tiny, max_running=1).engine
    Faults(engine, once("tokens", 1))
    requests = [engine.add([5, 6, 7], GREEDY) for _ in range(2)]
    engine.step()

    schedule, calls = engine.scheduler.schedule, iter(range(9))

    def fails_once() -> Any:
        if next(calls) == 0:
            raise ValueError("no plan")
        return schedule()

    engine.scheduler.schedule = fails_once  # type: ignore[method-assign]
    told: dict[int, FinishReason | None] = {}
    while engine.has_work:
        try:
            told |= {piece.request: piece.finish for piece in engine.step()}
        except (ValueError, FloatingPointError):
            continue
    assert engine.broken is not None
    assert told == dict.fromkeys(requests, FinishReason.ERROR)
    engine.check_invariants()


def without_forks(tiny: LoadedModel) -> Engine:
    """Of somebody's scheduler, to which each answer is a request of its own."""
    return tiny_engine(tiny, overlap="auto", scheduler=LAB6).engine


def test_of_several_answers_all_are_taken_or_none(tiny: LoadedModel) -> None:
    engine = without_forks(tiny)
    add, calls = engine.scheduler.add, iter(range(9))

    def fails_once(request: Any) -> Any:
        if next(calls) == 1:
            raise ValueError("no room for a second one")
        return add(request)

    engine.scheduler.add = fails_once  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no room for a second one"):
        engine.add([5, 6, 7], replace(GREEDY, n=3))
    assert engine.broken is None
    assert not engine.has_work
    assert (engine.num_waiting, blocks_in_use(engine)) == (0, 0)
    request = engine.add([5, 6, 7], replace(GREEDY, n=3))
    told = heard(engine)
    assert [told[request, choice].token_ids for choice in range(3)] == [alone(tiny, [5, 6, 7])] * 3


def test_a_scheduler_that_cannot_end_a_request_ends_everybody(tiny: LoadedModel) -> None:
    engine = without_forks(tiny)
    requests = [engine.add([5, 6, 7], replace(GREEDY, n=2)) for _ in range(2)]
    engine.step()

    def abort(identity: int) -> Any:
        raise ValueError("no end")

    engine.scheduler.abort = abort  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no end"):
        engine.abort(requests[0])
    assert engine.broken == "ValueError: no end"
    told = heard(engine)
    assert {key: answer.finish for key, answer in told.items()} == {
        (request, choice): FinishReason.ERROR for request in requests for choice in range(2)
    }
    engine.check_invariants()


def test_a_device_that_is_lost_ends_everybody(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "is_alive", lambda device: False)
    engine = tiny_engine(tiny, max_running=1).engine
    Faults(engine, once("before", 1))
    requests = [engine.add([5, 6, 7], GREEDY) for _ in range(2)]
    told, errors = heard_through(engine)
    assert [told[request, 0].finish for request in requests] == [FinishReason.ERROR] * 2
    assert len(errors) == 1
    assert engine.broken is not None


@given(
    seed=st.integers(0, 2**16),
    every=st.integers(3, 12),
    blocks=st.integers(14, 40),
    parts=st.sampled_from(
        [
            {"prefix_cache": "hash"},
            {"prefix_cache": "radix", "max_tokens_per_step": 8},
            {"prefix_cache": "hash", "recovery": "swap"},
            {"prefix_cache": "none", "max_running": 3},
        ]
    ),
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=7),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_fails_every_answer_has_one_end_and_no_token_is_wrong(
    tiny: LoadedModel, seed: int, every: int, blocks: int, parts: dict[str, Any], counts: list[int]
) -> None:
    engine = tiny_engine(tiny, blocks=blocks, **parts).engine
    calls = [seed]

    def fails(what: str) -> bool:
        calls[0] = (calls[0] * 1103515245 + 12345) % 2**31
        return (calls[0] >> 8) % every == 0

    Faults(engine, fails)
    prompts = [[7, 8] * (1 + (seed + place) % 11) for place in range(len(counts))]
    asked = [engine.add(prompt, replace(GREEDY, n=n)) for prompt, n in zip(prompts, counts, strict=True)]
    told, _ = heard_through(engine)
    assert engine.broken is None
    assert blocks_in_use(engine) == 0
    for request, prompt, n in zip(asked, prompts, counts, strict=True):
        whole = alone(tiny, prompt)
        for choice in range(n):
            found = told[request, choice]
            assert found.finish in (FinishReason.LENGTH, FinishReason.ERROR)
            assert found.token_ids == whole[: len(found.tokens)]
            assert (found.finish is FinishReason.LENGTH) == (found.token_ids == whole)


def test_what_is_said_of_an_error_is_one_line_that_is_not_too_long() -> None:
    assert in_one_line(ValueError("two\n  lines")) == "ValueError: two lines"
    assert in_one_line(MemoryError()) == "MemoryError"
    assert len(in_one_line(RuntimeError("long " * 1_000))) < 250
