"""The judge in place of nbgrader's kernel, and its verdicts in nbgrader's database.

Owns: what is written into the autograded notebook and which columns of the gradebook are set. A manual score, a comment
or extra credit is never touched, so they survive a regrade.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import nbformat
from nbgrader.preprocessors import NbGraderPreprocessor, SaveAutoGrades  # type: ignore[import-untyped]
from nbgrader.utils import is_solution  # type: ignore[import-untyped]

from autograder.gradebook.exporter import STAMP
from autograder.gradebook.judging import JudgeUnavailable, judge
from autograder.intake import Rejected, read_regular
from autograder.judge.verdicts import SubmissionResult, Verdict
from autograder.report.text import clean, clean_values, group_text, heading_text
from autograder.sandbox.limits import Limits


class JudgeSubmission(NbGraderPreprocessor):  # type: ignore[misc]
    """Takes the place of `Execute`: no kernel starts. The result goes to `resources["judged"]` and, as text, to the
    locked cells. Raises: JudgeUnavailable if the fault is ours, so that nothing is scored and the next run tries again.
    """

    def preprocess(self, nb: Any, resources: Any) -> tuple[Any, Any]:
        names = resources["nbgrader"]
        path = Path(resources["submission"])
        exporter = self.parent
        result = known_result(exporter.known.get(str(path)), path)
        if result is None:
            lab, sandbox, runner = names["assignment"], exporter.sandbox, exporter.runner
            [result] = judge(exporter.project_path, lab, [path], sandbox=sandbox, runner=runner)
        if result.status == "infra":
            raise JudgeUnavailable(clean(f"{path} could not be judged: {'; '.join(result.flags) or 'no reason given'}"))
        show_result(nb, result)
        resources["judged"] = result
        return nb, resources


def known_result(known: dict[str, Any] | None, path: Path) -> SubmissionResult | None:
    """The result that was handed over with the configuration, if the file is still the one that was judged."""
    if known is None or known["status"] != "graded":
        return None
    try:
        content = read_regular(path, Limits().submission_bytes)
    except Rejected:
        return None
    same = hashlib.sha256(content).hexdigest() == known["sha256"]
    return SubmissionResult.from_json(known) if same else None


def show_result(notebook: Any, result: SubmissionResult) -> None:
    """Leave the report of `result` as plain text in the locked cells' outputs, and all of it in the metadata."""
    groups = {group.id: group for group in result.groups}
    heading = heading_text(result)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = []
        cell.execution_count = None
        nbgrader = cell.metadata.get("nbgrader", {})
        if not nbgrader.get("grade", False) or is_solution(cell):
            continue
        group = groups.get(nbgrader["grade_id"])
        text = heading + (group_text(group, result.timings) if group else "Not graded: see the remark above.\n")
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]  # type: ignore[no-untyped-call]
        heading = ""
    notebook.metadata[STAMP] = clean_values(result.to_json())


class SaveJudgedGrades(SaveAutoGrades):  # type: ignore[misc]
    """Takes the place of `SaveAutoGrades`: points come from the verdicts, never from a cell's output."""

    def _add_score(self, cell: Any, resources: Any) -> None:
        result: SubmissionResult = resources["judged"]
        grade_id = cell.metadata["nbgrader"]["grade_id"]
        if is_solution(cell):
            # A written answer: graded by a human, as in stock nbgrader.
            super()._add_score(cell, resources)
            return
        group = next((group for group in result.groups if group.id == grade_id), None)
        if group is None and result.status != "rejected":
            raise JudgeUnavailable(f"the hidden tests have no group {grade_id!r}, which the notebook grades")
        grade = self.gradebook.find_grade(grade_id, self.notebook_id, self.assignment_id, self.student_id)
        grade.auto_score = group.points if group else 0.0
        noisy = group is not None and any(test.verdict is Verdict.INCONCLUSIVE for test in group.tests)
        # As in stock nbgrader, a score that a human gave is kept and shown for review.
        grade.needs_manual_grade = grade.manual_score is not None or noisy
        self.gradebook.db.commit()
