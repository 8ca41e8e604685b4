"""Run the hidden tests on what must pass them: the reference and every honest design of the corpus.

Owns: the fixtures `make` and `seed` that the judge gives a student's object and seed for. Knows nothing of the judge.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autograder.course import load_module
from autograder.judge.functions import local_functions
from autograder.judge.subject import Make, local
from tests.triton_here import import_triton

CORPUS = Path(__file__).parents[1] / "submissions"
OURS = "our kernels"
EVERY_RUN = {"split_and_merge"}


def suite_of(folder: Path) -> Any:
    """The suite of the hidden tests in `folder`."""
    return load_module(folder / "suite.py", "suite")


def is_functions(folder: Path) -> bool:
    """Whether a submission to this lab is functions, which need Triton, and not a class."""
    return getattr(suite_of(folder), "KIND", "class") == "functions"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test on the reference, and one on each design in `tests/submissions/<lab>/correct`."""
    if "make" not in metafunc.fixturenames:
        return
    folder = metafunc.definition.path.parent
    designs: list[Any] = [*sorted((CORPUS / folder.name / "correct").glob("*.py"))]
    if is_functions(folder):
        # Triton's interpreter takes its time: one design stands for the others, which the long run tries too.
        designs = [OURS, *(d if d.stem in EVERY_RUN else pytest.param(d, marks=pytest.mark.long) for d in designs)]
    metafunc.parametrize("make", ["reference", *designs], ids=lambda d: getattr(d, "stem", d), indirect=True)


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Make:
    """Builds the object under test."""
    folder = request.path.parent
    ((name, module_name),) = suite_of(folder).REFERENCE.items()
    if getattr(request.module, "TIMED", False):
        pytest.skip("needs the clock of a grader with a GPU")
    if request.param == "reference":
        return local(getattr(import_module(module_name), name))
    if not is_functions(folder):
        return local(getattr(load_module(request.param, f"design_{request.param.stem}"), name))
    device = import_triton()
    if not device:
        pytest.skip("Triton is not installed here")
    if getattr(request.module, "DEVICE", device) != device:
        pytest.skip("needs an NVIDIA GPU, and torch finds none here")
    return local_functions(our_kernels() if request.param == OURS else design(request.param), device)


def our_kernels() -> Any:
    """The engine's own kernels under the names of lab 4."""
    from reference_impl.attention.paged_decode import paged_decode
    from reference_impl.attention.store_kv import store_kv

    return SimpleNamespace(store_kv=store_kv, paged_attention=paged_decode)


def design(path: Path) -> Any:
    """A submission's module, loaded once: a GPU compiles its kernels for every load."""
    if path not in _LOADED:
        _LOADED[path] = load_module(path, f"design_{path.stem}")
    return _LOADED[path]


_LOADED: dict[Path, Any] = {}


@pytest.fixture
def seed() -> int:
    """A fixed seed: what a failure here found, the next run finds again."""
    return 20260117
