"""Judges that share a GPU: many play at once, the clock has it alone, and nobody pays for waiting."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autograder.gpu.turns import Turns

ROOT = Path(__file__).parents[3]
SOON_S, LONG_S = 0.2, 20.0


@contextmanager
def in_a_thread(turns: Turns, kind: str, leave: threading.Event) -> Iterator[threading.Event]:
    """Someone who wants a turn and keeps it until `leave`; gives the event that tells it has it."""
    there = threading.Event()

    def stay() -> None:
        with getattr(turns, kind)():
            there.set()
            leave.wait(LONG_S)

    threading.Thread(target=stay, daemon=True).start()
    try:
        yield there
    finally:
        # Not waited for: it may stand behind the test's own turn.
        leave.set()


@pytest.mark.parametrize(
    ("first", "second", "beside"),
    [
        ("together", "together", True),
        ("together", "alone", False),
        ("alone", "together", False),
        ("alone", "alone", False),
    ],
)
def test_only_two_who_play_have_their_turns_at_once(tmp_path: Path, first: str, second: str, beside: bool) -> None:
    leave = threading.Event()
    with (
        getattr(Turns(tmp_path, "nvidia0"), first)(),
        in_a_thread(Turns(tmp_path, "nvidia0"), second, leave) as there,
    ):
        assert there.wait(LONG_S if beside else SOON_S) is beside


def test_whoever_comes_after_the_clock_waits_behind_it(tmp_path: Path) -> None:
    """Or a stream of short turns would keep the clock waiting for ever."""
    leave = threading.Event()
    with Turns(tmp_path, "nvidia0").together(), in_a_thread(Turns(tmp_path, "nvidia0"), "alone", leave) as clock:
        assert not clock.wait(SOON_S)
        with in_a_thread(Turns(tmp_path, "nvidia0"), "together", leave) as later:
            assert not later.wait(SOON_S)


@pytest.mark.parametrize("kind", ["alone", "together"])
def test_who_has_a_turn_has_it_for_all_that_is_done_in_it(tmp_path: Path, kind: str) -> None:
    leave = threading.Event()
    turns = Turns(tmp_path, "nvidia0")
    with getattr(turns, kind)():
        with turns.together():
            pass
        # The turn goes on, and whoever waits for it is in nobody's way.
        with in_a_thread(Turns(tmp_path, "nvidia0"), "alone", leave) as clock:
            assert not clock.wait(SOON_S)
            with turns.together():
                pass
    with turns.alone():
        pass


def test_a_turn_that_ended_with_an_error_is_over(tmp_path: Path) -> None:
    turns = Turns(tmp_path, "nvidia0")
    with pytest.raises(KeyError), turns.together():
        raise KeyError
    leave = threading.Event()
    with in_a_thread(Turns(tmp_path, "nvidia0"), "alone", leave) as other:
        assert other.wait(LONG_S)


def test_the_clock_asks_for_its_turn_outside_of_another(tmp_path: Path) -> None:
    turns = Turns(tmp_path, "nvidia0")
    with turns.together(), pytest.raises(RuntimeError, match="inside a turn beside others"):
        turns.alone()


def test_a_wait_is_told_and_no_wait_is_none(tmp_path: Path) -> None:
    told: list[float] = []
    turns = Turns(tmp_path, "nvidia0", told.append)
    with turns.together():
        pass
    assert turns.waited_s < SOON_S / 2
    leave = threading.Event()
    with in_a_thread(Turns(tmp_path, "nvidia0"), "alone", leave) as other:
        assert other.wait(LONG_S)
        threading.Timer(SOON_S, leave.set).start()
        with turns.together():
            pass
    assert turns.waited_s == sum(told) >= SOON_S * 0.9


def test_the_turn_of_a_judge_that_was_killed_is_over(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from autograder.gpu.turns import Turns\n"
        "with Turns(Path(sys.argv[1]), 'nvidia0').alone(): print('there', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert other.stdout is not None
    with other, other.stdout:
        assert other.stdout.readline() == "there\n"
        other.kill()
        start = time.monotonic()
        with Turns(tmp_path, "nvidia0").alone():
            assert time.monotonic() - start < LONG_S
