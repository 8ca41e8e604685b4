"""The object under test, in this process or in the sandbox, behind one interface.

Owns: how a hidden test talks to an implementation. A test calls methods on a `Subject` and gets plain values back; it
cannot tell whether the object lives here (`LocalSubject`: the reference, the baselines) or in the student's worker
(`autograder.judge.remote.RemoteSubject`). That is how the same test file runs on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

Call = tuple[str, tuple[Any, ...]]
"""A method name and its positional arguments."""


class Subject(Protocol):
    """One object under test. Methods of the contract are called as on the object itself: `subject.append(1, 3)`."""

    def __getattr__(self, name: str) -> Any:
        """A method of the contract, or the value of an attribute or property of it."""

    def scribbled(self, method: str, *args: Any) -> Any:
        """Call `method`, and afterwards ruin the very list it returned, as a careless caller would. Gives the value
        from before."""

    def timed_answers(self, calls: Sequence[Call]) -> tuple[float, list[Any]]:
        """Seconds that the calls take one after another, by the clock of the judge, and their answers.

        Speed counts only with the work, so look at them. Tuples may come as lists. An error in a call is raised.
        """

    def timed_batch_s(self, calls: Sequence[Call]) -> float:
        """The seconds of `timed_answers`, for calls whose work is looked at later."""


Make = Callable[..., Subject]
"""Builds a subject from the constructor's arguments; what a hidden test is given."""


class LocalSubject:
    """A subject in this process, for the reference, the baselines and honest designs of our own."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def scribbled(self, method: str, *args: Any) -> Any:
        value = getattr(self._target, method)(*args)
        before = list(value)
        value.reverse()
        value.append(-1)
        return before

    def timed_answers(self, calls: Sequence[Call]) -> tuple[float, list[Any]]:
        start = time.perf_counter()
        answers = [getattr(self._target, name)(*args) for name, args in calls]
        return time.perf_counter() - start, answers

    def timed_batch_s(self, calls: Sequence[Call]) -> float:
        return self.timed_answers(calls)[0]


def local(factory: Callable[..., Any]) -> Make:
    """A `Make` for a class in this process."""

    def make(*args: Any) -> Subject:
        return LocalSubject(factory(*args))

    return make


@contextmanager
def refuses(error: type[Exception], otherwise: str) -> Iterator[None]:
    """The block must raise `error`; if it raises nothing, or another error, the test is WRONG with `otherwise`.

    `otherwise` is read by students: one sentence on what should have been refused, without a hidden number.
    """
    try:
        yield
    except error:
        return
    except Exception as raised:
        # Only a public name may stand in a message: an exception's own name could carry hidden inputs out.
        public = next(
            (c.__name__ for c in type(raised).__mro__ if c.__module__ in ("builtins", "labkit.contracts")), ""
        )
        raise AssertionError(f"{otherwise}: expected {error.__name__}, got {public}") from raised
    raise AssertionError(f"{otherwise}: expected {error.__name__}, nothing was raised")
