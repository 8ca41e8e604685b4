"""`nbgrader export` that a spreadsheet cannot be tricked with.

Owns: the CSV file. Stock nbgrader joins fields with commas unquoted, so a comma in a name shifts columns and a name
that begins with `=` becomes a formula. Columns and their order are those of the stock plugin.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from nbgrader.api import Gradebook, MissingEntry  # type: ignore[import-untyped]
from nbgrader.plugins import ExportPlugin  # type: ignore[import-untyped]

from autograder.report.spreadsheet import safe_field

COLUMNS = (
    "assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email",
    "raw_score", "late_submission_penalty", "score", "max_score",
)  # fmt: skip


class SafeCsvExportPlugin(ExportPlugin):  # type: ignore[misc]
    """Grades of every student and assignment as quoted CSV; to `grades.csv`, or to `--to`."""

    def export(self, gradebook: Gradebook) -> None:
        destination = Path(self.to or "grades.csv")
        self.log.info("Exporting grades to %s", destination)
        with destination.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, quoting=csv.QUOTE_MINIMAL)
            writer.writerow(COLUMNS)
            for row in self._rows(gradebook):
                writer.writerow([safe_field(row.get(column)) for column in COLUMNS])

    def _rows(self, gradebook: Gradebook) -> list[dict[str, Any]]:
        assignments, students = map(str, self.assignment), {str(name) for name in self.student}
        wanted = set(assignments)
        return [
            _row(gradebook, assignment, student)
            for assignment in gradebook.assignments
            if not wanted or assignment.name in wanted
            for student in gradebook.students
            if not students or student.id in students
        ]


def _row(gradebook: Gradebook, assignment: Any, student: Any) -> dict[str, Any]:
    """One line; a student who handed in nothing has zero."""
    row = {
        "assignment": assignment.name,
        "duedate": assignment.duedate,
        "student_id": student.id,
        "last_name": student.last_name,
        "first_name": student.first_name,
        "email": student.email,
        "max_score": assignment.max_score,
        "raw_score": 0.0,
        "late_submission_penalty": 0.0,
        "score": 0.0,
    }
    try:
        submission = gradebook.find_submission(assignment.name, student.id)
    except MissingEntry:
        return row
    penalty = submission.late_submission_penalty or 0.0
    raw = round(submission.score, 2)
    return {
        **row,
        "timestamp": submission.timestamp,
        "raw_score": raw,
        "late_submission_penalty": penalty,
        "score": max(0.0, round(raw - penalty, 2)),
    }
