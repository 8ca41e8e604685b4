"""`nbgrader generate_feedback` as one safe page per student.

Owns: handing an autograded notebook and the gradebook's side of it to `autograder.report.html`. The stock template
shows a student's Markdown as HTML and loads scripts from elsewhere; this page does neither.
"""

from __future__ import annotations

from typing import Any

from nbconvert.exporters import Exporter

from autograder.gradebook.exporter import STAMP
from autograder.judge.verdicts import SubmissionResult
from autograder.report.html import Feedback, Gradebook, feedback_page


class FeedbackExporter(Exporter):
    """Turns an autograded notebook, after nbgrader's `GetGrades`, into the feedback page."""

    output_mimetype = "text/html"

    def _file_extension_default(self) -> str:
        return ".html"

    def from_notebook_node(self, nb: Any, resources: Any = None, **kw: Any) -> Any:
        notebook, resources = super().from_notebook_node(nb, resources, **kw)
        stamp = notebook.metadata.get(STAMP)
        names = resources["nbgrader"]
        feedback = Feedback(
            student=names["student"],
            lab=names["assignment"],
            result=SubmissionResult.from_json(stamp) if stamp else None,
            gradebook=_gradebook(notebook, names),
            cells=[(cell.cell_type, cell.source) for cell in notebook.cells],
        )
        return feedback_page(feedback), resources


def _gradebook(notebook: Any, names: Any) -> Gradebook:
    """Scores and comments that `GetGrades` left in the cells."""
    points = {}
    comments = []
    for cell in notebook.cells:
        meta = cell.metadata.get("nbgrader", {})
        if meta.get("grade") or meta.get("task"):
            points[meta["grade_id"]] = (float(meta.get("score") or 0.0), float(meta.get("points") or 0.0))
        if meta.get("comment"):
            comments.append(str(meta["comment"]))
    return Gradebook(points, float(names.get("late_penalty") or 0.0), comments)
