"""Steps that overlap: the same answers as one step after the other, and the next step is away before the last landed.

That requests come, go and end without a trace is in `test_engine.py`, all of which runs on this engine as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference_impl.engine.engine import Engine
from reference_impl.engine.flight import Flight
from reference_impl.engine.generate import Ask, Told, generate
from reference_impl.engine.outputs import FinishReason
from reference_impl.engine.pipelined import PipelinedEngine
from reference_impl.engine.runner import Awaited
from reference_impl.model.byte_tokenizer import ByteTokenizer
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampler import Choice, Sampler, Wish
from reference_impl.model.sampling import Sampled, SamplingParams
from reference_impl.model.tiny import RandomCheckpoint, tiny_config
from reference_impl.model.weights import load_weights
from tests.reference_impl.engine.driving import GREEDY, blocks_in_use, heard, pieces_of, tiny_engine
from tests.reference_impl.engine.same_tokens import LAB3, LAB5, LAB6, WAYS

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = {name: way for name, way in WAYS.items() if "somebody" not in name}


def wishes() -> st.SearchStrategy[SamplingParams]:
    """Of all kinds: those that can be guessed about, and those that look back at what was made."""
    return st.builds(
        SamplingParams,
        max_tokens=st.integers(1, 12),
        temperature=st.sampled_from([0.0, 0.8, 3.0]),
        top_k=st.sampled_from([0, 0, 5]),
        seed=st.integers(0, 5),
        n=st.sampled_from([1, 1, 1, 3]),
        frequency_penalty=st.sampled_from([0.0, 0.0, 0.0, 1.5]),
        repetition_penalty=st.sampled_from([1.0, 1.0, 1.0, 1.7]),
        logprobs=st.sampled_from([None, None, 2]),
        stop=st.sampled_from([(), (), ("a",), ("e", "x")]),
        stop_token_ids=st.sampled_from([(), (), tuple(range(0, 256, 16))]),
        ignore_eos=st.booleans(),
    )


def asks() -> st.SearchStrategy[list[Ask]]:
    prompts = st.integers(1, 30).flatmap(lambda size: st.sampled_from([[7, 8] * size, list(range(size))]))
    return st.lists(st.builds(Ask, prompts, wishes()), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def exact() -> LoadedModel:
    """The tiny model in float64: in whatever batch a row is computed, no token depends on how its sums were rounded."""
    weights = load_weights(RandomCheckpoint(tiny_config()), dtype=torch.float64, device=torch.device("cpu"))
    return LoadedModel("tiny", weights.config, weights, ByteTokenizer(), frozenset({257}))


def told(model: LoadedModel, wanted: list[Ask], overlap: str, **parts: Any) -> tuple[list[list[Told]], Engine]:
    engine = tiny_engine(model, overlap=overlap, **parts).engine
    replies, _ = generate(engine, wanted)
    assert not [reply.refused for reply in replies if reply.refused]
    return [[rounded(answer) for answer in reply.answers] for reply in replies], engine


def rounded(answer: Told) -> Told:
    """Log-probabilities to nine digits, which every order of adding up agrees on in float64."""
    tokens = [
        Sampled(
            one.token,
            None if one.logprob is None else round(one.logprob, 9),
            tuple((token, round(logprob, 9)) for token, logprob in one.top),
        )
        for one in answer.tokens
    ]
    return replace(answer, tokens=tokens)


@given(
    wanted=asks(),
    blocks=st.integers(18, 60),
    parts=st.sampled_from(
        [
            {"prefix_cache": "none"},
            {"prefix_cache": "hash"},
            {"prefix_cache": "radix"},
            {"prefix_cache": "hash", "recovery": "swap"},
            {"prefix_cache": "none", "max_tokens_per_step": 8},
            {"scheduler": "prefill-first"},
            {"scheduler": "static"},
        ]
    ),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_that_of_an_engine_that_waits(
    exact: LoadedModel, wanted: list[Ask], blocks: int, parts: dict[str, Any]
) -> None:
    ours, engine = told(exact, wanted, "on", blocks=blocks, **parts)
    theirs, _ = told(exact, wanted, "off", blocks=blocks, **parts)
    assert ours == theirs
    assert blocks_in_use(engine) == 0


@pytest.mark.parametrize("name", OURS)
def test_every_way_to_run_an_engine_can_overlap(exact: LoadedModel, name: str) -> None:
    way = OURS[name]
    params = replace(GREEDY, n=way.n, temperature=1.0, seed=3)
    prompts = [[(place * 5 + number) % 200 for place in range(3 + 9 * number)] for number in range(8)]
    wanted = [Ask(prompt, params) for prompt in prompts] * (1 + way.twice)
    size = int(way.settings.get("block_size", 4))
    parts = {
        "blocks": int((way.times_longest or 12) * 80 / size),
        "block_size": size,
        "max_context_tokens": 80,
        **way.settings,
    }
    assert told(exact, wanted, "on", **parts)[0] == told(exact, wanted, "off", **parts)[0]


class Watched(PipelinedEngine):
    """Keeps the order of launches and landings, and for whom tokens were awaited."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.seen: list[str] = []
        self.awaited: list[int] = []

    def _launch(self, awaited: Awaited | None = None) -> Flight:
        self.seen.append("launch")
        self.awaited.append(len(awaited.rows) if awaited else 0)
        return super()._launch(awaited)

    def _land(self, flight: Flight) -> Any:
        self.seen.append("land")
        return super()._land(flight)

    def _land_guessed(self, flight: Flight, guessed: set[int]) -> Any:
        self.seen.append("land")
        return super()._land_guessed(flight, guessed)


def watched(tiny: LoadedModel, **options: Any) -> Watched:
    built = tiny_engine(tiny)
    return Watched(tiny, built.engine.scheduler, built.engine.runner, debug=True, **options)


def test_the_next_step_is_launched_before_the_last_one_lands(tiny: LoadedModel) -> None:
    engine = watched(tiny)
    for _ in range(2):
        engine.add([1, 2, 3], replace(GREEDY, max_tokens=4))
    heard(engine)
    assert engine.seen == ["launch", "launch", "land", "launch", "land", "launch", "land", "land"]
    assert engine.awaited == [0, 2, 2, 2]


def test_wishes_that_count_what_was_made_wait_for_it(tiny: LoadedModel) -> None:
    engine = watched(tiny)
    engine.add([1, 2, 3], replace(GREEDY, max_tokens=3, frequency_penalty=0.5))
    heard(engine)
    assert engine.seen == ["launch", "land"] * 3


class Late:
    """A sampler that chooses only when it is asked, as one on a GPU does for some wishes."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def begin(self, logits: Tensor, wishes: Sequence[Wish]) -> Choice:
        kept, then = logits.clone(), [replace(wish, made=tuple(wish.made)) for wish in wishes]
        return Choice(torch.full((len(wishes),), -1), lambda: self.sampler.sample(kept, then), complete=False)


def test_tokens_that_are_chosen_when_they_are_asked_for_are_waited_for(tiny: LoadedModel) -> None:
    engine = watched(tiny)
    engine._sampler = Late(Sampler(tiny.config.vocab_size))  # type: ignore[assignment]
    request = engine.add([1, 2, 3], replace(GREEDY, max_tokens=3))
    found = heard(engine)[request, 0]
    assert engine.seen == ["launch", "land"] * 3
    assert found.token_ids == told(tiny, [Ask([1, 2, 3], GREEDY)], "off")[0][0][0].token_ids[:3]


def test_forks_begin_when_their_parents_step_has_landed(tiny: LoadedModel) -> None:
    engine = watched(tiny)
    engine.add([1, 2, 3], replace(GREEDY, max_tokens=3, n=2))
    heard(engine)
    assert engine.seen == ["launch", "land", "launch", "launch", "land", "land"]


def with_forks_under_way(tiny: LoadedModel, **options: Any) -> tuple[Watched, int, int]:
    """Request a is to fork with the step that is under way, b makes its only token in it; both are late at 5 s."""
    engine = watched(tiny, **options)
    engine.add([1, 2, 3], GREEDY)
    engine.step()
    a = engine.add([1, 2, 3], replace(GREEDY, n=2), timeout_s=5.0)
    b = engine.add([4, 5], replace(GREEDY, max_tokens=1), timeout_s=5.0)
    engine.step()
    assert engine._flight is not None
    assert engine._flight.forked
    return engine, a, b


def test_requests_that_are_late_together_all_end_also_while_forks_are_under_way(tiny: LoadedModel) -> None:
    now = [0.0]
    engine, a, b = with_forks_under_way(tiny, clock=lambda: now[0])
    now[0] = 6.0
    told = heard(engine)
    assert [told[key].finish for key in ((a, 0), (a, 1), (b, 0))] == [FinishReason.TIMEOUT] * 3
    assert len(told[0, 0].tokens) == GREEDY.max_tokens - 2, "two were said before, and the patient one has them all"
    assert blocks_in_use(engine) == 0


def test_aborting_what_nobody_knows_is_a_key_error_also_while_forks_are_under_way(tiny: LoadedModel) -> None:
    engine, a, b = with_forks_under_way(tiny)
    with pytest.raises(KeyError, match="no request 99"):
        engine.abort(99)
    assert engine._flight is not None, "a refused call changes nothing"
    told = heard(engine)
    assert [told[a, choice].finish for choice in range(2)] == [FinishReason.LENGTH] * 2
    assert told[b, 0].finish is FinishReason.LENGTH


def test_an_abort_waits_for_no_step_also_while_forks_are_under_way(tiny: LoadedModel) -> None:
    engine, a, _ = with_forks_under_way(tiny)
    before, under_way = engine.last_step, engine._flight
    engine.abort(a)
    assert engine._flight is under_way, "it lands with the next step, which reports it"
    engine.check_invariants()
    told = [piece for piece in engine.step() if piece.request == a]
    assert [(piece.choice, piece.finish) for piece in told] == [(0, FinishReason.ABORT), (1, FinishReason.ABORT)]
    report = engine.last_step
    assert report is not before
    assert (report.requests, report.made_tokens) == (3, 2), "what was computed for it counts, what was made for others"
    assert heard(engine)[0, 0].finish is FinishReason.LENGTH
    assert engine.scheduler.counters.aborted == 1
    assert blocks_in_use(engine) == 0


def test_an_answer_that_ends_early_counts_as_finished_and_nothing_of_its_last_step_stays(tiny: LoadedModel) -> None:
    whole = told(tiny, [Ask([5, 6, 7], GREEDY)], "off")[0][0][0]
    ender = whole.token_ids[2]
    engine = watched(tiny)
    engine.add([5, 6, 7], replace(GREEDY, stop_token_ids=(ender,)))
    (answer,) = heard(engine).values()
    assert answer.finish is FinishReason.STOP
    assert answer.token_ids == whole.token_ids[: whole.token_ids.index(ender) + 1]
    counters = engine.scheduler.counters
    assert (counters.finished, counters.aborted) == (1, 0)
    assert blocks_in_use(engine) == 0


def test_no_guess_is_ever_published(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, overlap="on", prefix_cache="hash").engine
    engine.add([9] * 6, GREEDY)
    (first,) = heard(engine).values()
    # All blocks of four that the answer filled are found again by what was made, and by nothing else.
    again = engine.add([9] * 6 + first.token_ids, GREEDY)
    usage = [piece.usage for piece in pieces_of(engine) if piece.usage is not None and piece.request == again]
    assert usage[0].cached_tokens == 12


@pytest.mark.parametrize(
    "parts", [{"block_allocator": LAB3}, {"prefix_cache": LAB5}, {"scheduler": LAB6}], ids=["lab 3", "lab 5", "lab 6"]
)
def test_somebodys_part_is_never_told_a_guess(tiny: LoadedModel, parts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"overlap on needs parts of ours only, not .*: it plans before tokens are"):
        tiny_engine(tiny, overlap="on", **parts)
    assert type(tiny_engine(tiny, overlap="auto", **parts).engine) is Engine


def test_on_a_cpu_steps_overlap_only_if_asked_for(tiny: LoadedModel) -> None:
    assert type(tiny_engine(tiny, overlap="auto").engine) is Engine
    assert type(tiny_engine(tiny, overlap="on").engine) is PipelinedEngine
    with pytest.raises(ValueError, match="overlap must be auto, on, off, got 'perhaps'"):
        tiny_engine(tiny, overlap="perhaps")
