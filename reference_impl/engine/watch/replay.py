"""A log of KV memory, played in the terminal.

Owns: which event is shown when, and what keys do. Knows nothing of files (`command.py`) or of drawing
(`view.py`). Events have the numbers that `labkit.event_log` gives them, from 0. Only the last event of a call has
a state: the others are shown with it too, because their sentences tell how it came about.
Cost of a step forward: O(its events) and a picture; of a step back: O(the events before it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live

from labkit.event_log import Event, check_log
from reference_impl.engine.watch.letters import Letters
from reference_impl.engine.watch.live import requests_of
from reference_impl.engine.watch.state import Frame, Tally, tally_of
from reference_impl.engine.watch.view import View

_SHORTEST_S, _LONGEST_S = 0.04, 0.25
"""Between two looks at the clock: no eye needs more pictures, and a terminal may have another size by then."""


class Pressed(Protocol):
    """Where keys come from, `watch_keys.Keys` or a test."""

    def wait(self, timeout_s: float) -> str:
        """The next key: space, left, right, quit; "" if none comes in time."""


class Replay:
    """The pictures of a log."""

    def __init__(self, events: Sequence[Event]) -> None:
        """Raises: ValueError on what is no log with states, naming the event."""
        has_states = not events or any(isinstance(event, dict) and "state" in event for event in events)
        check_log(events, states=has_states)
        if not has_states:
            raise ValueError("it is a log without states; only one that was written with them can be shown")
        self._events = events
        self._tally = Tally()
        self._letters = Letters()

    @property
    def last(self) -> int:
        """Number of the last event."""
        return len(self._events) - 1

    def frame(self, place: int) -> Frame:
        """What is to be seen at event `place`. Raises: ValueError outside of the log."""
        if not 0 <= place <= self.last:
            raise ValueError(f"there is no event {place}; the log has 0 to {self.last}")
        if place + 1 < self._tally.events:
            self._tally = tally_of(self._events, place + 1)
        for event in self._events[self._tally.events : place + 1]:
            self._tally.take(event)
        end = next(event for event in self._events[place:] if "state" in event)
        fault = end.get("fault", "")
        return Frame(end["state"], self._tally, self._events[place], fault, place, self.last)

    def view(self, place: int, status: str = "", *, height: int | None = None) -> View:
        """See `frame`. height: of a screen to fill; None is a moderate picture."""
        frame = self.frame(place)
        letters = self._letters.of(requests_of(frame.state))
        return View(frame, letters, status, max_height=height, fill=True)


class Play:
    """Plays events `first` to `last`, `speed` of them a second; `stepping` begins paused, and ends only by a key.

    keys: None where nobody can press any; then it plays to the end.
    """

    def __init__(
        self,
        replay: Replay,
        first: int,
        last: int,
        speed: float,
        *,
        stepping: bool = False,
        keys: Pressed | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._replay, self._first, self._last, self._speed = replay, first, last, speed
        self._stepping, self._keys, self._clock, self._sleep = stepping, keys, clock, sleep
        self.place = first
        self._paused = stepping
        self._began_s, self._began_at = clock(), first

    def run(self, console: Console) -> None:
        """On a screen of its own; the picture that was seen last stays behind on the usual one."""
        with Live(console=console, screen=True, auto_refresh=False) as live:
            shown: object = None
            while True:
                seen = (self.place, self._paused, console.size)
                if seen != shown:
                    view = self._replay.view(self.place, self._status(), height=console.size.height)
                    live.update(view, refresh=True)
                    shown = seen
                if (self.place == self._last and not self._paused) or not self._wait():
                    break
        console.print(self._replay.view(self.place))

    def _wait(self) -> bool:
        """Until the next picture or key; False if it is over."""
        due_s = self._began_s + (self.place + 1 - self._began_at) / self._speed
        timeout_s = _LONGEST_S if self._paused else min(_LONGEST_S, max(_SHORTEST_S, due_s - self._clock()))
        if self._keys is None:
            self._sleep(timeout_s)
        elif not self._press(self._keys.wait(timeout_s)):
            return False
        if not self._paused:
            gone = (self._clock() - self._began_s) * self._speed
            self.place = self._last if gone >= self._last - self._began_at else self._began_at + int(gone)
        return True

    def _press(self, key: str) -> bool:
        """Do what the key says; False if it says quit."""
        if key == "space" and not self._stepping:
            self._paused = not self._paused
        elif key in ("right", "space"):
            self.place, self._paused = min(self._last, self.place + 1), True
        elif key == "left":
            self.place, self._paused = max(self._first, self.place - 1), True
        if key:
            self._began_s, self._began_at = self._clock(), self.place
        return key != "quit"

    def _status(self) -> str:
        if self._keys is None:
            return f"{self._speed:g} events a second"
        if self._stepping:
            return "space or right: forward   left: back   q: quit"
        state = "paused" if self._paused else f"{self._speed:g} events a second"
        return f"{state}   space: {'go on' if self._paused else 'pause'}   left, right: step   q: quit"
