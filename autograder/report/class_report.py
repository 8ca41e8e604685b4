"""What a class did, for the instructor: one HTML page and one CSV file.

Owns: the distribution of scores, which groups and which tests fail, and the list of submissions. Figures are vector
graphics with the same numbers in a table beside them. Says nothing of a student beyond name, points and remarks.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from autograder.judge.verdicts import GroupResult, SubmissionResult, Verdict
from autograder.report.page import escape, page
from autograder.report.spreadsheet import safe_field
from autograder.report.text import WORDS, points_text, title_of

Named = tuple[str, SubmissionResult]
BINS = 10
BAR_WIDTH, BAR_HEIGHT, ROW = 44, 140, 24


def write_class_report(lab: str, results: Sequence[Named], folder: Path) -> tuple[Path, Path]:
    """Write `<lab>.html` and `<lab>.csv` to `folder`; `results` are (student, result). Returns both paths.

    Raises: ValueError if there is no result.
    """
    if not results:
        raise ValueError(f"no graded submission to {lab}: run `course autograde {lab}` first")
    folder.mkdir(parents=True, exist_ok=True)
    document, table = folder / f"{lab}.html", folder / f"{lab}.csv"
    document.write_text(class_page(lab, results), encoding="utf-8")
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([safe_field(value) for value in row] for row in csv_rows(results))
    return document, table


def csv_rows(results: Sequence[Named]) -> list[list[object]]:
    """A heading, and one row a student: status, points of each group, total, highest, remarks."""
    names = [group.id for group in _groups(results)]
    rows: list[list[object]] = [["student", "status", *names, "score", "max_score", "remarks"]]
    highest = sum(group.max_points for group in _groups(results))
    for student, result in results:
        points = {group.id: group.points for group in result.groups}
        rows.append(
            [
                student,
                result.status,
                *(points.get(name, 0.0) for name in names),
                result.score,
                highest,
                _remarks(result),
            ]
        )
    return rows


def class_page(lab: str, results: Sequence[Named]) -> str:
    """The page as one HTML document."""
    highest = sum(group.max_points for group in _groups(results))
    scores = [result.score for _, result in results]
    body = [
        f"<h1>Class report: {escape(lab)}</h1>\n",
        f"<p>{len(results)} submissions. Median {points_text(_median(scores))} of {points_text(highest)} points.</p>\n",
        _kinds_of_gpu(results),
        "<h2>Scores</h2>\n",
        _histogram(scores, highest),
        "<h2>Points by group</h2>\n",
        _group_bars(results),
        "<h2>Tests that fail most</h2>\n",
        _failing_tests(results),
        "<h2>Submissions</h2>\n",
        _submissions(results),
    ]
    return page(f"Class report: {lab}", "".join(body))


def _kinds_of_gpu(results: Sequence[Named]) -> str:
    """On what speed was graded; a warning if that was not the same for all."""
    kinds = Counter(result.gpu for _, result in results if result.gpu)
    told = ", ".join(f"{count} on {escape(kind)}" for kind, count in kinds.most_common())
    if len(kinds) < 2:
        return f"<p>Speed was graded: {told}.</p>\n" if kinds else ""
    return (
        f'<p class="remark">Speed was graded on GPUs of {len(kinds)} kinds: {told}. A share of the read ceiling on one '
        "says little of another: grade these submissions again on machines of one kind.</p>\n"
    )


def _groups(results: Sequence[Named]) -> tuple[GroupResult, ...]:
    """The groups of the first result that has any; a rejected submission has none."""
    return next((result.groups for _, result in results if result.groups), ())


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _bin(score: float, highest: float) -> int:
    """Which tenth of the points a score lies in; full marks belong to the last one."""
    return min(BINS - 1, int(BINS * score / highest)) if highest else 0


def _histogram(scores: Sequence[float], highest: float) -> str:
    counts = Counter(_bin(score, highest) for score in scores)
    tallest = max(counts.values())
    labels = [f"{points_text(i * highest / BINS)}-{points_text((i + 1) * highest / BINS)}" for i in range(BINS)]
    bars = []
    for i, label in enumerate(labels):
        height = BAR_HEIGHT * counts[i] / tallest
        x, y = i * BAR_WIDTH, BAR_HEIGHT - height + 16
        bars.append(f'<rect class="bar" x="{x + 4}" y="{y:.1f}" width="{BAR_WIDTH - 8}" height="{height:.1f}"/>')
        bars.append(f'<text x="{x + BAR_WIDTH / 2}" y="{y - 4:.1f}" text-anchor="middle">{counts[i] or ""}</text>')
        bars.append(f'<text x="{x + BAR_WIDTH / 2}" y="{BAR_HEIGHT + 32}" text-anchor="middle">{label}</text>')
    words = "; ".join(f"{label}: {counts[i]}" for i, label in enumerate(labels) if counts[i])
    return _svg(BINS * BAR_WIDTH, BAR_HEIGHT + 40, f"Number of submissions by points. {words}.", bars)


def _group_bars(results: Sequence[Named]) -> str:
    """Mean share of the points of each group, as a bar and as a number."""
    bars, rows = [], []
    groups = _groups(results)
    for i, group in enumerate(groups):
        earned = [g.points for _, result in results for g in result.groups if g.id == group.id]
        share = sum(earned) / (len(results) * group.max_points) if group.max_points else 0.0
        y = i * ROW
        bars.append(f'<text x="0" y="{y + 16}">{escape(group.id)}</text>')
        bars.append(f'<rect class="frame" x="130" y="{y + 4}" width="300" height="{ROW - 8}"/>')
        bars.append(f'<rect class="bar" x="130" y="{y + 4}" width="{300 * share:.1f}" height="{ROW - 8}"/>')
        rows.append(f'<tr><th scope="row">{escape(group.title)}</th><td class="number">{share:.0%}</td></tr>\n')
    figure = _svg(440, ROW * len(groups), "Mean share of the points of each group; the table has the numbers.", bars)
    head = '<tr><th scope="col">group</th><th scope="col">mean share</th></tr>\n'
    return f"{figure}<table>\n{head}{''.join(rows)}</table>\n"


def _failing_tests(results: Sequence[Named]) -> str:
    failed: Counter[tuple[str, str]] = Counter()
    ends: dict[tuple[str, str], Counter[Verdict]] = {}
    graded = [result for _, result in results if result.status == "graded"]
    for result in graded:
        for group in result.groups:
            for test in group.tests:
                if test.counts and test.verdict is not Verdict.PASS:
                    failed[group.id, title_of(test)] += 1
                    ends.setdefault((group.id, title_of(test)), Counter())[test.verdict] += 1
    if not failed:
        return "<p>Every test passed for everybody.</p>\n" if graded else "<p>No test ran.</p>\n"
    rows = []
    for (group_id, name), count in failed.most_common(20):
        how = ", ".join(f"{WORDS[verdict]} {n}" for verdict, n in ends[group_id, name].most_common())
        rows.append(
            f"<tr><td>{escape(group_id)}</td><td>{escape(name)}</td>"
            f'<td class="number">{count}</td><td>{escape(how)}</td></tr>\n'
        )
    head = "".join(f'<th scope="col">{title}</th>' for title in ("group", "test", "failed", "how it ended"))
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{"".join(rows)}</table></div>\n'


def _submissions(results: Sequence[Named]) -> str:
    heading, *rows = csv_rows(results)
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in heading)
    lines = []
    for row in rows:
        cells = "".join(
            f'<td class="number">{points_text(value)}</td>' if isinstance(value, float) else f"<td>{escape(value)}</td>"
            for value in row[1:]
        )
        lines.append(f'<tr><th scope="row">{escape(row[0])}</th>{cells}</tr>\n')
    return f'<div class="wide" tabindex="0"><table>\n<tr>{head}</tr>\n{"".join(lines)}</table></div>\n'


def _remarks(result: SubmissionResult) -> str:
    return "; ".join(result.flags)


def _svg(width: int, height: int, words: str, shapes: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg role="img" aria-label="{escape(words)}" {size}>\n' + "\n".join(shapes) + "\n</svg>\n"
