"""The answers to one call on their way to a consumer that may be slow.

Owns: the pieces that were made and not taken yet. Knows nothing of threads or of HTTP. Pieces that wait are merged, one
for each answer: what is kept for a consumer who never reads is the answer itself, and no more however long it takes.
Everything here runs on one event loop. Cost: O(1) a piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from reference_impl.engine.outputs import FinishReason, Piece
from reference_impl.model.sampling import Sampled


@dataclass
class _Waiting:
    """What was made of one answer since the consumer took of it last. last: the newest piece, for how it ended."""

    last: Piece
    text: list[str] = field(default_factory=list)
    tokens: list[Sampled] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        self.last = piece
        self.text.append(piece.text)
        self.tokens += piece.tokens

    def merged(self) -> Piece:
        return self.last._replace(text="".join(self.text), tokens=tuple(self.tokens))


class RequestFailedError(RuntimeError):
    """The step that computed a request went wrong, in one line. The engine goes on."""


class Stream:
    """The answers to one call: an asynchronous iterator of pieces, and a context that aborts what is left on leaving.

    requests: the engine's ids, in the order of the prompts. One consumer at a time.
    """

    def __init__(self, abort: Callable[[int], None]) -> None:
        self.requests: tuple[int, ...] = ()
        self._abort = abort
        self._open: set[int] = set()
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._closed = False

    # For the consumer -------------------------------------------------------------------------------------------

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Piece:
        """The next piece, that of the answer that has waited longest.

        Raises: RequestFailedError behind the last piece if a step of it went wrong; what ended the engine, if that did.
        """
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if not self._open:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.pop(next(iter(self._waiting))).merged()

    async def whole(self) -> list[Piece]:
        """One piece for each answer, once all are done, in the order of prompts and choices. Raises: as iteration."""
        while self._open and self._error is None:
            self._news.clear()
            await self._news.wait()
        if self._error is not None:
            raise self._error
        # Ids grow, so the order of ids is the order of the prompts.
        pieces = [self._waiting[key].merged() for key in sorted(self._waiting)]
        self._waiting.clear()
        return pieces

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort what is not done; nothing comes any more. Any number of times."""
        self._closed = True
        open_requests, self._open = self._open, set()
        self._waiting.clear()
        self._news.set()
        for request in open_requests:
            self._abort(request)

    # For the engine's side --------------------------------------------------------------------------------------

    def admitted(self, requests: Sequence[int]) -> None:
        """The engine took all prompts. Whoever closed meanwhile has them aborted now."""
        self.requests = tuple(requests)
        self._open = set(requests)
        if self._closed:
            self.close()

    def push(self, piece: Piece) -> None:
        """A piece of one of `requests`."""
        if self._closed:
            return
        if piece.usage is not None:
            self._open.discard(piece.request)
        self._news.set()
        if piece.finish is FinishReason.ERROR:
            # The consumer hears of it in place of an end, behind the text that there is.
            self._error = RequestFailedError(f"the step that computed this answer failed: {piece.error}")
            if not piece.text:
                return
            piece = piece._replace(finish=None, usage=None, error=None)
        key = piece.request, piece.choice
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(piece)
        waiting.add(piece)

    def fail(self, error: Exception) -> None:
        """Nothing comes any more; the consumer gets `error` behind what waits for it."""
        self._error = error
        self._open.clear()
        self._news.set()

    def check_invariants(self) -> None:
        """AssertionError names the offender."""
        assert self._open <= set(self.requests), f"{self._open - set(self.requests)} are open and no requests of this"
        assert not (self._closed and self._waiting), "pieces wait for a consumer that is gone"
        for (request, choice), waiting in self._waiting.items():
            last = waiting.last
            assert (last.request, last.choice) == (request, choice), f"a piece of {last.request} waits as {request}"
