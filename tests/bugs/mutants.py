"""Our own code, broken as real engines were: the machinery behind `make mutants`.

Owns: what a mutant is, how the reference is loaded with one in it, and how a test is run against that. Knows nothing of
any bug: the tests and their mutants stand together in the `test_*_bugs.py` files, the classes in `catalogue.py`.

A mutant is the reference with a few words changed in one module. To run a test on it, the whole of `reference_impl` is
imported anew, so that whoever depends on the changed module depends on the change; the file of the test is executed
anew too, so that its imports find the mutant; afterwards the real modules are back in their places. A parametrised
test is run with all its parameters, and one of them has to notice.
A test that only ever passes proves nothing, and neither does a mutant that cannot even be loaded: so each test must
pass when it is loaded this way without a change, and a mutant that breaks an import or a name is refused.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import itertools
import linecache
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

Test = Callable[..., None]

BUG = re.compile(r"test_bug_(\d\d)_\w+")
PACKAGE = "reference_impl"
TIME_LIMIT_S = 30.0
"""A mutant that never comes to an end is a mutant that the test has noticed, after this time."""


@dataclass(frozen=True)
class Mutant:
    """In the source of `module`, each old text, which must stand there once, is replaced by its new one.

    `test` is the test of the bug that this brings back, in whose file the mutant stands; `name` says what was changed.
    """

    name: str
    test: Test
    module: str
    changes: tuple[tuple[str, str], ...]

    @property
    def bug(self) -> int:
        """The number of the bug class, which the test has in its name."""
        return bug_of(self.test)


@dataclass(frozen=True)
class Death:
    """How a test noticed: the exception, and its first line or, where it has none, the line that raised it."""

    exception: str
    line: str

    def __str__(self) -> str:
        return f"{self.exception}: {self.line}"


class NotAMutant(Exception):  # noqa: N818 - it says what the thing is
    """The change does not apply, or the code cannot be loaded with it: that proves nothing about the test."""


class Endless(Exception):  # noqa: N818 - a death, not an error of ours
    """The test took longer than `TIME_LIMIT_S`."""


def bug_of(test: Test) -> int:
    """The number in the name of a test. ValueError if it has none."""
    match = BUG.fullmatch(test.__name__)
    if match is None:
        raise ValueError(f"{test.__name__} is not named test_bug_<two digits>_<words>")
    return int(match[1])


def run(test: Test, mutant: Mutant | None) -> Death | None:
    """Run `test` with all its parameters on the mutated reference, or on the real one; None if it passes.

    Raises: NotAMutant. Cost: one import of what the test needs, and the test.
    """
    with _loaded(Path(inspect.getfile(test)), mutant) as module:
        return outcome(getattr(module, test.__name__))


def outcome(test: Test) -> Death | None:
    """Run a test as it stands with all its parameters; how the first one failed, or None."""
    for arguments in parameters(test):
        try:
            with _time_limit(TIME_LIMIT_S):
                test(**arguments)
        except (NameError, ImportError, SyntaxError) as error:
            raise NotAMutant(f"{type(error).__name__}: {error}") from error
        except (Exception, pytest.fail.Exception) as error:
            return _death(error)
    return None


def parameters(test: Test) -> Iterator[dict[str, Any]]:
    """The arguments of every run that `pytest.mark.parametrize` asks for; one without any if it asks for none."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    for chosen in itertools.product(*map(_values, marks)):
        yield {name: value for part in chosen for name, value in part.items()}


def _values(mark: pytest.Mark) -> list[dict[str, Any]]:
    names = mark.args[0]
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    found = []
    for value in mark.args[1]:
        if hasattr(value, "marks") and hasattr(value, "values"):  # a pytest.param
            value = value.values if len(names) > 1 else value.values[0]
        found.append(dict(zip(names, value if len(names) > 1 else [value], strict=True)))
    return found


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module before everybody else does, and gives it other words."""

    def __init__(self, mutant: Mutant) -> None:
        self._module = mutant.module
        self._real = importlib.util.find_spec(mutant.module)
        if self._real is None or self._real.origin is None:
            raise NotAMutant(f"there is no module {mutant.module}")
        self._source = Path(self._real.origin).read_text(encoding="utf-8")
        for old, new in mutant.changes:
            times = self._source.count(old)
            if times != 1:
                raise NotAMutant(f"{old!r} stands {times} times in {mutant.module}, not once")
            self._source = self._source.replace(old, new)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._module:
            return None
        assert self._real is not None, "found when it was made"
        return importlib.util.spec_from_loader(
            name, self, origin="mutant", is_package=self._real.submodule_search_locations is not None
        )

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, f"<mutant of {self._module}>", "exec"), module.__dict__)


@contextmanager
def _loaded(path: Path, mutant: Mutant | None) -> Iterator[ModuleType]:
    """The file of a test, executed on a reference of its own. The real modules stand in their places afterwards."""
    finder = None if mutant is None else _Changed(mutant)
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
    module = ModuleType(f"mutated_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        if finder is not None:
            sys.meta_path.insert(0, finder)
        try:
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        except Exception as error:
            raise NotAMutant(f"it cannot be loaded: {type(error).__name__}: {error}") from error
        if mutant is not None and mutant.module not in sys.modules:
            raise NotAMutant(f"{path.name} does not use {mutant.module}")
        yield module
    finally:
        if finder is not None:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_ours(name)]:
            del sys.modules[name]
        del sys.modules[module.__name__]
        sys.modules.update(real)


def _is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Endless(f"no end after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _death(error: BaseException) -> Death:
    said = str(error).strip()
    if not said:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return Death(type(error).__name__, said.splitlines()[0] if said else "no words")
