"""The engine by itself: who is taken, what comes out, how answers end, and that nothing is left of them.

All of it holds for an engine that takes one step after the other and for one whose steps overlap.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.engine.engine import RequestRefused
from reference_impl.engine.generate import Ask, Told, generate
from reference_impl.engine.outputs import FinishReason
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine import driving
from tests.reference_impl.engine.driving import GREEDY, blocks_in_use, heard, pieces_of, tiny_engine

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, params=["off", "on"], ids=["one step after the other", "steps overlap"])
def overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(driving, "OVERLAP", request.param)
    return str(request.param)


def alone(tiny: LoadedModel, prompt: list[int], params: SamplingParams = GREEDY) -> Told:
    """The answer in an engine that has nothing else to do."""
    engine = tiny_engine(tiny).engine
    request = engine.add(prompt, params)
    return heard(engine)[request, 0]


def prompts(count: int, *, longest: int = 40, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(256) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def test_a_batch_answers_as_each_prompt_alone(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny).engine
    asked = {engine.add(prompt, GREEDY): prompt for prompt in prompts(12)}
    told = heard(engine)
    assert {request: told[request, 0].token_ids for request in asked} == {
        request: alone(tiny, prompt).token_ids for request, prompt in asked.items()
    }


def test_the_pieces_of_an_answer_are_its_text_and_the_last_one_says_why_it_ended(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny).engine
    request = engine.add([72, 105], GREEDY)
    pieces = pieces_of(engine)
    tokens = [token.token for piece in pieces for token in piece.tokens]
    assert "".join(piece.text for piece in pieces) == tiny.tokenizer.decode(tokens)
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].request, pieces[-1].finish) == (request, FinishReason.LENGTH)
    usage = pieces[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (2, 8, 0)


def test_a_second_request_says_how_much_of_its_prompt_was_cached(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, block_size=4).engine
    prompt = list(range(18))
    for cached in (0, 16):
        engine.add(prompt, GREEDY)
        last = pieces_of(engine)[-1]
        assert last.usage is not None
        assert last.usage.cached_tokens == cached


def test_under_another_salt_nothing_is_cached(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny).engine
    for salt in ("one", "two"):
        engine.add(list(range(18)), GREEDY, salt=salt)
        last = pieces_of(engine)[-1]
        assert last.usage is not None
        assert last.usage.cached_tokens == 0


def test_a_prompt_that_finds_its_own_blocks_after_a_preemption_was_not_cached(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, blocks=24, block_size=4, max_tokens_per_step=10, prefix_cache="hash").engine
    engine.add(list(range(1, 9)), replace(GREEDY, max_tokens=40))
    engine.add(list(range(100, 130)), replace(GREEDY, max_tokens=24))
    for _ in range(8):
        engine.step()
    # Its prompt takes several steps, and while it does the other two need the memory.
    newcomer = engine.add(list(range(150, 190)), replace(GREEDY, max_tokens=4))
    cached = {piece.request: piece.usage.cached_tokens for piece in pieces_of(engine) if piece.usage is not None}
    counters = engine.scheduler.counters
    assert min(counters.preemptions, counters.reused_tokens) > 0, "it was preempted, and found what it had computed"
    assert cached[newcomer] == 0


# How answers end -------------------------------------------------------------------------------------------------


def test_an_end_token_ends_the_answer_and_is_no_text(tiny: LoadedModel) -> None:
    greedy = alone(tiny, [1, 2, 3])
    end = greedy.token_ids[4]
    before = greedy.token_ids[: greedy.token_ids.index(end)]
    changed = replace(tiny, eos_token_ids=frozenset({end}))
    told = alone(changed, [1, 2, 3], replace(GREEDY, ignore_eos=False))
    assert told.finish is FinishReason.STOP
    assert told.token_ids == [*before, end]
    assert told.text == tiny.tokenizer.decode(before)


def test_a_stop_token_ends_the_answer_and_is_named(tiny: LoadedModel) -> None:
    greedy = alone(tiny, [1, 2, 3])
    stop = greedy.token_ids[3]
    told = alone(tiny, [1, 2, 3], replace(GREEDY, stop_token_ids=(stop,)))
    assert (told.finish, told.stopped_by) == (FinishReason.STOP, stop)
    assert told.token_ids == greedy.token_ids[: greedy.token_ids.index(stop) + 1]


def test_a_stop_string_cuts_the_text_before_it_and_is_named(tiny: LoadedModel) -> None:
    greedy = alone(tiny, [1, 2, 3], replace(GREEDY, max_tokens=30))
    stop = next(greedy.text[at : at + 2] for at in range(3, len(greedy.text) - 2))
    told = alone(tiny, [1, 2, 3], replace(GREEDY, max_tokens=30, stop=("never\x00there", stop)))
    assert (told.finish, told.stopped_by) == (FinishReason.STOP, stop)
    assert told.text == greedy.text[: greedy.text.index(stop)]


def test_a_stop_string_that_ends_in_an_incomplete_character_is_named_though_no_token_may_follow(
    tiny: LoadedModel,
) -> None:
    # The byte begins a character of two, which reads as U+FFFD only when it is known that no other comes.
    params = replace(GREEDY, max_tokens=1, logit_bias={0xC3: 100.0}, stop=("\ufffd",))
    told = alone(tiny, [1, 2, 3], params)
    assert told.token_ids == [0xC3]
    assert (told.text, told.finish, told.stopped_by) == ("", FinishReason.STOP, "\ufffd")


def test_one_token_is_asked_for_and_one_comes(tiny: LoadedModel) -> None:
    told = alone(tiny, [9], replace(GREEDY, max_tokens=1))
    assert (len(told.tokens), told.finish) == (1, FinishReason.LENGTH)


def test_what_is_late_ends_with_what_it_has(tiny: LoadedModel) -> None:
    now = [0.0]
    built = tiny_engine(tiny)
    engine = type(built.engine)(tiny, built.engine.scheduler, built.engine.runner, clock=lambda: now[0], debug=True)
    late = engine.add([1, 2], replace(GREEDY, max_tokens=50), timeout_s=5.0)
    patient = engine.add([1, 2], replace(GREEDY, max_tokens=50))
    told = Told()
    for step in range(10):
        now[0] = step * 1.0
        for piece in engine.step():
            if piece.request == late:
                told.hear(piece)
    assert told.finish is FinishReason.TIMEOUT
    assert 0 < len(told.tokens) < 10
    assert len(heard(engine)[patient, 0].tokens) == 50 - 10
    assert blocks_in_use(engine) == 0


# Several answers -------------------------------------------------------------------------------------------------


def test_several_greedy_answers_are_one_answer_several_times(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny).engine
    request = engine.add([5, 6, 7, 8, 9], replace(GREEDY, n=4))
    told = heard(engine)
    expected = alone(tiny, [5, 6, 7, 8, 9]).token_ids
    assert [told[request, choice].token_ids for choice in range(4)] == [expected] * 4
    assert engine.scheduler.counters.forks == 3


def test_several_sampled_answers_differ_and_come_again_with_their_seed(tiny: LoadedModel) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.5, seed=7, n=3, ignore_eos=True)

    def answered(**settings: object) -> list[list[int]]:
        engine = tiny_engine(tiny, **settings).engine
        engine.add([3, 3, 3], replace(params, seed=1))
        request = engine.add([5, 6, 7, 8, 9], params)
        told = heard(engine)
        return [told[request, choice].token_ids for choice in range(3)]

    first = answered()
    assert len(set(map(tuple, first))) == 3
    assert answered() == first
    assert answered(blocks=12) == first
    assert answered(block_allocator="contiguous", max_context_tokens=40) == first


def test_each_answer_of_several_may_end_by_itself(tiny: LoadedModel) -> None:
    """One may end with its very first token, the others go on."""
    params = SamplingParams(max_tokens=12, temperature=1.5, seed=7, n=6, ignore_eos=True)
    engine = tiny_engine(tiny).engine
    request = engine.add([5, 6, 7, 8, 9], params)
    free = heard(engine)
    firsts = [free[request, choice].token_ids[0] for choice in range(6)]
    for stop in set(firsts):
        engine = tiny_engine(tiny).engine
        request = engine.add([5, 6, 7, 8, 9], replace(params, stop_token_ids=(stop,)))
        told = heard(engine)
        for choice in range(6):
            whole = free[request, choice].token_ids
            expected = whole[: whole.index(stop) + 1] if stop in whole else whole
            assert told[request, choice].token_ids == expected, f"answer {choice}"
        assert blocks_in_use(engine) == 0


def test_several_answers_need_no_more_than_their_own_blocks(tiny: LoadedModel) -> None:
    """32 tokens of prompt in 8 blocks; four answers of 4 tokens take one block each, not eight."""
    engine = tiny_engine(tiny, blocks=14, block_size=4).engine
    engine.add(list(range(32)), replace(GREEDY, n=4, max_tokens=5))
    told = heard(engine)
    assert len(told) == 4
    assert engine.scheduler.counters.preemptions == 0


# Who is not taken -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "wishes", "kind", "named"),
    [
        ([], {}, "invalid", "empty"),
        ([1, 999_999], {}, "invalid", "999999"),
        ([1, -4], {}, "invalid", "-4"),
        ([1] * 30, {"max_tokens": 35}, "too_long", "at most 34"),
        ([1] * 64, {}, "too_long", "shorten"),
        ([1], {"stop_token_ids": (10**6,)}, "invalid", "1000000"),
        ([1], {"logit_bias": {10**6: 1.0}}, "invalid", "1000000"),
        ([1], {"n": 1_000}, "invalid", "1000"),
    ],
)
def test_a_refusal_names_the_value_and_keeps_nothing(
    tiny: LoadedModel, prompt: list[int], wishes: dict[str, object], kind: str, named: str
) -> None:
    engine = tiny_engine(tiny, max_context_tokens=64).engine
    with pytest.raises(RequestRefused, match=named) as refused:
        engine.add(prompt, replace(GREEDY, **wishes))
    assert refused.value.kind == kind
    assert len(str(refused.value).splitlines()) == 1
    assert not engine.has_work


def test_more_than_the_memory_could_ever_hold_is_refused_at_once(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, blocks=4, block_size=4).engine
    with pytest.raises(RequestRefused, match="more KV memory") as refused:
        engine.add([1] * 12, GREEDY)
    assert refused.value.kind == "never_fits"
    engine.add([1] * 9, GREEDY)


def test_behind_a_full_queue_a_request_is_told_to_come_again(tiny: LoadedModel) -> None:
    built = tiny_engine(tiny)
    engine = type(built.engine)(tiny, built.engine.scheduler, built.engine.runner, max_waiting=2, debug=True)
    for _ in range(2):
        engine.add([1, 2], GREEDY)
    with pytest.raises(RequestRefused, match="try again later") as refused:
        engine.add([1, 2], GREEDY)
    assert refused.value.kind == "busy"
    engine.step()
    engine.add([1, 2], GREEDY)
    assert len(heard(engine)) == 3


def test_aborting_what_is_over_is_a_key_error(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny).engine
    request = engine.add([1], replace(GREEDY, max_tokens=1))
    heard(engine)
    with pytest.raises(KeyError, match=str(request)):
        engine.abort(request)


# Nothing is left ---------------------------------------------------------------------------------------------------


@given(data=st.data(), blocks=st.integers(12, 40), recovery=st.sampled_from(["recompute", "swap"]))
@settings(max_examples=25, deadline=None)
def test_aborts_at_any_phase_leave_no_block_and_change_no_other_answer(
    tiny: LoadedModel, data: st.DataObject, blocks: int, recovery: str
) -> None:
    engine = tiny_engine(tiny, blocks=blocks, recovery=recovery, max_tokens_per_step=16).engine
    asked = {}
    for prompt in prompts(8, longest=20, seed=blocks):
        wishes = replace(GREEDY, n=data.draw(st.integers(1, 3)), max_tokens=data.draw(st.integers(1, 12)))
        asked[engine.add(prompt, wishes)] = (prompt, wishes)
    told: dict[tuple[int, int], Told] = {}
    ended = set()
    while engine.has_work:
        for piece in engine.step():
            told.setdefault((piece.request, piece.choice), Told()).hear(piece)
        if data.draw(st.integers(0, 3)) == 0:
            request = data.draw(st.sampled_from(sorted(asked)))
            try:
                engine.abort(request)
            except KeyError:
                continue
            ended.add(request)
    assert blocks_in_use(engine) == 0
    for request, (prompt, wishes) in asked.items():
        if request not in ended:
            expected = alone(tiny, prompt, replace(wishes, n=1)).token_ids
            assert [told[request, choice].token_ids for choice in range(wishes.n)] == [expected] * wishes.n


def _good(draw: random.Random) -> list[int]:
    """Short, and often with a beginning that others have too."""
    return [draw.choice([7, 7, draw.randrange(256)]) for _ in range(draw.randint(1, 24))]


def _odd(draw: random.Random) -> list[int]:
    """Empty, of an unknown token, longer than the context, or longer than the memory."""
    return draw.choice([[], [7, 10**6], [7] * 3_000, [7] * 500])


@pytest.mark.slow
def test_ten_thousand_mixed_requests_leave_nothing_behind(tiny: LoadedModel) -> None:
    """Good ones, invalid ones, impossible ones, late ones, and aborts at random moments, in too little memory."""
    now = [0.0]
    built = tiny_engine(tiny, blocks=96, max_running=48, recovery="swap", max_tokens_per_step=256, debug=False)
    kind = type(built.engine)
    engine = kind(tiny, built.engine.scheduler, built.engine.runner, clock=lambda: now[0], max_waiting=60)
    draw = random.Random(0)
    live: set[int] = set()
    ends: dict[FinishReason, int] = dict.fromkeys(FinishReason, 0)
    refused = {"invalid": 0, "too_long": 0, "never_fits": 0, "busy": 0}
    added = asked = 0
    while asked < 10_000 or engine.has_work:
        for _ in range(min(draw.randint(0, 16), 10_000 - asked)):
            asked += 1
            prompt = draw.choice([_good, _good, _good, _good, _odd])(draw)
            wishes = replace(GREEDY, max_tokens=draw.randint(1, 8), n=draw.choice([1, 1, 1, 2, 3]))
            try:
                live.add(engine.add(prompt, wishes, timeout_s=draw.choice([None, None, 5.0, 40.0])))
                added += 1
            except RequestRefused as error:
                refused[error.kind] += 1
        if live and draw.random() < 0.3:
            engine.abort(draw.choice(sorted(live)))
            live = {request for request in live if request in engine._groups}
        now[0] += 1.0
        for piece in engine.step():
            if piece.finish is not None:
                ends[piece.finish] += 1
            if piece.usage is not None:
                live.discard(piece.request)
    engine.check_invariants()
    assert not live
    assert blocks_in_use(engine) == 0
    assert added + sum(refused.values()) == 10_000
    assert all(refused.values()), refused
    assert all(ends[reason] > 20 for reason in (FinishReason.LENGTH, FinishReason.ABORT, FinishReason.TIMEOUT)), ends
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.forks > 0


def test_a_run_gives_replies_in_the_order_of_the_asks(tiny: LoadedModel) -> None:
    built = tiny_engine(tiny)
    kind = type(built.engine)
    engine = kind(tiny, built.engine.scheduler, built.engine.runner, max_waiting=3, debug=True)
    asks = [Ask(prompt, GREEDY) for prompt in prompts(20)]
    asks[4] = Ask([], GREEDY)
    replies, totals = generate(engine, asks)
    assert [bool(reply.refused) for reply in replies] == [number == 4 for number in range(20)]
    for number in (0, 7, 19):
        assert replies[number].answers[0].token_ids == alone(tiny, asks[number].prompt).token_ids
    assert (totals.made_tokens, totals.refused) == (19 * 8, 1)
