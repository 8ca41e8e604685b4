"""An engine beside an event loop: many consumers, one thread that steps.

Owns: who waits for which request, and the states from ready to stopped. Knows nothing of HTTP or of text. All of it
runs on the event loop; what must touch the engine is posted to its thread (`engine_thread.py`), whose word comes back
as callbacks of the loop, in order. So nothing here needs a lock, and no task of its own runs.

    submit ──post──> engine.add    ──> _admit ──> Stream        refused: the caller's error, nobody else's
                     engine.step   ──> _stepped ──> Stream.push  merged for whoever is slow
    close  ──post──> engine.abort                                 blocks are free before the next step
    a step fails     ──> _stepped ──> the streams of its requests end with RequestFailedError, the others go on
    engine broken    ──> _ended   ──> Stream.fail, to everybody; nothing is taken any more

    NEW --start--> READY --shutdown--> STOPPING --all done or aborted--> STOPPED
                     +------- the engine breaks -----+------------------> FAILED
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

from reference_impl.engine.engine import Engine, StepReport
from reference_impl.engine.engine_thread import EngineThread
from reference_impl.engine.outputs import Piece, in_one_line
from reference_impl.engine.stream import Stream
from reference_impl.model.sampling import SamplingParams

T = TypeVar("T")
DRAIN_S = 30.0


class State(Enum):
    """Whether requests are taken, and why not."""

    NEW = "not started"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class EngineStoppedError(RuntimeError):
    """Nothing is taken, or nothing more will come: the engine stops, or is broken."""


class Observer(Protocol):
    """Who keeps count (`server/metrics.py`), on the event loop. Times are those of the engine's thread."""

    def admitted(self, request: int, prompt_tokens: int, arrival_s: float) -> None:
        """A request that arrived at `arrival_s` is in the engine."""

    def stepped(self, pieces: Sequence[Piece], report: StepReport, now_s: float) -> None:
        """A step ended at `now_s`."""


def _all_or_none(engine: Engine, prompts: Sequence[Sequence[int]], add: Callable[[Sequence[int]], int]) -> list[int]:
    """`add` each prompt; if one of them is refused, those before it are aborted before they have made a step."""
    added: list[int] = []
    try:
        for prompt in prompts:
            added.append(add(prompt))
    except BaseException:
        for request in added:
            engine.abort(request)
        raise
    return added


class AsyncEngine:
    """See the module. Made anywhere, used on one event loop; the engine is touched by nobody else."""

    def __init__(
        self,
        engine: Engine,
        *,
        observer: Observer | None = None,
        drain_s: float = DRAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """drain_s: how long requests may go on after `shutdown` before they are aborted."""
        self.loaded = engine.loaded
        self.max_context_tokens = engine.longest_request_tokens
        """Prompt and answer of one request together, as far as context and memory go."""
        self.state = State.NEW
        self.error: str | None = None
        """What made the engine fail, in one line."""
        self._engine = engine
        self._observer = observer
        self._drain_s = drain_s
        self._clock = clock
        self._thread = EngineThread(engine, self)
        self._streams: dict[int, Stream] = {}
        self._asked: set[asyncio.Future[Any]] = set()
        self._drained = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._over = asyncio.Event()

    # Life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take requests, on the running loop. Raises: RuntimeError if it was started before."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self.state = State.READY

    async def shutdown(self) -> None:
        """Take no more; let requests end for `drain_s`, abort the others, end the thread. Any number of times."""
        if self.state is State.READY:
            self.state = State.STOPPING
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._drain_s):
                        await self._idle.wait()
            finally:
                self.abort_all()
                self._thread.stop()
        if self.state is not State.NEW:
            await self._over.wait()
            self._thread.join()

    def abort_all(self) -> None:
        """Abort every request, and those that are about to be admitted: their streams end as aborted."""
        self._drained = True
        for request in self._streams:
            self._abort(request)

    async def __aenter__(self) -> AsyncEngine:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    # Requests ---------------------------------------------------------------------------------------------------

    async def submit(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        salt: str = "",
        tenant: str = "",
        priority: int = 0,
        timeout_s: float | None = None,
    ) -> Stream:
        """One request for each prompt, all or none; the arguments are those of `Engine.add`.

        Cancelling this call, or leaving the context of what it returns, aborts what is not done.
        Raises: RequestRefused, EngineStoppedError.
        """
        arrival_s = self._clock()
        stream = Stream(self._abort)

        def add(engine: Engine) -> list[int]:
            one = partial(engine.add, params=params, salt=salt, tenant=tenant, priority=priority, timeout_s=timeout_s)
            return _all_or_none(engine, prompts, one)

        def admit(requests: Sequence[int]) -> None:
            for request, prompt in zip(requests, prompts, strict=True):
                self._streams[request] = stream
                if self._observer is not None:
                    self._observer.admitted(request, len(prompt), arrival_s)
            stream.admitted(requests)
            if self._drained:
                for request in requests:
                    self._abort(request)

        try:
            await self._ask(add, admit)
        except asyncio.CancelledError:
            stream.close()
            raise
        return stream

    async def inspect(self, look: Callable[[Engine], T]) -> T:
        """What `look` finds between two steps, in the engine's thread; afterwards here, once that thread has ended.

        Raises: whatever `look` raises, EngineStoppedError before the start.
        """
        if not self._over.is_set():
            try:
                return await self._ask(look, lambda found: None, always=True)
            except EngineStoppedError:
                if not self._over.is_set():
                    raise
        return look(self._engine)

    async def _ask(self, call: Callable[[Engine], T], then: Callable[[T], None], *, always: bool = False) -> T:
        """Run `call` in the thread, then `then` on the loop; what `call` raises is raised here and nowhere else.

        `then` runs also if whoever waited here is gone.
        """
        if self.state is not State.READY and not (always and self.state is State.STOPPING):
            raise EngineStoppedError(self._why_not())
        future: asyncio.Future[T] = self._loop.create_future()
        self._asked.add(future)
        self._idle.clear()

        def post(engine: Engine) -> None:
            try:
                found = call(engine)
            except Exception as error:
                self._tell(self._answer, future, lambda: None, None, error)
            else:
                self._tell(self._answer, future, lambda: then(found), found, None)

        self._thread.post(post)
        return await future

    def _answer(
        self, future: asyncio.Future[Any], then: Callable[[], None], found: object, error: Exception | None
    ) -> None:
        self._asked.discard(future)
        then()
        self._note_idle()
        if future.cancelled():
            return
        if error is None:
            future.set_result(found)
        else:
            future.set_exception(error)

    def _abort(self, request: int) -> None:
        def abort(engine: Engine) -> None:
            # It may have ended while this was on its way.
            with suppress(KeyError):
                engine.abort(request)

        self._thread.post(abort)

    # Word from the thread ---------------------------------------------------------------------------------------

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        """In the thread: have the loop run `callback`, after what it was told before."""
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # A loop that was closed without `shutdown` has nobody left who waits.
            if not self._loop.is_closed():
                raise

    def stepped(self, pieces: Sequence[Piece], report: StepReport) -> None:
        """In the thread, as its listener."""
        self._tell(self._stepped, pieces, report, self._clock())

    def ended(self, error: BaseException | None) -> None:
        """In the thread, as its listener."""
        self._tell(self._ended, error)

    def _stepped(self, pieces: Sequence[Piece], report: StepReport, now_s: float) -> None:
        for piece in pieces:
            stream = self._streams.get(piece.request)
            # Nobody waits for a prompt that was taken back because the one behind it was refused.
            if stream is not None:
                stream.push(piece)
                if piece.usage is not None:
                    del self._streams[piece.request]
        if self._observer is not None:
            self._observer.stepped(pieces, report, now_s)
        self._note_idle()

    def _ended(self, error: BaseException | None) -> None:
        if error is None:
            self.state = State.STOPPED
        else:
            self.state = State.FAILED
            self.error = in_one_line(error)
        self._over.set()
        for stream in set(self._streams.values()):
            stream.fail(EngineStoppedError(self._why_not()))
        for future in self._asked:
            if not future.done():
                future.set_exception(EngineStoppedError(self._why_not()))
        self._streams.clear()
        self._asked.clear()
        self._idle.set()

    def _note_idle(self) -> None:
        if not self._streams and not self._asked:
            self._idle.set()

    def _why_not(self) -> str:
        if self.state is State.FAILED:
            return f"the engine failed and serves nobody until it is started again: {self.error}"
        return f"the engine is {self.state.value} and takes no requests"

    def check_invariants(self) -> None:
        """That of the engine itself is for `inspect`. AssertionError names the offender."""
        busy = bool(self._streams or self._asked)
        assert self._idle.is_set() != busy, f"idle is {self._idle.is_set()} with {len(self._streams)} requests"
        for request, stream in self._streams.items():
            assert request in stream.requests, f"request {request} belongs to the stream of {stream.requests}"
            stream.check_invariants()
        ended = self.state in (State.STOPPED, State.FAILED)
        assert ended == self._over.is_set(), f"the engine is {self.state.value} and its thread is not"
        assert not (ended and busy), f"the engine is {self.state.value} and {len(self._streams)} requests are open"
