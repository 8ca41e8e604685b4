"""The one place where nbgrader is told how this course works.

Owns: every traitlets setting, shared by `nbgrader_config.py` (the stock commands) and by `api` (the same thing in this
process). Knows nothing of any lab. nbgrader is adjusted through its own configuration only: no class of it is patched.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets.config import Config

if TYPE_CHECKING:
    from nbgrader.apps.api import NbGraderAPI  # type: ignore[import-untyped]

COURSE_ID = "padding-to-paging"
SOURCE_DIRECTORY = ".course/source"
"""Notebooks made from the text sources, with solutions. Generated, never committed, never released."""
RELEASE_DIRECTORY = "labs"
STUB = "# YOUR CODE HERE\nraise NotImplementedError()"

GENERATE = [
    "nbgrader.preprocessors.IncludeHeaderFooter",
    "nbgrader.preprocessors.LockCells",
    "nbgrader.preprocessors.ClearSolutions",
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.CheckCellMetadata",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.SaveCells",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbgrader.preprocessors.ClearMarkScheme",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.CheckCellMetadata",
    # Not stock: the same bytes every time.
    "autograder.release.normalise.StableNotebook",
]
AUTOGRADE = [
    "autograder.gradebook.preprocessors.JudgeSubmission",
    "nbgrader.preprocessors.LimitOutput",
    "autograder.gradebook.preprocessors.SaveJudgedGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]


def configure(config: Config, project: Path, *, sandbox: str = "auto", runner: str = "local") -> Config:
    """Fill `config` for the course whose labs and hidden tests lie in `project`.

    `project` may differ from nbgrader's course directory (`--course-dir`): a sample class, or a term's submissions.
    """
    project = project.resolve()
    config.CourseDirectory.course_id = COURSE_ID
    config.CourseDirectory.source_directory = SOURCE_DIRECTORY
    config.CourseDirectory.release_directory = RELEASE_DIRECTORY
    config.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", ".pytest_cache", "feedback", "*.md"]
    config.ClearSolutions.code_stub = {"python": STUB}
    config.ClearSolutions.text_stub = "Your answer here."
    config.GenerateAssignment.preprocessors = GENERATE
    # Reads a submission with limits, and gives a well-formed notebook whatever was handed in.
    config.Autograde.exporter_class = "autograder.gradebook.exporter.JudgeExporter"
    config.Autograde.sanitize_preprocessors = ["nbgrader.preprocessors.OverwriteCells"]
    config.Autograde.autograde_preprocessors = AUTOGRADE
    config.JudgeExporter.project = str(project)
    config.JudgeExporter.sandbox = sandbox
    config.JudgeExporter.runner = runner
    # A page without scripts and without a network; the stock template loads scripts from a CDN.
    config.GenerateFeedback.exporter_class = "autograder.gradebook.feedback.FeedbackExporter"
    config.GenerateFeedback.preprocessors = ["nbgrader.preprocessors.GetGrades"]
    # formgrader renders students' Markdown in the instructor's browser.
    config.HTMLExporter.sanitize_html = True
    config.ExportApp.plugin_class = "autograder.gradebook.export.SafeCsvExportPlugin"
    config.ExchangeFactory.collect = "autograder.gradebook.collect.SafeCollect"
    return config


def tools_on_path() -> None:
    """Put this environment's scripts on PATH: nbgrader makes a new database by calling `alembic` by name."""
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")


def api(
    root: Path,
    project: Path | None = None,
    *,
    sandbox: str = "auto",
    runner: str = "local",
    known: Mapping[str, Mapping[str, Any]] | None = None,
    **coursedir: Any,
) -> NbGraderAPI:
    """nbgrader in this process for the course directory `root`, configured as the stock commands are.

    `known` holds results as JSON by the path of the submission, so that what was just judged is not judged again.
    `coursedir` overrides traits of nbgrader's CourseDirectory, e.g. `release_directory`.
    """
    from nbgrader.apps.api import NbGraderAPI
    from nbgrader.coursedir import CourseDirectory  # type: ignore[import-untyped]

    tools_on_path()
    # nbgrader looks at a new submission before it has added it; harmless, and not for the eyes of staff.
    warnings.filterwarnings("ignore", message=r"Object of type <Submitted\w+> not in session")
    config = configure(Config(), project or root, sandbox=sandbox, runner=runner)
    config.JudgeExporter.known = {path: dict(result) for path, result in (known or {}).items()}
    config.NbGraderAPI.log_level = "WARN"
    for name, value in coursedir.items():
        setattr(config.CourseDirectory, name, value)
    directory = CourseDirectory(config=config, root=str(root.resolve()))
    return NbGraderAPI(coursedir=directory, config=config)
