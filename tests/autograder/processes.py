"""Processes of this machine, for tests that must see some of them end.

Others may test at the same time: who is seen here and is theirs ends soon too, and what was left behind does not.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

Seen = set[tuple[int, str]]
"""(process, when it started): a number alone may be given again."""


def with_command(words: bytes) -> Seen:
    """Those with `words` on their command line, this one aside."""
    return {each for each in _all() if each[0] != os.getpid() and words in _read(each[0], "cmdline")}


def children_of(pid: int) -> Seen:
    """Those that `pid` started and that still run."""
    return {each for each in _all() if f"PPid:\t{pid}\n".encode() in _read(each[0], "status")}


def left_after(seconds: float, them: Seen) -> Seen:
    """Which of them still run when all are gone or `seconds` have passed."""
    deadline = time.monotonic() + seconds
    while (left := them & _all()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _all() -> Seen:
    """Every process but those that have ended and wait for their parent."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # Behind the name, which may hold anything: the state first, when it started as the twentieth.
            fields = _read(int(entry.name), "stat").rpartition(b")")[2].split()
            if fields and fields[0] != b"Z":
                found.add((int(entry.name), fields[19].decode()))
    return found


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
