"""The server beside its own OpenAPI document, and beside whatever else may come: never an error of the server."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_impl.engine.async_engine import AsyncEngine
from reference_impl.engine.server.app import ServerSettings, build_app
from reference_impl.engine.server.call import Call
from reference_impl.engine.server.chat import ChatCall
from reference_impl.engine.server.completions import CompletionCall
from reference_impl.engine.server.metrics import Metrics
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine.driving import tiny_engine
from tests.reference_impl.engine.scripted_engine import ScriptedEngine
from tests.reference_impl.engine.server.http_serving import Served, events_of, serving

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = "s3cret"
EXAMPLES = 25
SENT = {"Authorization": f"Bearer {KEY}"}
statuses: Counter[tuple[str, int]] = Counter()
"""Of the calls that were made of the document."""
PATHS = {"/v1/completions": CompletionCall, "/v1/chat/completions": ChatCall}


@pytest.fixture(scope="module")
def served(tiny: LoadedModel) -> Iterator[Served]:
    """Small limits, so that whatever is asked for is soon done; every invariant is checked after every step."""
    engine = tiny_engine(tiny, max_context_tokens=48, max_running=4).engine
    with serving(engine, api_key=KEY, max_body_bytes=100_000, timeout_s=2.0) as running:
        yield running
        running.wait_until_idle()
        assert running.get("/health").status_code == 200


APP = build_app(AsyncEngine(ScriptedEngine().served), ServerSettings("tiny", api_key=KEY), Metrics("tiny"))
schema = schemathesis.openapi.from_dict(APP.openapi())


def test_the_server_shows_the_document_that_it_is_tried_against(served: Served) -> None:
    assert served.get("/openapi.json").json() == json.loads(json.dumps(APP.openapi()))


def done_by_the_document(path: str) -> Any:
    """The test of one path: a name for each, as pytest-xdist runs one of several tests that share a name."""

    @schema.include(path=path).parametrize()
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    def does_what_its_openapi_document_says(served: Served, case: schemathesis.Case) -> None:
        fit_for_this_model(case.body)
        # A body may be right by the document and still ask for more than this context or vocabulary has: 400 then.
        unfit = [schemathesis.checks.positive_data_acceptance]
        response = case.call_and_validate(base_url=served.url, headers=SENT, excluded_checks=unfit)
        statuses[case.operation.label, response.status_code] += 1

    tried.add(path)
    return does_what_its_openapi_document_says


tried: set[str] = set()
test_completions_are_as_the_document_says = done_by_the_document("/v1/completions")
test_chats_are_as_the_document_says = done_by_the_document("/v1/chat/completions")
test_the_list_of_models_is_as_the_document_says = done_by_the_document("/v1/models")
test_a_model_is_as_the_document_says = done_by_the_document("/v1/models/{model_id}")
test_health_is_as_the_document_says = done_by_the_document("/health")
test_metrics_are_as_the_document_says = done_by_the_document("/metrics")


def test_each_path_of_the_document_has_its_test() -> None:
    assert tried == set(APP.openapi()["paths"])


def test_the_document_was_tried_with_calls_that_were_answered_too() -> None:
    if not statuses:
        pytest.skip("the test before this one did not run")
    for path in PATHS:
        assert statuses[f"POST {path}", 200] >= 3, statuses
        assert statuses[f"POST {path}", 400] >= 3, statuses


def fit_for_this_model(body: Any) -> None:
    """Change of a call what no document can know, and nothing that is wrong by the document."""
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str):
        body["model"] = "tiny"
    for name, most in (("max_tokens", 16), ("max_completion_tokens", 16), ("n", 4)):
        value = body.get(name)
        if type(value) is int and value > most:
            body[name] = 1 + value % most if value <= 128 or name != "n" else value
    if type(body.get("prompt")) is str:
        body["prompt"] = body["prompt"][:4]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["tiny", "a", "\ud800", "\x00", "💥"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({*Call.model_fields, *CompletionCall.model_fields, *ChatCall.model_fields, "tools", "x", "\ud800"})
SENSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 20),
    "temperature": st.floats(0, 1e6),
    "top_p": st.floats(0, 1, exclude_min=True),
    "top_k": st.integers(0, 300),
    "min_p": st.floats(0, 1),
    "n": st.integers(1, 4),
    "seed": st.integers(0, 2**63 - 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 100),
    "logit_bias": st.dictionaries(st.integers(0, 257).map(str), st.floats(-100, 100), max_size=5),
    "stop": st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "stop_token_ids": st.lists(st.integers(0, 257), max_size=3),
    "ignore_eos": st.booleans(),
    "stream": st.booleans(),
    "cache_salt": st.sampled_from(["a", "b"]),
    "timeout_s": st.floats(0.001, 2),
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A call that is right but for some of its fields, or for none."""
    path = draw(st.sampled_from(sorted(PATHS)))
    body: dict[str, Any] = {"model": "tiny"}
    if path == "/v1/completions":
        body["prompt"] = draw(st.text(min_size=1, max_size=6) | st.lists(st.integers(0, 257), min_size=1, max_size=6))
        body["logprobs"] = draw(st.none() | st.integers(0, 20))
    else:
        body["messages"] = [{"role": "user", "content": draw(st.text(max_size=3))}]
        body["logprobs"] = draw(st.booleans())
    body |= draw(st.fixed_dictionaries({}, optional=SENSIBLE))
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=2)):
        body[name] = draw(JSON)
    return path, body


@given(call=calls())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_call_is_answered_or_refused_by_name(served: Served, call: tuple[str, dict[str, Any]]) -> None:
    path, body = call
    response = served.post(path, body, **SENT)
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)
    if response.status_code != 200:
        error = response.json()["error"]
        assert error["message"]
        assert "\n" not in error["message"]
    elif body.get("stream"):
        assert events_of(response.text)[-1]["choices"][0]["finish_reason"]
    else:
        found = response.json()["choices"]
        assert len(found) % (body.get("n") or 1) == 0
        assert all(choice["finish_reason"] in ("stop", "length", "timeout") for choice in found)


@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_refused_in_the_same_form(served: Served, body: bytes) -> None:
    for path in PATHS:
        response = served.post(path, body, **SENT)
        assert response.status_code in (400, 404), response.text
        assert response.json()["error"]["message"]
