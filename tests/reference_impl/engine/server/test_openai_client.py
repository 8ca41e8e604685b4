"""The official client, over real HTTP: what programs that were written for OpenAI's API do with this server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine.driving import tiny_engine
from tests.reference_impl.engine.server.http_serving import PATIENCE_S, Served, serving

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.usefixtures("one_thread")
KEY = "s3cret"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is a block table?"}]
ENGINE_FIELDS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def served(tiny: LoadedModel) -> Iterator[Served]:
    with serving(tiny_engine(tiny, blocks=512).engine, api_key=KEY) as running:
        yield running
        running.wait_until_idle()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S) as made:
        yield made


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=10, temperature=0, extra_body=ENGINE_FIELDS
    )
    assert answer.object == "chat.completion"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 10
    again = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_a_chat_in_a_stream_is_the_same_chat(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "temperature": 0, "extra_body": ENGINE_FIELDS}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 20
    assert chunks[-2].choices[0].finish_reason == "length"


def test_three_answers_of_one_seed_differ_from_each_other_and_come_again(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.2, "n": 3, "seed": 11}
    first, second = (client.chat.completions.create(**asked, extra_body=ENGINE_FIELDS) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in second.choices]
    assert first.usage.completion_tokens == 36


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    letters = {str(code): 8 for code in range(97, 123)}
    asked = {"model": "tiny", "prompt": "the", "max_tokens": 12, "temperature": 0, "logit_bias": letters}
    whole = client.completions.create(**asked, extra_body=ENGINE_FIELDS).choices[0].text
    cut = client.completions.create(**asked, stop=[whole[5:7]], extra_body=ENGINE_FIELDS).choices[0]
    assert cut.text == whole[: whole.index(whole[5:7])]
    assert cut.finish_reason == "stop"


def test_log_probabilities_in_both_forms(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    entries = chat.choices[0].logprobs.content
    assert len(entries) == chat.usage.completion_tokens
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    plain = client.completions.create(model="tiny", prompt="a", max_tokens=4, temperature=0, logprobs=2)
    assert len(plain.choices[0].logprobs.tokens) == plain.usage.completion_tokens


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=3, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[0] for choice in answer.choices] == ["a", "a", "b", "b"]


def test_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens") as bad:
        client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=0)
    assert bad.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[])
    with pytest.raises(openai.BadRequestError, match="context of 2048") as too_long:
        client.completions.create(model="tiny", prompt="a" * 3_000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="'gpt'"):
        client.completions.create(model="gpt", prompt="a")
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="key is wrong"),
    ):
        stranger.models.list()


def test_too_many_are_an_error_that_the_client_may_retry(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, blocks=512, max_running=1, max_waiting=1).engine
    with serving(engine) as busy, openai.OpenAI(base_url=f"{busy.url}/v1", api_key="any", max_retries=0) as client:
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 1_500, "stream": True, "extra_body": ENGINE_FIELDS}
        streams = [client.completions.create(**asked)]
        busy.wait_for(lambda: engine.num_running == 1, "the first does not run")
        streams.append(client.completions.create(**asked))
        with pytest.raises(openai.RateLimitError, match="try again later"):
            client.completions.create(**asked)
        for stream in streams:
            stream.close()
        busy.wait_until_idle()


def test_a_stream_that_the_client_leaves_is_aborted(client: openai.OpenAI, served: Served) -> None:
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 1_900, "extra_body": ENGINE_FIELDS}
    with client.completions.create(**asked, stream=True) as stream:
        for _ in zip(range(5), stream, strict=False):
            pass
    served.wait_until_idle()
    assert served.metrics()['vllm:request_success_total{finished_reason="abort"}'] == 1


def test_the_asynchronous_client_has_many_answers_at_once(served: Served, client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "max_tokens": 8, "temperature": 0, "extra_body": ENGINE_FIELDS}
    prompts = [f"question {number}" for number in range(20)]

    async def all_at_once() -> list[str]:
        url = f"{served.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE_S) as many:
            answers = await asyncio.gather(*(many.completions.create(prompt=prompt, **asked) for prompt in prompts))
        return [answer.choices[0].text for answer in answers]

    one_by_one = [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in prompts]
    assert asyncio.run(all_at_once()) == one_by_one
