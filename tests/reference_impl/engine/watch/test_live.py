"""The live view: how often it draws, what it costs, and that it counts what a short log forgets."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from reference_impl.engine.watch.lines import Lines
from reference_impl.engine.watch.live import Watch
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from tests.reference_impl.engine.watch.logs import Driver, busy, printed, request_of
from tests.reference_impl.engine.watch.test_view import number_behind


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Drawn(io.StringIO):
    """A terminal that counts the pictures."""

    @property
    def pictures(self) -> int:
        return self.getvalue().count("KV memory: ")


def terminal(file: io.StringIO, height: int = 24) -> Console:
    return Console(file=file, width=80, height=height, force_terminal=True, _environ={"TERM": "xterm"})


def serving(log: EventLog, *, requests: int = 16) -> Driver:
    driver = Driver(busy(log))
    for request, makes in map(request_of, range(requests)):
        driver.add(request, makes=makes)
    return driver


@pytest.mark.parametrize("keep", [None, 150])
@pytest.mark.parametrize("with_state", [True, False])
def test_it_counts_every_event_whatever_the_log_keeps(with_state: bool, keep: int | None) -> None:
    log = EventLog(with_state=with_state, keep=keep)
    driver = serving(log)
    with Watch(log, terminal(Drawn())) as watch:
        while driver.step().scheduled:
            watch.update()
            watch.check_invariants()
        lines = printed(watch.view())
    counters = driver.scheduler.counters
    assert log.num_events > 250
    assert counters.preemptions
    assert number_behind("admitted", lines) == counters.admitted
    assert number_behind("preempted", lines) == counters.preemptions
    assert number_behind("hit tokens", lines) == counters.reused_tokens
    assert f"── event {log.num_events - 1}, free ─" in "\n".join(lines)
    assert "not seen" not in "\n".join(lines)


def test_events_that_were_gone_before_they_were_seen_are_confessed() -> None:
    log = EventLog(with_state=False, keep=1)
    driver = serving(log)
    driver.run()
    assert f"({log.num_events - 1} events were not seen)" in "\n".join(printed(Watch(log, terminal(Drawn())).view()))


def test_it_draws_no_more_often_than_it_was_asked_to() -> None:
    log, clock, drawn = EventLog(with_state=False), Clock(), Drawn()
    driver = serving(log)
    with Watch(log, terminal(drawn), refresh_hz=10, clock=clock) as watch:
        first = drawn.pictures
        for _ in range(50):
            driver.step()
            clock.now_s += 0.0301
            watch.update()
        # The picture at the entrance, then each 4th update, the first that is 0.1 s after the one before.
        assert drawn.pictures - first == 50 // 4
        watch.update(force=True)
        assert drawn.pictures - first == 50 // 4 + 1


def test_a_slow_picture_is_drawn_less_often() -> None:
    log, clock, drawn = EventLog(with_state=False), Clock(), Drawn()
    serving(log).step()

    class Slow(Console):
        def print(self, *args: object, **kwargs: object) -> None:
            clock.now_s += 1
            super().print(*args, **kwargs)  # type: ignore[arg-type]

    console = Slow(file=drawn, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
    with Watch(log, console, refresh_hz=100, clock=clock) as watch:
        began_s, before = clock.now_s, drawn.pictures
        while clock.now_s < began_s + 200:
            clock.now_s += 0.1
            watch.update()
        assert 1 <= drawn.pictures - before <= 11


def test_a_picture_is_never_as_high_as_the_terminal() -> None:
    log = EventLog(with_state=False)
    serving(log).step()
    for height, most in ((4, 2), (10, 8), (24, 22), (30, 24), (60, 48)):
        drawn = Drawn()
        with Watch(log, terminal(drawn, height)):
            assert drawn.getvalue().count("\n") < most


def test_where_nobody_looks_only_the_last_picture_is_printed() -> None:
    log, file = EventLog(with_state=False), Drawn()
    driver = serving(log)
    with Watch(log, Console(file=file, width=80), refresh_hz=1e9) as watch:
        while driver.step().scheduled:
            watch.update()
        assert file.getvalue() == ""
    assert file.pictures == 1
    assert "\x1b" not in file.getvalue()
    assert f"event {log.num_events - 1}, free" in file.getvalue()


def test_an_answer_that_goes_into_a_pipe_stays_there(capsys: pytest.CaptureFixture[str]) -> None:
    log, drawn = EventLog(with_state=False), Drawn()
    serving(log).step()
    with Watch(log, terminal(drawn)):
        print("the answer")
        print("a warning", file=sys.stderr)
    assert capsys.readouterr() == ("the answer\n", "a warning\n")
    assert "the answer" not in drawn.getvalue()


def test_an_error_goes_through_and_the_cursor_comes_back() -> None:
    log, drawn = EventLog(with_state=False), Drawn()
    serving(log).step()
    with pytest.raises(RuntimeError, match="out of luck"), Watch(log, terminal(drawn)):
        raise RuntimeError("out of luck")
    assert drawn.getvalue().count("\x1b[?25l") == drawn.getvalue().count("\x1b[?25h") == 1


def test_it_is_not_made_of_what_it_cannot_watch() -> None:
    with pytest.raises(ValueError, match="this log belongs to no memory yet: make the memory with log= first"):
        Watch(EventLog())
    log = EventLog()
    KVManager(4, 4, log=log)
    for hertz in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"refresh_hz must be above 0, got {hertz}"):
            Watch(log, refresh_hz=hertz)


class Screen(Drawn):
    """Drawn, and a terminal for whoever asks."""

    def isatty(self) -> bool:
        return True


def test_an_answer_in_pieces_stands_in_whole_lines_above_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    log, drawn = EventLog(with_state=False), Screen()
    serving(log).step()
    monkeypatch.setattr("sys.stdout", drawn)
    with Watch(log, terminal(drawn)):
        for piece in ("A bl", "ock is ", "a few slots.\nIt", " has", " no name"):
            print(piece, end="", flush=True)
        during = drawn.getvalue()
    assert sys.stdout is drawn
    assert "A block is a few slots.\n" in during
    assert "It" not in during.split("A block is a few slots.")[1].split("KV memory")[0]
    assert drawn.getvalue().endswith("It has no name")


@given(st.lists(st.text("ab 漢\n", max_size=30), max_size=20), st.integers(2, 12))
@settings(deadline=None)
def test_pieces_become_lines_that_fit_and_lose_nothing_but_the_space_they_are_broken_at(
    pieces: list[str], width: int
) -> None:
    file = io.StringIO()
    lines = Lines(Console(file=file, width=width, color_system=None), file)
    for piece in pieces:
        assert lines.write(piece) == len(piece)
        lines.flush()
    shown = file.getvalue()
    assert all(cell_len(line) <= width for line in shown.splitlines())
    text = "".join(pieces)
    assert (shown + lines.rest).replace("\n", "").replace(" ", "") == text.replace("\n", "").replace(" ", "")
    assert "\n" not in lines.rest


def test_words_are_not_broken_where_there_is_a_space() -> None:
    file = io.StringIO()
    lines = Lines(Console(file=file, width=10, color_system=None), file)
    lines.write("one two three four five")
    assert (file.getvalue(), lines.rest) == ("one two\nthree four\n", "five")
