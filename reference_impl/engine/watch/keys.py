"""Keys from a terminal, one at a time, without Enter.

Owns: the mode of the terminal, which is put back at the end, and the names of keys. Knows nothing of what a key does.
Source: the arrow keys' sequences are those of ECMA-48, in the normal and in the application mode of xterm.
"""

from __future__ import annotations

import os
import select
from types import TracebackType
from typing import Any

_NAMES = {
    b" ": "space",
    b"q": "quit",
    b"Q": "quit",
    b"\x04": "quit",
    b"\x1b[C": "right",
    b"\x1bOC": "right",
    b"\x1b[B": "right",
    b"\x1bOB": "right",
    b"\x1b[D": "left",
    b"\x1bOD": "left",
    b"\x1b[A": "left",
    b"\x1bOA": "left",
}
_ESCAPE = b"\x1b"
_REST_S = 0.05
"""How long the rest of an arrow key may take to come."""


class Keys:
    """A context manager; `fd` is of a terminal."""

    def __init__(self, fd: int) -> None:
        """Raises: ValueError if `fd` is of no terminal, or this system has no such terminals."""
        try:
            import termios
        except ImportError:
            raise ValueError("keys are read on Unix only") from None
        if not os.isatty(fd):
            raise ValueError("keys can be read from a terminal only")
        self._termios: Any = termios
        self._fd = fd
        self._mode: list[Any] | None = None

    def __enter__(self) -> Keys:
        import tty

        self._mode = self._termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mode is not None:
            self._termios.tcsetattr(self._fd, self._termios.TCSADRAIN, self._mode)
            self._mode = None

    def wait(self, timeout_s: float) -> str:
        """The next key's name, "" if none with a name comes in time; "quit" also when the terminal is gone."""
        if not self._ready(timeout_s):
            return ""
        typed = self._byte()
        if typed == _ESCAPE:
            # An arrow key is three bytes that come together; Escape alone is none of ours.
            while len(typed) < 3 and self._ready(_REST_S):
                if not (more := self._byte()):
                    return "quit"
                typed += more
        return _NAMES.get(typed, "") if typed else "quit"

    def _ready(self, timeout_s: float) -> bool:
        return bool(select.select([self._fd], [], [], timeout_s)[0])

    def _byte(self) -> bytes:
        try:
            return os.read(self._fd, 1)
        except OSError:
            return b""
