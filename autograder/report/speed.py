"""The figure of what the clock saw: one bar for each who was timed, beside what the GPU can read.

Owns: the bars and the words beside them. Every number is text; a bar only repeats it, so it is hidden from a screen
reader. Knows nothing of how time is taken or what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

from autograder.judge.verdicts import TimingResult
from autograder.report.page import escape
from autograder.report.text import mean_shares_text, percent_text

WHAT = (
    "How fast your kernel reads keys and values, as a share of the read ceiling: the most that this GPU reads, "
    "measured in the same run. A full bar is the ceiling. Times are those of one call. A textbook's kernel has one "
    "program for each sequence and KV head, and no split."
)


def speed_figure(timings: Sequence[TimingResult]) -> str:
    """The timings of one group; nothing if there are none."""
    if not timings:
        return ""
    cases = "".join(_case(timing) for timing in timings)
    together = f"<p>All of them together, as a geometric mean: {mean_shares_text(timings)}.</p>\n"
    return f'<figure class="speed">\n<figcaption>{WHAT}</figcaption>\n{cases}{together}</figure>\n'


def _case(timing: TimingResult) -> str:
    mine = _row("yours", timing.share, f", {_time_text(timing.student_us)}", "bar")
    textbook = ""
    if timing.textbook_us is not None and timing.textbook_share is not None:
        textbook = _row("a textbook's kernel", timing.textbook_share, f", {_time_text(timing.textbook_us)}", "other")
    reference = _row("the reference", timing.reference_share, f", {_time_text(timing.reference_us)}", "other")
    ceiling = _row("the read ceiling", 1.0, "", "ceiling")
    name = timing.case[:1].upper() + timing.case[1:]
    return f"<p>{escape(name)}</p>\n<ul>\n{mine}{textbook}{reference}{ceiling}</ul>\n"


def _row(who: str, share: float, time: str, style: str) -> str:
    """Words, and a bar whose width is the share. Widths are percentages, so that it fits every screen."""
    width = f"{100 * min(share, 1.0):.1f}%"
    return (
        f"<li><span>{who}: {percent_text(share)}{time}</span>"
        '<svg aria-hidden="true" width="100%" height="12">'
        f'<rect class="{style}" width="{width}" height="100%"/><rect class="frame" width="100%" height="100%"/>'
        "</svg></li>\n"
    )


def _time_text(us: float) -> str:
    """Three figures, in milliseconds where microseconds would have more."""
    return f"{us:.3g} \u00b5s" if us < 999.5 else f"{us / 1000:.3g} ms" if us < 999_500 else f"{us / 1e6:.3g} s"
