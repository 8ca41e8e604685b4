"""Stock nbgrader commands for this course; the settings and their reasons stand in autograder/gradebook/config.py."""

from pathlib import Path

from autograder.gradebook.config import configure, tools_on_path

tools_on_path()
configure(get_config(), Path(__file__).parent)  # noqa: F821 - nbgrader gives the name
