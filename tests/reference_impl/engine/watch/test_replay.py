"""Playing a log: which event is on the screen at which moment, and what keys do."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from reference_impl.engine.watch.replay import Play, Replay
from reference_impl.engine.watch.state import tally_of
from tests.reference_impl.engine.watch.logs import served


class Hands:
    """Presses these keys, one a wait, then none; each wait lasts as long as it may."""

    def __init__(self, keys: list[str], clock: Clock) -> None:
        self.keys, self.clock = keys, clock

    def wait(self, timeout_s: float) -> str:
        self.clock.now_s += timeout_s
        assert self.keys, "it waits for a key that never comes"
        return self.keys.pop(0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture(scope="module")
def replay() -> Replay:
    return Replay(served()[0].events)


def run(
    replay: Replay, first: int, last: int, speed: float, keys: list[str] | None = None, *, stepping: bool = False
) -> tuple[list[int], float]:
    """The numbers of the events on the screen one after the other, and how long it took."""
    clock, file = Clock(), io.StringIO()
    hands = None if keys is None else Hands(keys, clock)
    play = Play(replay, first, last, speed, stepping=stepping, keys=hands, clock=clock, sleep=clock.sleep)
    console = Console(file=file, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    play.run(console)
    screen, behind = file.getvalue().split("\x1b[?1049l")
    shown = [
        int(number)
        for number in re.findall(r"── event (\d+)|event (\d+) of", re.sub(r"\x1b\[[\d;]*m", "", screen))
        for number in number
        if number
    ]
    assert f"event {play.place} of {replay.last}," in re.sub(r"\x1b\[[\d;]*m", "", behind)
    return shown, clock.now_s


def test_it_shows_every_event_at_the_speed_that_was_asked_for(replay: Replay) -> None:
    shown, seconds = run(replay, 10, 30, 10)
    assert list(dict.fromkeys(shown)) == list(range(10, 31))
    assert seconds == pytest.approx(2, rel=0.1)


def test_faster_than_the_eye_it_leaves_pictures_out_and_keeps_the_speed(replay: Replay) -> None:
    shown, seconds = run(replay, 0, 200, 1_000)
    assert len(shown) < 10
    assert (shown[0], shown[-1]) == (0, 200)
    assert seconds == pytest.approx(0.2, abs=0.05)
    assert run(replay, 0, 200, 1e300)[0] == [0, 200]


def test_slow_play_looks_up_often_and_draws_only_what_changed(replay: Replay) -> None:
    shown, seconds = run(replay, 0, 2, 0.1)
    assert shown == [0, 1, 2]
    assert seconds == pytest.approx(20, rel=0.05)


def test_steps_go_forward_and_back_and_stay_in_the_range(replay: Replay) -> None:
    keys = ["right", "space", "left", "left", "left", "", "right", "right", "right", "right", "quit"]
    assert run(replay, 5, 8, 10, keys, stepping=True)[0] == [5, 6, 7, 6, 5, 6, 7, 8]


def test_at_the_end_of_stepping_it_waits_for_a_key(replay: Replay) -> None:
    assert run(replay, 8, 8, 10, ["", "", "right", "quit"], stepping=True)[0] == [8]


def test_space_pauses_and_goes_on_where_it_was(replay: Replay) -> None:
    shown, _ = run(replay, 0, 6, 4, ["", "", "space", *[""] * 20, "space", *[""] * 9])
    assert sorted(set(shown)) == list(range(7))
    assert shown == sorted(shown), "it went on where it was"


def test_an_arrow_stops_the_play_and_q_ends_it(replay: Replay) -> None:
    shown, _ = run(replay, 0, 100, 4, ["", "", "left", *[""] * 9, "quit"])
    assert shown[-1] in (0, 1)
    assert max(shown) <= 2


def test_going_back_undoes_the_counters(replay: Replay) -> None:
    events = served()[0].events
    for place in (200, 3, 90, 89, 88, 0, replay.last):
        frame = replay.frame(place)
        assert frame.tally.admitted == tally_of(events, place + 1).admitted
        assert frame.tally.events == place + 1
        assert frame.event == events[place]


def test_an_event_within_a_call_is_shown_with_the_state_after_the_call(replay: Replay) -> None:
    events = served()[0].events
    place = next(place for place, event in enumerate(events) if event["kind"] == "admit" and "state" not in event)
    end = next(event for event in events[place:] if "state" in event)
    assert end["call"] == events[place]["call"]
    assert replay.frame(place).state == end["state"]


def test_what_is_no_log_with_states_is_refused(replay: Replay) -> None:
    events = served()[0].events
    without = [{name: value for name, value in event.items() if name not in ("state", "fault")} for event in events]
    with pytest.raises(ValueError, match="a log without states"):
        Replay(without)
    with pytest.raises(ValueError, match="there is nothing to show"):
        Replay([])
    with pytest.raises(ValueError, match="event 0 is 1, not an object"):
        Replay([1])  # type: ignore[list-item]
    for place in (-1, len(events)):
        with pytest.raises(ValueError, match=f"there is no event {place}; the log has 0 to {len(events) - 1}"):
            replay.frame(place)
