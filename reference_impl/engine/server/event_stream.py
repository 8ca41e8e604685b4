"""Answers on their way to a client that may vanish at any moment.

Owns: the watch for clients that are gone, and server-sent events. Knows nothing of the API's fields or of the engine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from reference_impl.engine.server.errors import as_api_error

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client does not wait for its answer any more."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled as soon as the client is gone. The body must have been read before.

    Raises: ClientGoneError, and what `work` raises.
    """

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events: one for each object, then [DONE]; an error on the way comes in its place, as an object.

    `events` is only begun once the headers are sent, and what it raises before that is nobody's.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Mapping[str, Any]]) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self.init_headers({"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError):
            await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await send(_event(json.dumps(event, ensure_ascii=False, separators=(",", ":"))))
            last = "[DONE]"
        except Exception as error:
            last = json.dumps({"error": as_api_error(error).detail_object()})
        await send(_event(last))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: str) -> Message:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}
