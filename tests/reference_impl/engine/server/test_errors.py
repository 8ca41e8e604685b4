"""What is refused, and how: one line that names the value, in OpenAI's form, and never an error of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")

import httpx
from fastapi import FastAPI

from reference_impl.engine.async_engine import AsyncEngine
from reference_impl.engine.server.app import ServerSettings, build_app
from reference_impl.engine.server.metrics import Metrics
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine.driving import tiny_engine
from tests.reference_impl.engine.scripted_engine import ScriptedEngine
from tests.reference_impl.engine.server.http_serving import PATIENCE_S, Served, events_of, serving

pytestmark = pytest.mark.usefixtures("one_thread")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
ASK = {"model": "tiny", "prompt": "a", "max_tokens": 2}
KEY = {"Authorization": "Bearer s3cret"}
MOST_BYTES = 100_000


@pytest.fixture(scope="module")
def served(tiny: LoadedModel) -> Iterator[Served]:
    engine = tiny_engine(tiny, max_context_tokens=200, max_running=8).engine
    with serving(engine, api_key="s3cret", max_body_bytes=MOST_BYTES) as running:
        yield running
        running.wait_until_idle()


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object of a response with this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (key,) = response.json()
    assert key == "error"
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400
    return error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": 0}, "max_tokens", "1, got 0"),
        ({"max_tokens": -3}, "max_tokens", "got -3"),
        ({"max_tokens": 1.5}, "max_tokens", "got 1.5"),
        ({"max_tokens": "5"}, "max_tokens", "got '5'"),
        ({"max_tokens": True}, "max_tokens", "got True"),
        ({"max_tokens": 10**30}, "max_tokens", "2147483647"),
        ({"max_tokens": 200}, None, "1 prompt tokens and max_tokens 200 are more than the context of 200"),
        ({"prompt": "a" * 300}, None, "300 prompt tokens and max_tokens 2 are more than the context of 200"),
        ({"prompt": ""}, None, "prompt is empty"),
        ({"prompt": []}, "prompt", "got []"),
        ({"prompt": [[]]}, "prompt", "got [[]]"),
        ({"prompt": [1, "a"]}, "prompt", "got [1, 'a']"),
        ({"prompt": {"text": "a"}}, "prompt", "must be a text"),
        ({"prompt": None}, "prompt", "got None"),
        ({"prompt": [300]}, "prompt", "token 300; this model has 0 to 257"),
        ({"prompt": [-1]}, "prompt", "got [-1]"),
        ({"prompt": "half \ud800"}, "prompt", "half of a character"),
        ({"prompt": ["a"] * 40, "n": 4}, None, "40 prompts with n 4 are 160 answers; at most 128"),
        ({"n": 0}, "n", "got 0"),
        ({"n": 129}, "n", "128, got 129"),
        ({"n": 9}, "n", "n is 9; at most 8 run at once"),
        ({"temperature": -1}, "temperature", "got -1"),
        ({"temperature": float("nan")}, "temperature", "got nan"),
        ({"temperature": float("inf")}, "temperature", "got inf"),
        ({"top_p": 0}, "top_p", "got 0"),
        ({"top_p": 1.01}, "top_p", "got 1.01"),
        ({"top_k": -1}, "top_k", "got -1"),
        ({"top_k": 10**400}, "top_k", "got 1000"),
        ({"min_p": 2}, "min_p", "got 2"),
        ({"seed": -1}, "seed", "got -1"),
        ({"presence_penalty": 2.5}, "presence_penalty", "got 2.5"),
        ({"frequency_penalty": -3}, "frequency_penalty", "got -3"),
        ({"repetition_penalty": 0}, "repetition_penalty", "got 0"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "got 'x'"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "got 101"),
        ({"logit_bias": {"300": 1}}, "logit_bias", "300; this model has 0 to 257"),
        ({"stop": ""}, "stop", "got ''"),
        ({"stop": ["a", ""]}, "stop", "got ['a', '']"),
        ({"stop": ["a"] * 17}, "stop", "up to 16"),
        ({"stop": "half \udfff"}, "stop", "valid characters"),
        ({"stop_token_ids": [300]}, "stop_token_ids", "300; this model has 0 to 257"),
        ({"logprobs": 21}, "logprobs", "20, got 21"),
        ({"logprobs": 1, "echo": True}, "echo", "leave one of the two out"),
        ({"stream_options": {}}, "stream_options", "set stream to true"),
        ({"stream": True, "stream_options": {"more": 1}}, "stream_options.more", "no field"),
        ({"timeout_s": 0}, "timeout_s", "got 0"),
        ({"cache_salt": ""}, "cache_salt", "got ''"),
        ({"model": 3}, "model", "got 3"),
        ({"tools": []}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"suffix": "b"}, "suffix", "not supported"),
        ({"user": "me"}, "user", "not supported"),
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"quux": 1, "user": "me"}, "quux", "quux is no field of this call; leave it out; user is not supported"),
    ],
)
def test_a_bad_value_is_named(served: Served, fields: dict[str, Any], param: str | None, words: str) -> None:
    error = refused(served.post(COMPLETIONS, {**ASK, **fields}, **KEY))
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "got []"),
        ({"messages": "hello"}, "messages", "got 'hello'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "got 'tool'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "got 3"),
        ({"messages": [{"a\nb": 3}]}, "messages[0]['a\\nb']", "messages[0]['a\\nb'] is no field of this call"),
        ({"\n": 3}, "['\\n']", "['\\n'] is no field of this call; leave it out"),
        ({"messages": [{"role": "user", "content": "a", "name": "me"}]}, "messages[0].name", "leave it out"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content", "image_url"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages", "half of a character"),
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "two names of one field"),
        ({"top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
        ({"logprobs": 2}, "logprobs", "got 2"),
        ({"prompt": "a"}, "prompt", "prompt is not supported by this call"),
        ({"echo": True}, "echo", "not supported"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, None, "more than the context of 200"),
    ],
)
def test_a_bad_chat_is_named_too(served: Served, fields: dict[str, Any], param: str | None, words: str) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], **fields}
    error = refused(served.post(CHAT, chat, **KEY))
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "must be a JSON object"),
        (b"{", "not JSON"),
        (b'{"model": "tiny",}', "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"model": "\xff"}', "not UTF-8 at byte 11"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"n": ' + b"9" * 5_000 + b"}", "a number in it is too long"),
        (b'{"\\ud800": 1}', "half of a character"),
        (b'{"model": "tiny"}', "prompt is missing"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(served: Served, body: bytes, words: str) -> None:
    assert words in refused(served.post(COMPLETIONS, body, **KEY))["message"]


def test_a_body_must_say_that_it_is_json(served: Served) -> None:
    response = served.post(COMPLETIONS, ASK, **{**KEY, "Content-Type": "text/plain"})
    assert "application/json" in refused(response)["message"]


def test_a_model_that_is_not_here_is_404(served: Served) -> None:
    error = refused(served.post(COMPLETIONS, {**ASK, "model": "gpt"}, **KEY), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'gpt'" in error["message"]
    assert "'tiny'" in error["message"]
    assert refused(served.get("/v1/models/some/other", **KEY), 404)["code"] == "model_not_found"


def test_unknown_paths_and_methods_are_in_the_same_form(served: Served) -> None:
    refused(served.get("/v2", **KEY), 404)
    response = served.get(COMPLETIONS, **KEY)
    refused(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer wrong", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer s3cre"]
)
def test_without_the_right_key_nothing_under_v1_answers(served: Served, key: str | None) -> None:
    sent = {} if key is None else {"Authorization": key}
    for response in (
        served.post(COMPLETIONS, b"{", **sent),
        served.post(CHAT, b"", **sent),
        served.get("/v1/models", **sent),
        served.get("/v1/nothing", **sent),
    ):
        assert refused(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/health", "/metrics", "/openapi.json"):
        assert served.get(path, **sent).status_code == 200


def test_a_body_may_be_so_large_and_no_larger_whether_it_says_so_or_not(served: Served) -> None:
    body = b'{"model": "tiny", "prompt": "' + b"a" * (MOST_BYTES - 31) + b'"}'
    assert len(body) == MOST_BYTES
    assert "context" in refused(served.post(COMPLETIONS, body, **KEY))["message"]
    error = refused(served.post(COMPLETIONS, body + b" ", **KEY), 413)
    assert "100,000 bytes" in error["message"]
    in_chunks = served.client.post(
        COMPLETIONS,
        content=(b" " * 1_000 for _ in range(200)),
        headers={"Content-Type": "application/json", **KEY},
    )
    assert refused(in_chunks, 413)["code"] == "body_too_large"
    assert served.post(COMPLETIONS, ASK, **KEY).status_code == 200


def test_what_memory_could_never_hold_is_refused(tiny: LoadedModel) -> None:
    with serving(tiny_engine(tiny, blocks=8, block_size=4).engine) as small:
        error = refused(small.post(COMPLETIONS, {**ASK, "max_tokens": 100}))
        assert error["code"] == "out_of_memory"
        assert "100 tokens needed, 32 free" in error["message"]


def test_of_several_prompts_one_that_is_refused_refuses_all(served: Served) -> None:
    before = served.metrics()["vllm:generation_tokens_total"]
    error = refused(served.post(COMPLETIONS, {**ASK, "prompt": ["a", "b", "c" * 300]}, **KEY))
    assert "300 prompt tokens" in error["message"]
    served.wait_until_idle()
    assert served.metrics()["vllm:generation_tokens_total"] == before


def test_no_page_of_another_origin_may_call(served: Served) -> None:
    response = served.post(COMPLETIONS, ASK, Origin="http://elsewhere.example", **KEY)
    assert not [name for name in response.headers if name.startswith("access-control")]


# Where the engine has to be in a certain state: an engine that a test steps ---------------------------------------


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def scripted(engine: ScriptedEngine) -> tuple[FastAPI, AsyncEngine]:
    metrics = Metrics("tiny")
    served = AsyncEngine(engine.served, observer=metrics, drain_s=0.0)
    return build_app(served, ServerSettings("tiny"), metrics), served


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here", timeout=PATIENCE_S)


def test_one_too_many_is_429_and_says_when_to_come_back(tiny: LoadedModel) -> None:
    engine = tiny_engine(tiny, max_running=1, max_waiting=1).engine
    with serving(engine) as busy:
        long = {**ASK, "max_tokens": 900, "ignore_eos": True, "stream": True}
        first = busy.connection(COMPLETIONS, long)
        busy.wait_for(lambda: engine.num_running == 1, "the first does not run")
        second = busy.connection(COMPLETIONS, long)
        busy.wait_for(lambda: engine.num_waiting == 1, "the second does not wait")
        response = busy.post(COMPLETIONS, ASK)
        error = refused(response, 429)
        assert response.headers["retry-after"] == "1"
        assert (error["code"], error["type"]) == ("too_many_waiting", "rate_limit_error")
        assert "1 requests wait" in error["message"]
        for gone in (first, second):
            gone.close()
        busy.wait_until_idle()
        assert busy.metrics()['engine:requests_refused_total{kind="busy"}'] == 1


@pytest.mark.anyio
async def test_before_the_start_and_after_the_end_nothing_is_taken() -> None:
    app, served = scripted(ScriptedEngine())
    async with client(app) as calls:
        assert "not started" in refused(await calls.get("/health"), 503)["message"]
        async with served:
            assert (await calls.get("/health")).json() == {"status": "ready"}
        for response in (await calls.get("/health"), await calls.post(COMPLETIONS, json=ASK)):
            assert "stopped" in refused(response, 503)["message"]


@pytest.mark.anyio
async def test_an_engine_that_failed_says_so_to_everybody() -> None:
    engine = ScriptedEngine()
    app, served = scripted(engine)
    async with client(app) as calls, served:
        engine.error = ValueError("the weights are broken")
        streamed = await calls.post(COMPLETIONS, json={**ASK, "stream": True})
        assert streamed.status_code == 200
        assert "weights are broken" in streamed.text
        assert "[DONE]" not in streamed.text
        for response in (await calls.post(COMPLETIONS, json=ASK), await calls.get("/health")):
            error = refused(response, 503)
            assert "weights are broken" in error["message"]
            assert error["type"] == "server_error"


@pytest.mark.anyio
async def test_a_call_whose_step_fails_is_a_500_and_the_next_one_is_answered() -> None:
    engine = ScriptedEngine()
    app, served = scripted(engine)
    async with client(app) as calls, served:
        for number, stream in enumerate((False, True)):
            engine.failing, engine.error = [number * 2], MemoryError("no room")
            response = await calls.post(COMPLETIONS, json={**ASK, "stream": stream})
            if stream:
                assert response.status_code == 200
                assert '"step_failed"' in response.text
                assert "[DONE]" not in response.text
            else:
                error = refused(response, 500)
                assert error["message"] == "the step that computed this answer failed: no room"
                assert (error["type"], error["code"]) == ("server_error", "step_failed")
            assert (await calls.post(COMPLETIONS, json=ASK)).json()["choices"][0]["text"] == "ab"
            assert (await calls.get("/health")).status_code == 200


@pytest.mark.anyio
async def test_an_error_in_the_middle_of_a_stream_is_its_last_event() -> None:
    engine = ScriptedEngine(free=False)
    app, served = scripted(engine)
    async with client(app) as calls, served:
        engine.allow(4)
        engine.error, engine.error_at = ValueError("it broke"), 4
        body = (await calls.post(COMPLETIONS, json={**ASK, "max_tokens": 10, "stream": True})).text
        *_, last, rest = body.split("\n\n")
        assert rest == ""
        assert "it broke" in last
        assert '"error"' in last
        events = events_of(body.replace(last, "data: [DONE]"))
        assert "".join(event["choices"][0]["text"] for event in events) == "abc"


@pytest.mark.anyio
async def test_an_error_that_nobody_foresaw_is_a_500_without_its_insides() -> None:
    app, served = scripted(ScriptedEngine())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as calls, served:
        response = await calls.post(COMPLETIONS, json={**ASK, "prompt": [8]})
        assert refused(response, 500)["message"] == "an error of the server: TypeError"
        assert (await calls.get("/health")).status_code == 200
