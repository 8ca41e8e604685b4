"""The table at the end of a command.

Owns: columns and their order. One line a submission; markup in a name is shown, not obeyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autograder.judge.verdicts import GroupResult, SubmissionResult
from autograder.report.text import clean, points_text

MAX_NAME = 44
MIN_REMARK = 12
GAP = 3
"""Blanks between two columns."""
NUMBERS = 24
"""What the columns score and of take, with the table's edges."""


@dataclass(frozen=True)
class Line:
    """One line: who, the result (None if there is none), and the gradebook's score where a human changed it."""

    name: str
    result: SubmissionResult | None
    score: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """The table as something rich can print. Points per group are shown where the terminal is wide enough for them."""

    title: str
    lines: Sequence[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        groups = _group_titles(line.result for line in self.lines)
        name = min(MAX_NAME, options.max_width * 2 // 5, max((len(line.name) for line in self.lines), default=0))
        wide = sum(len(group) + GAP for group in groups)
        if name + wide + NUMBERS + MIN_REMARK > options.max_width:
            groups, wide = [], 0
        # Cut here, since rich would shrink the scores as readily as the remarks.
        remark = max(MIN_REMARK, options.max_width - name - wide - NUMBERS - GAP)
        yield self._table(groups, name, remark)

    def _table(self, groups: Sequence[str], name_width: int, remark_width: int) -> Table:
        table = Table(title=Text(self.title), box=box.SIMPLE_HEAD)
        table.add_column("submission", no_wrap=True)
        for title in (*groups, "score", "of"):
            table.add_column(Text(title), justify="right", no_wrap=True)
        table.add_column("remark", no_wrap=True)
        for line in self.lines:
            name = clean(line.name)
            # The end of a long name is kept: paths differ there.
            name = name if len(name) <= name_width else "..." + name[3 - name_width :]
            remark = _remark(line)
            remark = remark if len(remark) <= remark_width else remark[: remark_width - 3] + "..."
            table.add_row(Text(name), *map(Text, _points(line, groups)), Text(remark))
        return table


def summary_table(title: str, lines: Sequence[Line]) -> Summary:
    """Score in total, and per group where there is room, for every submission: one line each."""
    return Summary(title, lines)


def _group_titles(results: Iterable[SubmissionResult | None]) -> list[str]:
    """Group ids in the order of the first result that has any."""
    for result in results:
        if result is not None and result.groups:
            return [group.id for group in result.groups]
    return []


def _points(line: Line, titles: Sequence[str]) -> list[str]:
    """Points of each group, the score, and the highest score; a dash where there is none."""
    result = line.result
    groups: dict[str, GroupResult] = {group.id: group for group in result.groups} if result else {}
    points = [points_text(groups[name].points) if name in groups else "-" for name in titles]
    score = line.score
    if score is None and result is not None and result.status != "infra":
        score = result.score
    highest = points_text(result.max_score) if result and result.groups else "-"
    return [*points, "-" if score is None else points_text(score), highest]


def _remark(line: Line) -> str:
    words = [line.note] if line.note else []
    if line.result is not None:
        words += [line.result.status] if line.result.status != "graded" else []
        words += line.result.flags[:1]
    return clean("; ".join(words)).replace("\n", " ")
