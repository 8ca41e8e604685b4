"""Run the hidden tests on what must pass them: the reference and every honest design of the corpus.

Owns: the fixtures `make` and `seed` that the judge gives a student's object and seed for. Knows nothing of the judge.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from autograder.course import load_module
from autograder.judge.subject import Make, local

CORPUS = Path(__file__).parents[1] / "submissions"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test on the reference, and one on each design in `tests/submissions/<lab>/correct`."""
    if "make" not in metafunc.fixturenames:
        return
    lab = metafunc.definition.path.parent.name
    designs = sorted((CORPUS / lab / "correct").glob("*.py"))
    metafunc.parametrize("make", ["reference", *designs], ids=lambda d: getattr(d, "stem", d), indirect=True)


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Make:
    """Builds the object under test."""
    suite = load_module(request.path.parent / "suite.py", "suite")
    ((name, module_name),) = suite.REFERENCE.items()
    if request.param == "reference":
        return local(getattr(import_module(module_name), name))
    return local(getattr(load_module(request.param, f"design_{request.param.stem}"), name))


@pytest.fixture
def seed() -> int:
    """A fixed seed: what a failure here found, the next run finds again."""
    return 20260117
