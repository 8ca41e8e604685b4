"""The door of the server: who may come in, and how much may be brought.

Owns: the API key and the size of bodies, both looked at before anything else reads them. Knows nothing of calls.
"""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reference_impl.engine.server.errors import ApiError

PROTECTED = "/v1/"


class Guard:
    """An ASGI application around another: the key first, then the size of the body, before any of it is read."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body_bytes: int) -> None:
        """api_key: None lets everybody in. Only paths under /v1/ ask for it."""
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            self._check_key(scope["path"], headers.get(b"authorization", b""))
            self._check_size(int(headers.get(b"content-length", b"0")))
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _check_key(self, path: str, authorization: bytes) -> None:
        if self._api_key is None or not path.startswith(PROTECTED):
            return
        scheme, _, key = authorization.partition(b" ")
        # Compared in a time that does not tell how much of it was right.
        right = hmac.compare_digest(key.strip(), self._api_key)
        if scheme.lower() != b"bearer" or not right:
            said = "the API key is wrong" if authorization else "no API key: send Authorization: Bearer KEY"
            raise ApiError(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_size(self, body_bytes: int) -> None:
        if body_bytes > self._max_body_bytes:
            said = f"the body has more than {self._max_body_bytes:,} bytes, which is the most that is read"
            raise ApiError(413, said, code="body_too_large", headers={"Connection": "close"})

    def _counted(self, receive: Receive) -> Receive:
        """`receive`, until more has come than may: a body need not say its length beforehand."""
        body_bytes = 0

        async def counted() -> Message:
            nonlocal body_bytes
            message = await receive()
            body_bytes += len(message.get("body", b""))
            self._check_size(body_bytes)
            return message

        return counted
