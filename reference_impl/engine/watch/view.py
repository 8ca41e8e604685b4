"""A moment of KV memory, laid out for the width and height of a terminal.

Owns: what stands where, and what gives way when there is little room. Knows nothing of time, keys or where a frame
comes from; cells are drawn by `grid.py`. From 120 columns on the requests stand beside the memory.
Cost of a picture: O(num_blocks + blocks in tables + its lines); `live.py` has milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from reference_impl.engine.watch.grid import ASCII, CELL_COLUMNS, UNICODE, Glyphs, grid, meanings, style_of
from reference_impl.engine.watch.state import (
    Counts,
    Frame,
    Row,
    blocks_of,
    cells_of,
    counts_of,
    host_cells,
    rows_of,
)

_GROUP = 8
"""Cells of a row come in eights where there is room."""
_WIDE, _SIDE, _LIST = 120, 46, 40
"""Columns: from where on two halves stand side by side, those of the right one, and those of a request."""
_PRINTED_ROWS, _PRINTED_REQUESTS = 24, 20
"""Lines at most where no height is known."""
_HOST_ROWS, _QUEUE_LINES, _SENTENCE_LINES = 2, 2, 3
_GAP = "   "


class View:
    """Print it. letters: of all who are in tables, on the host or waiting. status: a last line, for keys.

    max_height: lines at most; None is a moderate picture. fill: make it that high.
    """

    def __init__(
        self,
        frame: Frame,
        letters: dict[str, str],
        status: str = "",
        *,
        max_height: int | None = None,
        fill: bool = False,
    ) -> None:
        self._frame = frame
        self._letters = letters
        self._status = status
        self._max_height = max_height
        self._fill = fill and max_height is not None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The height is not that of the options, which a renderable inside of another is not told."""
        glyphs = UNICODE if options.encoding.startswith("utf") else ASCII
        picture = _Picture(self._frame, self._letters, glyphs, options.max_width, console)
        for line in picture.lines(self._max_height, self._status, fill=self._fill):
            line.no_wrap, line.overflow = True, "crop"
            line.truncate(options.max_width)
            yield line


class _Picture:
    """One frame at one width."""

    def __init__(self, frame: Frame, letters: dict[str, str], glyphs: Glyphs, width: int, console: Console) -> None:
        self.frame, self.letters, self.glyphs, self.width, self.console = frame, letters, glyphs, width, console
        self.state = frame.state
        self.size: int = frame.state["block_size"]
        self.blocks = blocks_of(frame.state)
        self.rows = rows_of(frame.state, self.blocks)

    def lines(self, most: int | None, status: str, *, fill: bool) -> list[Text]:
        """At most `most` lines: where even a small grid is too much, its end goes first."""
        event = self.event()
        if fill and len(event) == 2:
            # The lines above stay where they are when a sentence needs two.
            event.append(Text())
        below = [*self.counters(), *event, *([Text(status, style="dim")] if status else [])]
        room = None if most is None else max(0, most - len(below))
        above = self.beside(room) if self.width >= _WIDE else self.stacked(room)
        if room is None:
            return [*above, *below]
        above += [Text()] * (room - len(above) if fill else 0)
        return [*above[:room], *below][:most]

    def stacked(self, room: int | None) -> list[Text]:
        queue = self.queue(self.width)
        memory = self.memory(self.width, _PRINTED_ROWS)
        most = _PRINTED_REQUESTS
        if room is not None:
            # Two lines of requests at least, then the grid has what it needs, then requests have the rest.
            least = min(2, self.num_request_lines(self.width))
            around = len(self.memory(self.width, 1)) - 1 + 1 + len(queue)
            memory = self.memory(self.width, max(1, min(_PRINTED_ROWS, room - around - least)))
            most = max(1, room - len(memory) - 1 - len(queue))
        return [*memory, self.requests_rule(self.width), *self.requests(self.width, most), *queue]

    def beside(self, room: int | None) -> list[Text]:
        left_width = self.width - _SIDE - len(_GAP)
        queue, rows, most = self.queue(_SIDE), _PRINTED_ROWS, _PRINTED_REQUESTS
        if room is not None:
            rows = max(1, room - len(self.memory(left_width, 1)) + 1)
            most = max(1, room - 1 - len(queue))
        left = self.memory(left_width, rows)
        right = [self.requests_rule(_SIDE), *self.requests(_SIDE, most), *queue]
        lines = []
        for one, other in zip_longest(left, right, fillvalue=Text()):
            line = Text().append_text(one)
            line.truncate(left_width, pad=True)
            lines.append(line.append(_GAP).append_text(other))
        return lines

    # Memory -------------------------------------------------------------------------------------------------------

    def memory(self, width: int, most_rows: int) -> list[Text]:
        """The rule, the grid in at most `most_rows`, the host's, and the legend."""
        label = max(len("host"), len(str(len(self.blocks)))) + 1
        per_row = max(1, (width - label - 1) // CELL_COLUMNS)
        if per_row > _GROUP:
            per_row -= per_row % _GROUP
        cells = cells_of(self.blocks, self.size, per_row * most_rows)
        host = host_cells(self.state, per_row * _HOST_ROWS)
        name = "block" if len(self.blocks) == 1 else "blocks"
        title = f"KV memory: {len(self.blocks):,} {name} of {self.size:,} slots, {self.state['num_free']:,} available"
        lines = [self.rule(title, width)]
        for some, marked, labels in (
            (cells, self.frame.event["blocks"], [str(cell.first) for cell in cells[::per_row]]),
            (host, (), ["host"] * len(host[::per_row])),
        ):
            labels = [f"{text:>{label}} " for text in labels]
            lines += grid(some, per_row, labels, self.letters, self.glyphs, marked)
        return [*lines, *(_line(parts) for parts in flowed(meanings(cells, host, self.glyphs), width))]

    # Requests -----------------------------------------------------------------------------------------------------

    def requests_rule(self, width: int) -> Text:
        title = f"running {len(self.state['tables'])}, waiting {len(self.state.get('waiting', ()))}"
        on_host = len(self.state.get("host", {}))
        return self.rule(title + (f", on the host {on_host}" if on_host else ""), width)

    def num_request_lines(self, width: int) -> int:
        return -(-len(self.rows) // max(1, width // _LIST))

    def requests(self, width: int, most: int) -> list[Text]:
        """Letter, id, tokens and length of the table, as many beside each other as fit."""
        if not self.rows:
            return [Text("nobody has blocks", style="dim")]
        columns = max(1, width // _LIST)
        shown = self.rows if self.num_request_lines(width) <= most else self.rows[: (most - 1) * columns]
        lines = []
        for first in range(0, len(shown), columns):
            line = Text()
            for row in shown[first : first + columns]:
                text = self.cut(self.row(row), width // columns - 1)
                text.truncate(width // columns, pad=True)
                line.append_text(text)
            lines.append(line)
        return lines + self.more(len(self.rows) - len(shown))

    def row(self, row: Row) -> Text:
        text = self.request(row.request).append(" " * max(1, 4 - len(row.request)))
        if row.on_host:
            return text.append(f"on the host: {_counted(row.num_blocks, 'block')}")
        text.append(f"{_counted(row.num_tokens, 'token'):>11}  {_counted(row.num_blocks, 'block')}")
        return text.append(f", {row.num_shared} shared" if row.num_shared else "")

    def queue(self, width: int) -> list[Text]:
        waiting, lost = self.state.get("waiting", ()), set(self.state.get("preempted", ()))
        parts = [Text("queue:", style="dim")]
        # No more than `width` of them could ever stand on the lines that there are.
        for request in waiting[:width]:
            text = self.request(str(request))
            parts.append(text.append(" preempted", Style(color="dark_orange")) if request in lost else text)
        lines = flowed(parts, width, gap=2)
        shown = lines if len(lines) <= _QUEUE_LINES else lines[: _QUEUE_LINES - 1]
        missing = len(waiting) + 1 - sum(map(len, shown))
        return [_line(line, gap=2) for line in shown] + self.more(missing) if waiting else []

    def more(self, number: int) -> list[Text]:
        return [Text(f"{self.glyphs.more} and {number:,} more", style="dim")] if number else []

    def cut(self, text: Text, width: int) -> Text:
        """Shortened visibly, where it is too long."""
        if text.cell_len > width:
            text.truncate(max(0, width - len(self.glyphs.more)))
            text.append(self.glyphs.more)
        return text

    def request(self, request: str) -> Text:
        letter = self.letters[request]
        return Text().append(letter, style_of(letter)).append(f" {_printable(request)}")

    # What happened ------------------------------------------------------------------------------------------------

    def counters(self) -> list[Text]:
        tally, counts = self.frame.tally, counts_of(self.blocks, self.size)
        happened = {
            "admitted": tally.admitted,
            "finished": tally.finished,
            "preempted": tally.preempted,
            "to the host": tally.to_host,
            "copies": tally.copies,
            "evicted": tally.evicted,
            "hit tokens": tally.hits * self.size,
            "refused": tally.refused,
        }
        parts = [Text(f"{name} {number:,}") for name, number in happened.items()]
        if self.frame.missed:
            parts.append(Text(f"({self.frame.missed:,} events were not seen)"))
        lines = [*flowed(parts, self.width), *flowed(_amounts(counts), self.width)]
        return [self.rule("counters", self.width), *map(_line, lines)]

    def event(self) -> list[Text]:
        event, last = self.frame.event, self.frame.last
        of = f" of {last}" if last is not None else ""
        bad = event["kind"] in ("refused", "failed")
        lines = [self.rule(f"event {self.frame.place}{of}, {event['kind']}", self.width)]
        sentences = [(event["sentence"], "bold red3" if bad else "bold")]
        if self.frame.fault:
            sentences.append((f"Fault: {self.frame.fault}", "bold red3"))
        for sentence, style in sentences:
            wrapped = list(Text(_printable(sentence), style).wrap(self.console, self.width))
            if len(wrapped) > _SENTENCE_LINES:
                wrapped[_SENTENCE_LINES - 1] = self.cut(
                    wrapped[_SENTENCE_LINES - 1].append(" " * self.width), self.width
                )
            lines += wrapped[:_SENTENCE_LINES]
        return lines

    def rule(self, title: str, width: int) -> Text:
        line = Text().append(self.glyphs.rule * 2 + " ", "dim").append(title, "bold").append(" ")
        return line.append(self.glyphs.rule * max(0, width - line.cell_len), "dim")


def flowed(parts: Sequence[Text], width: int, gap: int = len(_GAP)) -> list[list[Text]]:
    """The parts line by line, as many on a line as fit."""
    lines: list[list[Text]] = []
    used = 0
    for part in parts:
        if lines and used + gap + part.cell_len <= width:
            lines[-1].append(part)
            used += gap + part.cell_len
        else:
            lines.append([part])
            used = part.cell_len
    return lines


def _line(parts: Sequence[Text], gap: int = len(_GAP)) -> Text:
    return Text(" " * gap).join(parts)


def _amounts(counts: Counts) -> list[Text]:
    in_all = f"{counts.written_slots / counts.all_slots:.1%} of all slots"
    in_held = f", {counts.written_slots / counts.held_slots:.1%} of those held" if counts.held_slots else ""
    kinds = f"blocks: {counts.free:,} free, {counts.idle:,} idle, {counts.held:,} held, {counts.shared:,} shared"
    lost = f", {counts.lost:,} lost" if counts.lost else ""
    return [Text(kinds + lost), Text(f"{counts.partly:,} not full"), Text(f"hold tokens: {in_all}{in_held}")]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _printable(text: str) -> str:
    """A log is a file from anywhere: nothing in it may move the cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
