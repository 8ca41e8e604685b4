"""The feedback page of one student.

Owns: what stands on it and in which order: the score, remarks, each group with its tests, comments of a human grader,
and the work as it was handed in, as text. Knows nothing of nbgrader; the gradebook's side is handed over as plain
values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, TimingResult, Verdict
from autograder.report.page import escape, page
from autograder.report.speed import speed_figure
from autograder.report.text import WORDS, points_text, title_of


@dataclass(frozen=True)
class Gradebook:
    """What the gradebook says of one notebook. Points by grade_id; a human may have changed or added some."""

    points: Mapping[str, tuple[float, float]]
    """grade_id -> (points, highest points)."""
    late_penalty: float = 0.0
    comments: Sequence[str] = ()


@dataclass(frozen=True)
class Feedback:
    """Everything on one page. `cells` are (cell_type, source) of the work as graded."""

    student: str
    lab: str
    result: SubmissionResult | None
    gradebook: Gradebook | None = None
    cells: Sequence[tuple[str, str]] = field(default=())


def feedback_page(feedback: Feedback) -> str:
    """The page as one HTML document. Cost: O(characters of the submission)."""
    parts = [f"<h1>Feedback: {escape(feedback.lab)}</h1>\n<p>Student: {escape(feedback.student)}</p>\n"]
    parts.append(_score(feedback))
    result = feedback.result
    if result is not None:
        parts += [f'<p class="remark">{escape(flag)}</p>\n' for flag in result.flags]
        parts += [_group(group, feedback.gradebook, result.timings) for group in result.groups]
    if feedback.gradebook and feedback.gradebook.comments:
        comments = "".join(f"<pre>{escape(comment)}</pre>\n" for comment in feedback.gradebook.comments)
        parts.append(f"<h2>Comments</h2>\n{comments}")
    if feedback.cells:
        parts.append("<h2>Your notebook as it was graded</h2>\n")
        parts += [f"<pre><code>{escape(source)}</code></pre>\n" for _, source in feedback.cells if source.strip()]
    return page(f"Feedback: {feedback.lab}, {feedback.student}", "".join(parts))


def _score(feedback: Feedback) -> str:
    """The gradebook's score where there is one: it holds what a human changed."""
    book, result = feedback.gradebook, feedback.result
    if book is not None:
        highest = sum(most for _, most in book.points.values())
        score = sum(points for points, _ in book.points.values()) - book.late_penalty
        late = f" after a penalty of {points_text(book.late_penalty)} for lateness" if book.late_penalty else ""
    elif result is not None:
        score, highest, late = result.score, result.max_score, ""
    else:
        return "<p>Not graded.</p>\n"
    lines = [f"<p><strong>{points_text(score)} of {points_text(highest)} points</strong>{late}</p>\n"]
    if result is not None and result.gpu:
        lines.append(f"<p>Graded on a GPU: {escape(result.gpu)}.</p>\n")
    if result is not None and result.status == "rejected":
        lines.append("<p>This submission could not be graded; the reason follows.</p>\n")
    return "".join(lines)


def _group(group: GroupResult, book: Gradebook | None, timings: Sequence[TimingResult]) -> str:
    points, highest = (book.points.get(group.id) if book else None) or (group.points, group.max_points)
    changed = "" if points == group.points else f" (the autograder gave {points_text(group.points)})"
    rows = "".join(_test(test) for test in group.tests)
    speed = speed_figure([timing for timing in timings if timing.group == group.id])
    example = ""
    if group.counterexample:
        example = f"<p>An example that you can try yourself:</p>\n<pre>{escape(group.counterexample)}</pre>\n"
    return (
        f"<h2>{escape(group.title)}</h2>\n<p>{points_text(points)} of {points_text(highest)} points{changed}</p>\n"
        f'<ul class="tests">\n{rows}</ul>\n{speed}{example}'
    )


def _test(test: TestResult) -> str:
    # The word says how it ended; the colour only repeats it.
    passed = test.verdict is Verdict.PASS
    message = f" {escape(test.message)}" if test.message and not passed else ""
    style = "good" if passed else "bad"
    return (
        f'<li><strong class="{style}">{escape(WORDS[test.verdict])}</strong>: {escape(title_of(test))}.{message}</li>\n'
    )
