"""The OpenAI API over an engine.

Owns: the routes, and the way of one call through them. Knows nothing of sockets (`command.py`), of fields
(`completions.py`, `chat.py`) or of steps.

    Guard ──> Call (pydantic) ──> ids, SamplingParams ──> AsyncEngine.submit ──> Stream ──> Writer ──> JSON or events
    401, 413  400 by name         400                     400, 429, 503  500     a client that goes aborts it

No browser on another page may call it: there are no CORS headers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI, Request, Response, Security
from fastapi.security import HTTPBearer
from typing_extensions import TypedDict

from reference_impl.engine.async_engine import AsyncEngine, EngineStoppedError, State
from reference_impl.engine.engine import RequestRefused
from reference_impl.engine.outputs import Piece, Usage
from reference_impl.engine.server.answers import UsageBody, Writer, usage_body
from reference_impl.engine.server.call import MAX_ANSWERS, Call
from reference_impl.engine.server.chat import ChatCall, ChatCompletion, ChatWriter
from reference_impl.engine.server.completions import Completion, CompletionCall, CompletionWriter
from reference_impl.engine.server.errors import ApiError, ErrorBody, install
from reference_impl.engine.server.event_stream import ClientGoneError, EventStream, while_connected
from reference_impl.engine.server.guard import Guard
from reference_impl.engine.server.metrics import CONTENT_TYPE, Metrics, Snapshot
from reference_impl.engine.stream import Stream
from reference_impl.model.sampling import SamplingParams

CLIENT_GONE = 499
"""The status, which nobody reads, of a call whose client did not wait."""
_LONG_TEXT = 10_000
_KEY = HTTPBearer(auto_error=False, description="What the server was started with.")


@dataclass(frozen=True)
class ServerSettings:
    """model_name: as clients call it. api_key: None lets everybody in. timeout_s: the longest that a request may take,
    of which a call may ask for less; None sets no limit. max_body_bytes: of one call.
    """

    model_name: str
    api_key: str | None = None
    timeout_s: float | None = None
    max_body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the setting."""
        if not self.model_name:
            raise ValueError("the served model's name is empty")
        if self.api_key == "":
            raise ValueError("the API key is empty: give one, or none at all")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0, got {self.timeout_s}")
        if self.max_body_bytes < 1:
            raise ValueError(f"max_body_bytes must be at least 1, got {self.max_body_bytes}")


class ModelBody(TypedDict):
    """A model, and how long prompt and answer together may be."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """The models that are served: one."""

    object: Literal["list"]
    data: list[ModelBody]


class HealthBody(TypedDict):
    """Ready to take requests."""

    status: Literal["ready"]


class Routes:
    """What each path does."""

    def __init__(self, served: AsyncEngine, settings: ServerSettings, metrics: Metrics) -> None:
        self._served = served
        self._settings = settings
        self._metrics = metrics
        self._created = int(time.time())

    async def complete(self, call: CompletionCall, request: Request) -> Response:
        """Go on with one or more prompts."""
        return await self._answer(call, CompletionWriter(call, self._served.loaded.tokenizer), request)

    async def chat(self, call: ChatCall, request: Request) -> Response:
        """Say the next turn of a conversation."""
        return await self._answer(call, ChatWriter(call, self._served.loaded.tokenizer), request)

    async def models(self) -> ModelList:
        """What is served."""
        return ModelList(object="list", data=[self._model()])

    async def model(self, model_id: str) -> ModelBody:
        """One model."""
        self._check_model(model_id)
        return self._model()

    async def health(self) -> HealthBody:
        """Whether requests are taken."""
        if self._served.state is not State.READY:
            detail = f": {self._served.error}" if self._served.error else ""
            raise EngineStoppedError(f"the engine is {self._served.state.value}{detail}")
        return HealthBody(status="ready")

    async def metrics(self) -> Response:
        """For Prometheus."""
        now = await self._served.inspect(Snapshot.of)
        return Response(self._metrics.render(now), media_type=CONTENT_TYPE)

    def _model(self) -> ModelBody:
        return ModelBody(
            id=self._settings.model_name,
            object="model",
            created=self._created,
            owned_by="padding-to-paging",
            max_model_len=self._served.max_context_tokens,
        )

    def _check_model(self, name: str) -> None:
        if name != self._settings.model_name:
            said = f"no model {name[:100]!r} is served here, but {self._settings.model_name!r}"
            raise ApiError(404, said, param="model", code="model_not_found")

    async def _answer(self, call: CompletionCall | ChatCall, writer: Writer, request: Request) -> Response:
        """The whole way of a call, given up as soon as its client is gone."""
        try:
            self._check_model(call.model)
            stream = await while_connected(request.receive, self._submit(call))
            if call.stream:
                return EventStream(_events(stream, writer, call))
            text = await while_connected(request.receive, _whole(stream, writer, call))
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
        except RequestRefused as refused:
            self._metrics.refused(refused.kind)
            raise
        return Response(text, media_type="application/json")

    async def _submit(self, call: CompletionCall | ChatCall) -> Stream:
        try:
            prompts = await self._prompts(call)
            params = call.params(max(map(len, prompts)), self._served.max_context_tokens)
        except ValueError as error:
            raise RequestRefused("invalid", str(error)) from None
        _check_number(len(prompts), params)
        limit_s, asked_s = self._settings.timeout_s, call.timeout_s
        return await self._served.submit(
            prompts,
            params,
            salt=call.cache_salt or "",
            timeout_s=asked_s if limit_s is None else limit_s if asked_s is None else min(limit_s, asked_s),
        )

    async def _prompts(self, call: CompletionCall | ChatCall) -> list[list[int]]:
        """Token ids. A long text is read in a thread of its own, so that the others' answers go on meanwhile."""
        tokenizer = self._served.loaded.tokenizer
        if call.characters() < _LONG_TEXT:
            return call.prompts(tokenizer)
        return await asyncio.to_thread(call.prompts, tokenizer)


def _check_number(prompts: int, params: SamplingParams) -> None:
    answers = prompts * params.n
    if answers > MAX_ANSWERS:
        said = f"{prompts} prompts with n {params.n} are {answers} answers; at most {MAX_ANSWERS} in one call"
        raise RequestRefused("invalid", said)


def _index(stream: Stream, piece: Piece, call: Call) -> int:
    """OpenAI's index of an answer: those to the first prompt, then those to the next."""
    return stream.requests.index(piece.request) * (call.n or 1) + piece.choice


async def _events(stream: Stream, writer: Writer, call: Call) -> AsyncIterator[Mapping[str, Any]]:
    """The chunks of a call, as its pieces come."""
    usages: list[Usage] = []
    async with stream:
        async for piece in stream:
            if piece.usage is not None:
                usages.append(piece.usage)
            for chunk in writer.chunks(_index(stream, piece, call), piece):
                yield chunk
    if call.wants_usage:
        yield writer.usage_chunk(usage_body(usages))


async def _whole(stream: Stream, writer: Writer, call: Call) -> str:
    """The body of a call, once all of its answers are done."""
    async with stream:
        pieces = await stream.whole()
    usage: UsageBody = usage_body([piece.usage for piece in pieces if piece.usage is not None])
    body = writer.body([(_index(stream, piece, call), piece) for piece in pieces], usage)
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def build_app(served: AsyncEngine, settings: ServerSettings, metrics: Metrics) -> FastAPI:
    """The application; the engine starts and stops with it. `metrics` is the observer of `served`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with served:
            yield

    # The pages of FastAPI that show an API load scripts from elsewhere.
    app = FastAPI(title="Padding to Paging", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    install(app)
    app.add_middleware(Guard, api_key=settings.api_key, max_body_bytes=settings.max_body_bytes)
    routes = Routes(served, settings, metrics)
    key = [] if settings.api_key is None else [Security(_KEY)]
    asks: dict[str, Any] = {"methods": ["POST"], "dependencies": key, "response_model": None}
    app.add_api_route("/v1/completions", routes.complete, responses=_answers(Completion), **asks)
    app.add_api_route("/v1/chat/completions", routes.chat, responses=_answers(ChatCompletion), **asks)
    app.add_api_route("/v1/models", routes.models, dependencies=key, responses=_errors(401))
    app.add_api_route("/v1/models/{model_id:path}", routes.model, dependencies=key, responses=_errors(401, 404))
    app.add_api_route("/health", routes.health, responses=_errors(503))
    text: dict[int | str, dict[str, Any]] = {
        200: {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    }
    app.add_api_route("/metrics", routes.metrics, response_class=Response, responses=text)
    return app


def _answers(body: type) -> dict[int | str, dict[str, Any]]:
    """The responses of a call, for the OpenAPI document."""
    # Of one event, as those who read event streams have it: the JSON of a chunk, or [DONE], is its data.
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    events = {"text/event-stream": {"schema": event}}
    success = {"description": "The answers, or events if stream is true.", "model": body, "content": events}
    return {200: success, **_errors(400, 401, 404, 413, 429, 500, 503)}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses} | {"4XX": {"model": ErrorBody}}
