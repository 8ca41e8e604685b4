"""KV memory in the terminal while the engine runs.

Owns: how often a picture is drawn, and what is counted in between. Knows nothing of the engine: it reads an `EventLog`,
from the thread that writes it. What is drawn is in `view.py`; a log that is over is played by `replay.py`.

Cost of `update`: O(new events); of a picture, O(num_blocks + blocks in tables), `refresh_hz` times a second at most and
never more than a twentieth of the time. Measured on one core of a small server, 80 columns by 24 lines: 5 ms at 256
blocks, 19 ms at 4,096, 140 ms at 65,536. The log should be an `EventLog(with_state=False, keep=N)`: with states every
single call of the memory costs 0.3 ms at 256 blocks and 12 ms at 65,536, and `keep`, which has to be more than the
events of one step, bounds the memory of a long run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live

from reference_impl.engine.watch.letters import Letters
from reference_impl.engine.watch.lines import Lines
from reference_impl.engine.watch.state import Frame, State, Tally
from reference_impl.engine.watch.view import View
from reference_impl.memory.events import EventLog

_MOST_SHARE = 0.05
"""Of the time; a picture that takes longer is drawn less often."""
_MARGIN_LINES, _TEXT_LINES, _ENOUGH_LINES = 2, 12, 24
"""A picture as high as the terminal would scroll at every refresh; above one that is high enough there is text."""


class Watch:
    """`with Watch(log) as watch:`, and `watch.update()` after each step; what is printed meanwhile stands above it.

    Where the console is no terminal, only the last picture is printed, at the end. The log needs no states.
    """

    def __init__(
        self,
        log: EventLog,
        console: Console | None = None,
        refresh_hz: float = 4.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises: ValueError if the log belongs to no memory yet, or refresh_hz is not above 0."""
        if not log.num_events:
            raise ValueError("this log belongs to no memory yet: make the memory with log= first")
        if not refresh_hz > 0:
            raise ValueError(f"refresh_hz must be above 0, got {refresh_hz}")
        self._log = log
        self._console = Console() if console is None else console
        self._interval_s = 1 / refresh_hz
        self._clock = clock
        self._tally = Tally()
        self._num_seen = 0
        self._letters = Letters()
        self._next_s = float("-inf")
        self._live: Live | None = None
        self._stdout: TextIO | None = None

    def __enter__(self) -> Watch:
        # Only what would land on a terminal is lifted above the picture: an answer in a pipe stays there.
        if self._console.is_terminal and sys.stdout.isatty():
            self._stdout, sys.stdout = sys.stdout, Lines(self._console, sys.stdout)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()
        self.update(force=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._live is not None, "entered before it is left"
        try:
            self.update(force=True)
        finally:
            # Prints the picture where the console is no terminal.
            self._live.stop()
            self._live = None
            if self._stdout is not None:
                lines, sys.stdout, self._stdout = sys.stdout, self._stdout, None
                sys.stdout.write(lines.rest if isinstance(lines, Lines) else "")

    def update(self, *, force: bool = False) -> None:
        """Count what is new, and draw if the time has come; `force` draws now, as before a pause."""
        self._count()
        began_s = self._clock()
        if self._live is None or (began_s < self._next_s and not force):
            return
        if self._console.is_terminal:
            height = self._console.size.height
            most = max(1, min(height - _MARGIN_LINES, _ENOUGH_LINES), height - _TEXT_LINES)
            self._live.update(self.view(max_height=most), refresh=True)
        elif force:
            self._live.update(self.view())
        took_s = self._clock() - began_s
        self._next_s = began_s + max(self._interval_s, took_s / _MOST_SHARE)

    def view(self, *, max_height: int | None = None) -> View:
        """The picture of now."""
        self._count()
        log, state = self._log, self._log.state()
        event = log.events[-1]
        missed = log.num_events - self._tally.events
        frame = Frame(state, self._tally, event, event.get("fault", ""), log.num_events - 1, missed=missed)
        return View(frame, self._letters.of(requests_of(state)), max_height=max_height)

    def _count(self) -> None:
        new = self._log.num_events - self._num_seen
        if new:
            for event in self._log.events[-new:]:
                self._tally.take(event)
            self._num_seen += new

    def check_invariants(self) -> None:
        """AssertionError if more was counted than there was."""
        assert self._tally.events <= self._num_seen <= self._log.num_events, "more events were counted than there were"
        self._letters.check_invariants()


def requests_of(state: State) -> list[str]:
    """Everybody who needs a letter in a picture of `state`."""
    return [*state["tables"], *state.get("host", {}), *map(str, state.get("waiting", ()))]
