"""`engine watch`: printed, played on a terminal with keys, and one line for what cannot be shown."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reference_impl.cli import main
from tests.reference_impl.engine.watch.logs import served

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return served()[0].events


@pytest.fixture
def log(tmp_path: Path, events: list[dict[str, Any]]) -> Path:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(events), encoding="utf-8")
    return path


def test_where_the_output_is_no_terminal_the_last_state_is_printed(
    log: Path, events: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(log)]) == 0
    shown = capsys.readouterr().out
    assert f"event {len(events) - 1} of {len(events) - 1}, " in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["watch", str(log), "--once"]) == 0
    assert capsys.readouterr().out == shown


def test_to_says_which_state_is_printed(
    log: Path, events: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(log), "--once", "--to", "40"]) == 0
    shown = capsys.readouterr().out
    assert f"event 40 of {len(events) - 1}, {events[40]['kind']} " in shown
    assert events[40]["sentence"] in shown.replace("\n", " ")


def changed(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[list[dict[str, Any]]], bytes]:
    def contents(events: list[dict[str, Any]]) -> bytes:
        copies = json.loads(json.dumps(events))
        change(copies)
        return json.dumps(copies).encode()

    return contents


BROKEN: dict[str, tuple[Callable[[list[dict[str, Any]]], bytes], str]] = {
    "empty file": (lambda _: b"", "is not JSON: Expecting value"),
    "no JSON": (lambda _: b"[1, 2", "is not JSON: Expecting"),
    "no UTF-8": (lambda _: b'["\xff"]', "is not JSON: byte 2 is no UTF-8"),
    "too deep": (lambda _: b"[" * 100_000, "nested too deeply"),
    "object": (lambda _: b"{}", "is no event log: it holds a JSON object, not a list of events"),
    "number": (lambda _: b"1.5", "is no event log: it holds a JSON number, not a list of events"),
    "long number": (lambda _: b"[" + b"9" * 5_000 + b"]", "is not JSON: Exceeds the limit"),
    "no events": (lambda _: b"[]", "events is empty: there is nothing to show"),
    "no event": (lambda _: b"[3]", "event 0 is 3, not an object"),
    "other list": (lambda _: b'[{"a": 1}]', "event 0 has no call, told, kind, sentence, seq, blocks"),
    "kind": (changed(lambda log: log[5].update(kind="grab")), "event 5 is of kind 'grab', which is none of "),
    "kind that is a list": (changed(lambda log: log[5].update(kind=[])), "event 5 is of kind [], which is none of "),
    "line break": (changed(lambda log: log[5].update(kind="a\nb\x1b[2J")), "event 5 is of kind 'a\\nb\\x1b[2J', "),
    "calls": (changed(lambda log: log[9].update(call=0)), "event 9 is of call 0, after one of "),
    "no states": (
        changed(lambda log: [event.pop(name, None) for event in log for name in ("state", "fault")]),
        "a log without states",
    ),
    "one state missing": (changed(lambda log: log[-1].pop("state")), "has no state with num_blocks, "),
    "blocks": (changed(lambda log: log[-1]["state"].update(filled=[])), "has 0 filled for 24 blocks"),
    "table": (
        changed(lambda log: log[-1]["state"]["tables"].update({"a\nb" * 999: [1]})),
        "as its tokens, for the tables of a",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_log_is_refused_in_one_line(
    name: str, tmp_path: Path, events: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    contents, words = BROKEN[name]
    path = tmp_path / "log.json"
    path.write_bytes(contents(events))
    assert main(["watch", str(path)]) == 1
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.startswith(f"engine watch: {path}")
    assert shown.err.count("\n") == 1
    assert len(shown.err) < len(str(path)) + 400
    assert shown.err[:-1].isprintable()
    assert not shown.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--speed", "0"], "--speed must be above 0, got 0.0"),
        (["--speed", "nan"], "--speed must be above 0, got nan"),
        (["--speed", "inf"], "--speed must be above 0, got inf"),
        (["--from", "-1"], "--from must be 0 to "),
        (["--from", "99999"], "--from must be 0 to "),
        (["--from", "9", "--to", "8"], "--to must be 9 to "),
        (["--to", "99999"], "--to must be 0 to "),
        (["--once", "--from", "3"], "--from has no effect with --once"),
        (["--once", "--speed", "3"], "--speed has no effect with --once"),
        (["--step", "--speed", "3"], "--speed has no effect with --step"),
        (["--step"], "--step needs a terminal"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(
    options: list[str], words: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(log), *options]) == 1
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        assert main(["watch", str(path)]) == 1
        shown = capsys.readouterr().err
        assert words in shown
        assert str(path) in shown
        assert shown.count("\n") == 1


# On a terminal ---------------------------------------------------------------------------------------------------


def _hears_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`engine watch` on a pseudo terminal of 80 by 24."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self.theirs = theirs
        self.mode = termios.tcgetattr(theirs)
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reference_impl.cli", "watch", *arguments],
            cwd=ROOT,
            env=environment | {"TERM": "xterm-256color", "PYTHONPATH": f"{ROOT}:{ROOT / 'labs'}", "PYTHONUTF8": "1"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            # A shell that runs these tests in the background has them, and what they start, ignore interrupts.
            preexec_fn=_hears_interrupts,
        )
        self.output = b""

    def press(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, words: str) -> None:
        """Wait for this pattern on the screen, where nothing is left of what was there before the last call."""
        deadline_s = time.monotonic() + 20
        while True:
            text = re.sub(r"\x1b\[[\d;]*m", "", self.output.decode(errors="ignore"))
            if re.search(words, text):
                self.output = b""
                return
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{words!r} never came, but {text!r}"
            if select.select([self.ours], [], [], left_s)[0]:
                self.output += os.read(self.ours, 65_536)

    def end(self) -> int:
        """The exit code, once it has ended by itself; everything it says is read so that it can."""
        while self.process.poll() is None:
            if select.select([self.ours], [], [], 0.05)[0]:
                self.output += os.read(self.ours, 65_536)
        while select.select([self.ours], [], [], 0)[0]:
            self.output += os.read(self.ours, 65_536)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_keys_step_through_a_log_and_the_terminal_is_left_as_it_was(
    log: Path, events: list[dict[str, Any]], terminal: Callable[..., Terminal]
) -> None:
    last = len(events) - 1
    screen = terminal(str(log), "--step", "--from", "5")
    screen.until(f"event 5 of {last}, ")
    for keys, place in ((b" ", 6), (b"\x1b[C", 7), (b"\x1bOC", 8), (b"\x1b[D", 7), (b"  \x1b[C", 10), (b"x\x1b[D", 9)):
        screen.press(keys)
        screen.until(rf"(?s)event {place} of {last}, .*{re.escape(events[place]['sentence'][:30])}.*q: quit")
    screen.press(b"q")
    assert screen.end() == 0
    behind = screen.output.decode()
    assert "\x1b[?1049l" in behind, "the usual screen is back"
    assert "\x1b[?25h" in behind, "the cursor is back"
    assert f"event 9 of {last}, " in re.sub(r"\x1b\[[\d;]*m", "", behind)
    assert termios.tcgetattr(screen.theirs) == screen.mode


def test_it_plays_to_the_end_and_leaves_the_last_picture(
    log: Path, events: list[dict[str, Any]], terminal: Callable[..., Terminal]
) -> None:
    screen = terminal(str(log), "--speed", "2000")
    assert screen.end() == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", screen.output.decode())
    assert f"event {len(events) - 1} of {len(events) - 1}, " in text.split("\x1b[?1049l")[1]


def test_an_interrupt_ends_it_and_the_terminal_is_left_as_it_was(log: Path, terminal: Callable[..., Terminal]) -> None:
    screen = terminal(str(log), "--speed", "1")
    screen.until("q: quit")
    screen.process.send_signal(2)
    assert screen.end() == 130
    assert "engine watch: interrupted" in screen.output.decode()
    assert "\x1b[?1049l" in screen.output.decode()
    assert termios.tcgetattr(screen.theirs) == screen.mode
