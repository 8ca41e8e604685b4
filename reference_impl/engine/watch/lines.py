"""Text that is printed piece by piece above a live picture.

Owns: how pieces become whole lines. Knows nothing of the picture. A picture stands below the last line, so that only a
whole line can be put above it; an answer comes in pieces of a word and is wrapped here as it would be in the end.
"""

from __future__ import annotations

from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.text import Text


class Lines(FileProxy):
    """Stands for `file`, a terminal's; `rest` is what is not shown yet. Flushing shows nothing that is no line yet."""

    def __init__(self, console: Console, file: IO[str]) -> None:
        super().__init__(console, file)
        self._console = console
        self.rest = ""

    def write(self, text: str) -> int:
        """Show the lines that are whole or as wide as the terminal."""
        self.rest += text
        while (line := self._next()) is not None:
            self._console.print(Text.from_ansi(line), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Nothing: see the class."""

    def _next(self) -> str | None:
        """Take the next line out of the rest."""
        width = max(2, self._console.width)
        line, newline, behind = self.rest.partition("\n")
        if cell_len(line) <= width:
            if not newline:
                return None
            self.rest = behind
            return line
        # A wide letter counts two: as many letters as fit, back to the last space among them.
        end = next(number for number in range(width, 0, -1) if cell_len(line[:number]) <= width)
        space = line.rfind(" ", 1, end + 1)
        cut = end if space < 0 else space
        self.rest = self.rest[cut + (space >= 0) :]
        return line[:cut]
