"""A course with one small lab in a temporary folder, and a judge of the test's own.

The judge here reads points from the submitted text, so that the nbgrader side is tested by itself;
`test_real_judge.py` runs the same chain with the sandbox.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autograder.gradebook import autograde as autograde_module
from autograder.gradebook import config, preprocessors
from autograder.intake import Rejected, read_regular
from autograder.judge.verdicts import GroupResult, SubmissionResult, TestResult, TimingResult, Verdict
from autograder.release import labs

LAB = "mini"
GROUPS = {"tables": 10.0, "growth": 5.0}
SOURCE = """---
kernelspec:
  name: python3
  display_name: Python 3
---

# A small lab

```{code-cell} ipython3
---
nbgrader: {grade: false, grade_id: answer, locked: false, schema_version: 3, solution: true, task: false}
---
class BlockAllocator:
    ### BEGIN SOLUTION
    blocks_of_the_model_answer = 1
    ### END SOLUTION
```

```{code-cell} ipython3
---
nbgrader: {grade: true, grade_id: tables, locked: true, points: 10, schema_version: 3, solution: false, task: false}
---
# Graded by hidden tests: tables.
```

```{code-cell} ipython3
---
nbgrader: {grade: true, grade_id: growth, locked: true, points: 5, schema_version: 3, solution: false, task: false}
---
# Graded by hidden tests: growth.
```
"""


class FakeJudge:
    """Grades by a remark in the text, and counts how often it was asked for each path."""

    def __init__(self) -> None:
        self.asked: list[Path] = []
        self.infra: set[str] = set()
        self.flags: tuple[str, ...] = ()
        self.timings: tuple[TimingResult, ...] = ()

    def __call__(self, project: Path, lab: str, paths: Any, **_: Any) -> list[SubmissionResult]:
        return [self._one(lab, path) for path in paths]

    def _one(self, lab: str, path: Path) -> SubmissionResult:
        self.asked.append(path)
        names: dict[str, Any] = {
            "lab": lab, "submission": str(path), "suite": "1", "seed_id": "s", "device": "cpu", "seconds": 0.1,
        }  # fmt: skip
        if path.parent.parent.name in self.infra:
            return SubmissionResult(**names, sha256="", status="infra", flags=("INFRA: no sandbox",))
        try:
            text = read_regular(path, 1 << 22).decode("utf-8", "replace")
            json.loads(text)
        except (Rejected, ValueError, RecursionError) as error:
            return SubmissionResult(**names, sha256="", status="rejected", flags=(f"cannot be read: {error}",))
        groups = []
        for group, points in GROUPS.items():
            found = re.search(rf"points: {group}=(\d)", text)
            passed = int(found[1]) if found else 0
            tests = tuple(
                TestResult(
                    f"{group} test {i}",
                    Verdict.PASS if i < passed else Verdict.WRONG,
                    "" if i < passed else "It differs.",
                )
                for i in range(2)
            )
            groups.append(GroupResult(group, f"Title of {group}", points, tests))
        return SubmissionResult(
            **names,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            status="graded",
            groups=tuple(groups),
            flags=self.flags,
            timings=self.timings,
        )


@pytest.fixture(scope="session")
def made_course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the small lab released and entered in its gradebook; copied by each test."""
    root = tmp_path_factory.mktemp("course") / "made"
    text = root / "solutions" / LAB / f"{LAB}.md"
    text.parent.mkdir(parents=True)
    text.write_text(SOURCE)
    (root / "_toc.yml").write_text("")
    labs.write_labs(root)
    return root


@pytest.fixture
def course(made_course: Path, tmp_path: Path) -> Path:
    import shutil

    root = tmp_path / "course"
    shutil.copytree(made_course, root)
    return root


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    fake = FakeJudge()
    monkeypatch.setattr(preprocessors, "judge", fake)
    monkeypatch.setattr(autograde_module, "judge", fake)
    return fake


Submit = Callable[..., Path]


@pytest.fixture
def submit(course: Path) -> Submit:
    """`submit(student, solution="...", edit=function of the notebook)` puts a submission into submitted/."""

    def put(student: str, solution: str = "", edit: Callable[[Any], Any] | None = None, content: Any = None) -> Path:
        folder = course / "submitted" / student / LAB
        folder.mkdir(parents=True)
        path = folder / f"{LAB}.ipynb"
        if content is None:
            notebook = json.loads((course / "labs" / LAB / f"{LAB}.ipynb").read_text())
            cell(notebook, "answer")["source"] = solution
            if edit:
                edit(notebook)
            content = json.dumps(notebook)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def cell(notebook: Any, grade_id: str) -> Any:
    """The first cell with this id."""
    return next(c for c in notebook["cells"] if c["metadata"].get("nbgrader", {}).get("grade_id") == grade_id)


def stock_autograde(root: Path) -> Any:
    """What `nbgrader autograde mini` does, in this process: one converter for the whole class."""
    from nbgrader.converters import Autograde
    from nbgrader.utils import capture_log

    api = config.api(root)
    api.coursedir.assignment_id = LAB
    return capture_log(Autograde(coursedir=api.coursedir, parent=api))


def scores(root: Path) -> dict[str, float]:
    """Student -> score in the gradebook."""
    with config.api(root).gradebook as book:
        return {s.student.id: round(s.score, 2) for s in book.assignment_submissions(LAB)}


FULL = "# points: tables=2\n# points: growth=2"
HALF = "# points: tables=1"
