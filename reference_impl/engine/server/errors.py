"""Errors as the OpenAI API has them: a status, and one line that names the value and what to do.

Owns: the error object, and how every exception that a call can end in becomes one. Knows nothing of calls.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "top_p", "code": null}}
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from typing_extensions import TypedDict

from reference_impl.engine.async_engine import EngineStoppedError
from reference_impl.engine.engine import RequestRefused
from reference_impl.engine.server.call import FIELDS, explain_unknown
from reference_impl.engine.stream import RequestFailedError

RETRY_AFTER_S = 1
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {"too_long": "context_length_exceeded", "never_fits": "out_of_memory", "busy": "too_many_waiting"}


class ErrorDetail(TypedDict):
    """What went wrong, of which field, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every response that is no success."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A call that ends with `status`. An HTTPException, which FastAPI lets through where it wraps all others."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code

    def detail_object(self) -> ErrorDetail:
        """The object under "error"."""
        kind = _KINDS.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return ErrorDetail(message=str(self.detail), type=kind, param=self.param, code=self.code)

    def response(self) -> Response:
        # In ASCII, so that it can be sent whatever the message quotes: half of a character has no UTF-8.
        text = json.dumps(ErrorBody(error=self.detail_object()))
        return Response(text, self.status_code, headers=self.headers, media_type="application/json")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of `error`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, RequestRefused):
        return _of_refusal(error)
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), code="not_ready")
    if isinstance(error, RequestFailedError):
        return ApiError(500, str(error), code="step_failed")
    if isinstance(error, StarletteHTTPException):
        return ApiError(error.status_code, _unreadable(error) or str(error.detail), headers=error.headers)
    return ApiError(500, f"an error of the server: {type(error).__name__}")


_WORD = re.compile(r"[\w-]+")


def install(app: FastAPI) -> None:
    """Have `app` answer all errors in this form."""

    async def answer(request: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    ours = (RequestRefused, RequestFailedError, EngineStoppedError)
    for kind in (StarletteHTTPException, RequestValidationError, *ours, Exception):
        app.add_exception_handler(kind, answer)


def _of_refusal(error: RequestRefused) -> ApiError:
    code = _CODES.get(error.kind)
    if error.kind == "busy":
        return ApiError(429, str(error), code=code, headers={"Retry-After": str(RETRY_AFTER_S)})
    first_word = re.split(r"\W", str(error), maxsplit=1)[0]
    return ApiError(400, str(error), param=first_word if first_word in FIELDS else None, code=code)


def _unreadable(error: StarletteHTTPException) -> str | None:
    """Why a body could not be read, where FastAPI says only that it could not."""
    match error.__cause__:
        case UnicodeDecodeError(start=start):
            return f"the body is not UTF-8 at byte {start}"
        case RecursionError():
            return "the body is nested too deeply"
        case ValueError():
            return "the body is not JSON that can be read: a number in it is too long"
    return None


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, unknown fields before all: they may explain the others."""
    found = error.errors()
    unknown = [problem for problem in found if problem["type"] == "extra_forbidden"]
    if unknown:
        names = [_path(problem["loc"]) for problem in unknown]
        return ApiError(400, explain_unknown(names), param=names[0], code="unknown_field")
    problem = found[0]
    if problem["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}")
    path = _path(problem["loc"])
    if problem["type"] == "string_unicode" and not path:
        return ApiError(400, "the body has a field whose name holds half of a character: send valid UTF-8")
    if not path:
        return ApiError(400, "the body must be a JSON object, with Content-Type: application/json")
    if problem["type"] == "missing":
        return ApiError(400, f"{path} is missing", param=path, code="missing_field")
    return ApiError(400, f"{path}: {_reason(problem)}", param=path)


def _reason(problem: dict[str, Any]) -> str:
    said: str = problem["msg"].removeprefix("Value error, ")
    return f"{said[:1].lower()}{said[1:]}, got {_shown(problem['input'])}"


def _shown(value: object) -> str:
    """`value`, and little of one that is large."""
    small = reprlib.Repr()
    small.maxlevel, small.maxlist, small.maxdict, small.maxstring, small.maxother = 2, 4, 4, 60, 60
    return small.repr(value)


def _path(loc: tuple[int | str, ...]) -> str:
    """("body", "messages", 0, "content") as messages[0].content; a name that is no word, as messages[0]['a b']."""
    path = ""
    for part in loc[1:]:
        if part == "[key]":
            continue
        if isinstance(part, int) or not _WORD.fullmatch(part):
            # In quotes: a line break in a client's name for a field must not be one in the error.
            path += f"[{_shown(part)}]"
        else:
            path += f".{part}" if path else part
    return path
