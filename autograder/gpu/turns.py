"""Whose turn it is on one GPU, where several judges share it: many at once, or one that has a clock and nobody else.

Owns: two lock files of a course for each GPU. Knows nothing of what is done in a turn. The system takes the locks of a
judge that dies. Whoever waits for the clock's turn stands at the gate, so that no stream of short turns goes past; what
it costs others to wait is told, as it is not their submission's time.
Source: the turnstile in front of a readers-writer lock, Downey, The Little Book of Semaphores, section 4.2.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

GATE, ROOM = "gate", "room"


class Turns:
    """The turns of one judge, which has one at a time: what it does in a turn may ask for a turn again, and has it.

    `waited_s` is what it has waited so far. Not safe for threads.
    """

    def __init__(self, folder: Path, gpu: str, waited: Callable[[float], None] = lambda seconds: None) -> None:
        """folder, gpu (the name of its node): the same for all judges that share it. `waited` is told the seconds after
        each wait."""
        self._gate, self._room = folder / f"{gpu}.{GATE}", folder / f"{gpu}.{ROOM}"
        self._waited = waited
        self._kind = 0
        """Of the turn that it has; 0 between turns."""
        self.waited_s = 0.0

    def together(self) -> AbstractContextManager[None]:
        """A turn beside others of this kind; inside a turn of either kind, that one."""
        return nullcontext() if self._kind else self._turn(fcntl.LOCK_SH)

    def alone(self) -> AbstractContextManager[None]:
        """A turn beside nobody: the others' have ended, and new ones wait. Raises: RuntimeError inside of the other
        kind of turn, as two who stay in theirs would wait for each other."""
        if self._kind == fcntl.LOCK_SH:
            raise RuntimeError("a turn alone cannot begin inside a turn beside others")
        return nullcontext() if self._kind else self._turn(fcntl.LOCK_EX)

    @contextmanager
    def _turn(self, kind: int) -> Iterator[None]:
        start = time.monotonic()
        with ExitStack() as room:
            with _locked(self._gate, fcntl.LOCK_EX):
                room.enter_context(_locked(self._room, kind))
            self._kind = kind
            try:
                self._tell(start)
                yield
            finally:
                self._kind = 0

    def _tell(self, start: float) -> None:
        seconds = time.monotonic() - start
        self.waited_s += seconds
        self._waited(seconds)


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    """The file, locked until the end; made if it is not there."""
    with path.open("ab") as file:
        fcntl.flock(file, kind)
        yield
