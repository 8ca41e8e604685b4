"""How far a long command is: a bar on a terminal, a line now and then elsewhere.

Owns: what is shown while waiting. Knows nothing of what is waited for. `rich` draws the bar where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_LINES = 4
"""Lines for a whole task where there is no terminal."""


class Watcher:
    """`with Watcher(total, stream) as watcher: ... watcher.progress_of(name)`; one bar for each name."""

    def __init__(self, total: int, stream: TextIO, unit: str = "requests") -> None:
        self._total = total
        self._stream = stream
        self._unit = unit
        self._bar = _bar(stream, unit)

    def __enter__(self) -> Watcher:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def progress_of(self, name: str) -> Callable[[int, float], None]:
        """For the simulator: (requests over, simulated seconds)."""
        show = self._show(name)
        return lambda over, clock_s: show(over, f"{clock_s:,.0f} simulated seconds")

    def bytes_of(self, name: str) -> Callable[[int, int], None]:
        """For a download: (bytes there, bytes in all)."""
        show = self._show(name)
        return lambda there, size: show(there, f"of {size:,} bytes")

    def _show(self, name: str) -> Callable[[int, str], None]:
        bar = self._bar
        if bar is not None:
            task = bar.add_task(name, total=self._total, remark="")
            return lambda done, remark: bar.update(task, completed=done, remark=remark)
        said = 0

        def line(done: int, remark: str) -> None:
            nonlocal said
            quarter = done * _LINES // self._total
            if quarter > said:
                said = quarter
                print(f"{name}: {done:,} of {self._total:,} {self._unit}, {remark}", file=self._stream, flush=True)

        return line


def _bar(stream: TextIO, unit: str) -> Bar | None:
    if not stream.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    return Progress(*columns, console=Console(file=stream))
