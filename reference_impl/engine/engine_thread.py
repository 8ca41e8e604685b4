"""The thread that an engine lives in.

Owns: the thread, its inbox, and the order in which calls and steps take turns. Knows nothing of event loops, of HTTP or
of what the calls do (`async_engine.py`). An engine is not made for two callers at once: everything that touches it
while it is served is posted here and runs between two steps. The thread sleeps while there is nothing to do.
A step that fails does not end it while the engine can go on.
Cost: one queue operation a call, none a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol

from reference_impl.engine.engine import Engine, StepReport
from reference_impl.engine.outputs import Piece

Call = Callable[[Engine], None]


class Listener(Protocol):
    """Who is told, in this thread, of what happens in it. None of it may raise."""

    def stepped(self, pieces: Sequence[Piece], report: StepReport) -> None:
        """A step is done."""

    def ended(self, error: BaseException | None) -> None:
        """The thread ends, and no call that comes later is run; `error` is what a call, or the last step, raised."""


class EngineThread:
    """See the module. Between `start` and `ended`, nobody but this thread may call the engine."""

    def __init__(self, engine: Engine, listener: Listener) -> None:
        self._engine = engine
        self._listener = listener
        self._inbox: SimpleQueue[Call | None] = SimpleQueue()
        self._stopping = False
        self._reported = engine.last_step
        # A program that forgets to stop the engine must still be able to end.
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Raises: RuntimeError if it was started before."""
        self._thread.start()

    def post(self, call: Call) -> None:
        """Have `call` run between two steps, in the order of posting. What it raises ends the thread."""
        self._inbox.put(call)

    def stop(self) -> None:
        """End once the engine has nothing left to do."""
        self._inbox.put(None)

    def join(self) -> None:
        """Wait for the end of the thread, which has said that it ends: a matter of microseconds."""
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while self._take_calls():
                if self._engine.has_work:
                    self._step()
        # Not only Exception: a student's allocator may call sys.exit, and somebody waits for word.
        except BaseException as raised:
            error = raised
        self._listener.ended(error)

    def _step(self) -> None:
        try:
            pieces = self._engine.step()
        except Exception:
            if self._engine.broken is not None:
                raise
            # The next step says who ended by it.
            return
        # A step that only brought the last words of some requests computed nothing.
        report = self._engine.last_step
        self._listener.stepped(pieces, StepReport() if report is self._reported else report)
        self._reported = report

    def _take_calls(self) -> bool:
        """Run what was posted before now, and wait for a call if there is nothing else to do; False at the end."""
        idle = not self._engine.has_work
        if idle and self._stopping and self._inbox.empty():
            return False
        # Only so many as are here: calls that keep coming must not keep the steps from running.
        for _ in range(max(1, self._inbox.qsize())):
            try:
                call = self._inbox.get(block=idle and not self._stopping)
            except Empty:
                break
            if call is None:
                self._stopping = True
            else:
                call(self._engine)
        return True
