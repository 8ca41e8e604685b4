"""What a call may ask for: every field that is accepted has an effect, in both APIs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

from hypothesis import example, given
from hypothesis import strategies as st

from reference_impl.engine.server.call import Call
from reference_impl.engine.server.chat import ChatCall
from reference_impl.engine.server.completions import CompletionCall, Offsets
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine.driving import heard, tiny_engine
from tests.reference_impl.engine.server.http_serving import Served, serving

pytestmark = pytest.mark.usefixtures("one_thread")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "the blocks of a table need not be neighbours"
ASK = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": PROMPT}]
END = 257


@pytest.fixture(scope="module")
def served(tiny: LoadedModel) -> Iterator[Served]:
    with serving(tiny_engine(tiny, blocks=512).engine) as running:
        yield running
        running.wait_until_idle()


def choices(served: Served, **fields: Any) -> list[dict[str, Any]]:
    response = served.post(COMPLETIONS, {**ASK, **fields})
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


def text(served: Served, **fields: Any) -> str:
    (choice,) = choices(served, **fields)
    said: str = choice["text"]
    return said


def expected(tiny: LoadedModel, prompt: list[int], **wishes: Any) -> str:
    """What the engine says by itself."""
    engine = tiny_engine(tiny).engine
    engine.add(prompt, SamplingParams(**{"max_tokens": 12, "temperature": 0.0, "ignore_eos": True, **wishes}))
    return heard(engine)[0, 0].text


def test_a_completion_is_what_the_engine_says(served: Served, tiny: LoadedModel) -> None:
    body = served.post(COMPLETIONS, ASK).json()
    assert body["object"] == "text_completion"
    assert body["model"] == "tiny"
    (choice,) = body["choices"]
    assert choice["text"] == expected(tiny, list(PROMPT.encode()))
    assert choice["finish_reason"] == "length"
    assert body["usage"]["prompt_tokens"] == len(PROMPT)
    assert body["usage"]["completion_tokens"] == 12
    assert body["usage"]["total_tokens"] == len(PROMPT) + 12


def test_a_chat_is_the_models_template_and_its_next_turn(served: Served, tiny: LoadedModel) -> None:
    body = served.post(
        CHAT, {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    ).json()
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected(tiny, tiny.tokenizer.chat(MESSAGES))}
    assert body["usage"]["prompt_tokens"] == len(tiny.tokenizer.chat(MESSAGES))


def test_a_prompt_comes_as_text_as_tokens_or_as_many_of_either(served: Served) -> None:
    other = "another prompt"
    one, two = text(served), text(served, prompt=other)
    ids = list(PROMPT.encode())
    assert text(served, prompt=ids) == one
    for many in ([PROMPT, other], [ids, list(other.encode())]):
        found = choices(served, prompt=many, n=2)
        assert [choice["text"] for choice in found] == [one, one, two, two]
        assert [choice["index"] for choice in found] == [0, 1, 2, 3]


def test_content_may_come_in_parts_of_text(served: Served) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    asked = {"model": "tiny", "max_tokens": 8, "temperature": 0}
    in_parts = served.post(CHAT, {**asked, "messages": [{"role": "user", "content": parts}]}).json()
    at_once = served.post(CHAT, {**asked, "messages": [{"role": "user", "content": "one\ntwo"}]}).json()
    assert in_parts["choices"] == at_once["choices"]
    assert in_parts["usage"]["prompt_tokens"] == at_once["usage"]["prompt_tokens"]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_what_the_whole_answer_says(served: Served, n: int) -> None:
    fields = {"n": n, "temperature": 1, "seed": 5, "logprobs": 2}
    whole = choices(served, **fields, stream=False)
    events = served.events(COMPLETIONS, {**ASK, **fields})
    for choice in whole:
        mine = [found for event in events for found in event["choices"] if found["index"] == choice["index"]]
        assert "".join(found["text"] for found in mine) == choice["text"]
        assert [found["finish_reason"] for found in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        for part, joined in choice["logprobs"].items():
            assert [entry for found in mine if found["logprobs"] for entry in found["logprobs"][part]] == joined
    assert len({event["id"] for event in events}) == 1
    assert all(event["usage"] is None for event in events)


def test_a_stream_of_a_chat_begins_with_the_role_and_ends_with_the_usage_if_asked(served: Served) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 9, "temperature": 0, "n": 2, "logprobs": True}
    whole = served.post(CHAT, asked).json()
    *events, last = served.events(CHAT, {**asked, "stream_options": {"include_usage": True}})
    for choice in whole["choices"]:
        mine = [found for event in events for found in event["choices"] if found["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(found["delta"].get("content", "") for found in mine) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        tokens = [entry for found in mine if found["logprobs"] for entry in found["logprobs"]["content"]]
        expected = choice["logprobs"]["content"]
        assert [entry["bytes"] for entry in tokens] == [entry["bytes"] for entry in expected]
        # The second time the prompt's blocks are found again, and sums are taken in another order.
        assert [entry["logprob"] for entry in tokens] == pytest.approx(
            [entry["logprob"] for entry in expected], abs=1e-4
        )
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 18


def test_temperature_and_seed_choose_among_answers(served: Served) -> None:
    warm = {"temperature": 1.5}
    assert text(served, seed=1, **warm) == text(served, seed=1, **warm)
    assert len({text(served, seed=seed, **warm) for seed in range(4)}) == 4
    assert len({text(served, **warm) for _ in range(4)}) > 1
    assert len({choice["text"] for choice in choices(served, n=3, seed=1, **warm)}) == 3


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-9}])
def test_a_narrow_choice_is_the_likeliest_token(served: Served, narrow: dict[str, float]) -> None:
    assert text(served, **{"temperature": 1.5, "seed": 3, **narrow}) == text(served)
    assert text(served, temperature=1.5, seed=3) != text(served)


def test_penalties_and_biases_change_the_choice(served: Served) -> None:
    biased = {"logit_bias": {"97": 100}}
    assert text(served, **biased) == "a" * 12
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 50}):
        alike = {"logit_bias": {"97": 4, "98": 3.5}}
        assert text(served, **alike, **penalty) != text(served, **alike)


def test_an_answer_ends_before_a_stop_string_and_at_a_stop_token(served: Served) -> None:
    whole = text(served, prompt="the", logit_bias={str(letter): 8 for letter in range(97, 123)})
    middle = whole[4:6]
    asked = {"prompt": "the", "logit_bias": {str(letter): 8 for letter in range(97, 123)}}
    for stop in (middle, ["never", middle]):
        (choice,) = choices(served, **asked, stop=stop)
        assert choice["text"] == whole[: whole.index(middle)]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", middle)
    (choice,) = choices(served, **asked, stop_token_ids=[ord(whole[3])])
    assert choice["text"] == whole[: whole.index(whole[3])]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ord(whole[3]))


def test_the_models_end_token_ends_unless_it_is_to_be_ignored(served: Served) -> None:
    forced = {"logit_bias": {str(END): 100}}
    (choice,) = choices(served, ignore_eos=False, **forced)
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    (choice,) = choices(served, ignore_eos=True, **forced)
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_has_at_most_so_many_tokens(served: Served, name: str) -> None:
    usage = served.post(CHAT, {"model": "tiny", "messages": MESSAGES, "ignore_eos": True, name: 3}).json()["usage"]
    assert usage["completion_tokens"] == 3


def test_without_a_limit_a_chat_ends_with_the_context_and_a_completion_after_16_tokens(tiny: LoadedModel) -> None:
    with serving(tiny_engine(tiny, max_context_tokens=100).engine) as small:
        usage = small.post(CHAT, {"model": "tiny", "messages": MESSAGES, "ignore_eos": True}).json()["usage"]
        assert usage["total_tokens"] == 100
        usage = small.post(COMPLETIONS, {"model": "tiny", "prompt": "a", "ignore_eos": True}).json()["usage"]
        assert usage["completion_tokens"] == 16


def test_without_a_limit_a_completion_near_the_end_of_the_context_has_what_is_left(tiny: LoadedModel) -> None:
    with serving(tiny_engine(tiny, max_context_tokens=200).engine) as small:
        usage = small.post(COMPLETIONS, {"model": "tiny", "prompt": "a" * 190, "ignore_eos": True}).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (190, 10)


def test_without_a_limit_a_chat_fits_into_a_memory_smaller_than_the_context(tiny: LoadedModel) -> None:
    with serving(tiny_engine(tiny, blocks=32, block_size=4).engine) as small:
        usage = small.post(CHAT, {"model": "tiny", "messages": MESSAGES, "ignore_eos": True}).json()["usage"]
        assert usage["total_tokens"] == 128 == small.get("/v1/models").json()["data"][0]["max_model_len"]


def test_echo_puts_the_prompt_before_the_answer(served: Served) -> None:
    plain = text(served)
    assert text(served, echo=True) == PROMPT + plain
    assert text(served, echo=True, prompt=list(PROMPT.encode())) == PROMPT + plain
    events = served.events(COMPLETIONS, {**ASK, "echo": True, "n": 2})
    for index in (0, 1):
        said = [found["text"] for event in events for found in event["choices"] if found["index"] == index]
        assert "".join(said) == PROMPT + plain


def test_logprobs_of_a_completion_are_four_lists_of_one_length(served: Served) -> None:
    (choice,) = choices(served, logprobs=3)
    found = choice["logprobs"]
    assert {len(entries) for entries in found.values()} == {12}
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True):
        assert len(top) == 3
        assert top[token] == logprob == max(top.values()) < 0
    assert found["text_offset"][0] == 0
    assert found["text_offset"] == sorted(found["text_offset"])
    for token, begins in zip(found["tokens"], found["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][begins : begins + len(token)] == token
    assert all(not top for top in choices(served, logprobs=0)[0]["logprobs"]["top_logprobs"])
    assert choices(served)[0]["logprobs"] is None


def places(data: bytes) -> list[int]:
    """For each byte, the number of its character in the text, by trying at every place what can be read there."""
    found: list[int] = []
    while len(found) < len(data):
        rest = data[len(found) :]
        try:
            length = len(rest.decode()[0].encode())
        except UnicodeDecodeError as error:
            length = error.end if error.start == 0 else len(rest[: error.start].decode()[0].encode())
        found += [1 + found[-1] if found else 0] * length
    return found


@example([b"\xed\xa0", b"\x00"])
@example([b"\xed", b"\xa0", b"a"])
@given(st.lists(st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from("aé€𐍈").map(str.encode)), max_size=12))
def test_a_token_begins_with_the_character_that_its_first_byte_belongs_to(tokens: list[bytes]) -> None:
    offsets, data = Offsets(), b""
    for raw in tokens:
        data += raw
        assert offsets.next(raw) == places(data)[len(data) - len(raw)]


def test_logprobs_of_a_chat_name_each_token_and_its_bytes(served: Served) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    (choice,) = served.post(CHAT, {**asked, "logprobs": True, "top_logprobs": 2}).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 6
    joined = b"".join(bytes(entry["bytes"] or []) for entry in entries)
    assert joined.decode(errors="replace") == choice["message"]["content"]
    for entry in entries:
        likeliest, second = entry["top_logprobs"]
        assert likeliest["logprob"] == entry["logprob"] > second["logprob"]
    (choice,) = served.post(CHAT, {**asked, "logprobs": True}).json()["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []
    assert served.post(CHAT, asked).json()["choices"][0]["logprobs"] is None


def test_a_prefix_is_found_again_under_the_same_salt_only(served: Served) -> None:
    prompt = "a prefix of some length, said by nobody else in this file"

    def cached(salt: str) -> int:
        usage = served.post(COMPLETIONS, {**ASK, "prompt": prompt, "cache_salt": salt}).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached("one") == 0
    assert cached("one") >= len(prompt) - 4
    assert cached("two") == 0


@pytest.mark.parametrize("limit_s", [None, 30.0])
def test_a_request_that_takes_too_long_ends_with_what_it_has(tiny: LoadedModel, limit_s: float | None) -> None:
    with serving(tiny_engine(tiny, debug=False).engine, timeout_s=limit_s) as slow:
        asked = {**ASK, "max_tokens": 900, "timeout_s": 0.1, "n": 2}
        body = slow.post(COMPLETIONS, asked).json()
        assert [choice["finish_reason"] for choice in body["choices"]] == ["timeout", "timeout"]
        assert 0 < body["usage"]["completion_tokens"] < 1_800
        slow.wait_until_idle()


def test_the_servers_limit_of_time_holds_for_those_who_ask_for_more(tiny: LoadedModel) -> None:
    with serving(tiny_engine(tiny).engine, timeout_s=0.05) as strict:
        for timeout in ({}, {"timeout_s": 1_000}):
            body = strict.post(COMPLETIONS, {**ASK, "max_tokens": 900, **timeout}).json()
            assert body["choices"][0]["finish_reason"] == "timeout"


def test_null_is_the_same_as_leaving_a_field_out(served: Served) -> None:
    required = {"model", "prompt", "messages"}
    nothing = {name: None for name in CompletionCall.model_fields if name not in required}
    body = served.post(COMPLETIONS, {"model": "tiny", "prompt": "a", **nothing}).json()
    assert body["usage"]["completion_tokens"] <= 16
    nothing = {name: None for name in ChatCall.model_fields if name not in required | {"max_tokens"}}
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2, **nothing}
    assert served.post(CHAT, asked).status_code == 200


def test_this_file_names_every_field_there_is() -> None:
    with open(__file__, encoding="utf-8") as file:
        words = file.read()
    for name in {**Call.model_fields, **CompletionCall.model_fields, **ChatCall.model_fields}:
        assert f'"{name}"' in words or f"{name}=" in words, f"nothing here asks for {name}"


def test_the_model_is_listed_with_its_context(served: Served) -> None:
    listed = served.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert served.get("/v1/models/tiny").json() == listed["data"][0]
    assert listed["data"][0]["max_model_len"] == 2_048
    assert served.get("/health").json() == {"status": "ready"}
