"""How a counterexample is told: every call is written down as it is made.

Owns: the record of calls on one object, what counts as a refusal, and the result of one property. Knows nothing of any
lab. A property talks to the object through a `Story` only, so that a failure can always be told as the calls that led
to it, in the order they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, NoReturn

Make = Callable[..., Any]
"""Builds the object under test from its constructor's arguments."""

_SHOWN_CALLS = 12
_SHOWN_CHARS = 120


class CheckFailed(Exception):  # noqa: N818 - what a student reads is the name
    """At least one public property failed; what failed is printed above."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: one line in the notebook, since the frames of the checks would tell the reader nothing."""
        return [f"CheckFailed: {self}"]


class Broken(Exception):  # noqa: N818 - not an error of the program: the counterexample itself
    """A property does not hold; the message is the counterexample in words."""


class NotWritten(Exception):  # noqa: N818 - not an error of the program: an exercise still to do
    """The method named in the message still raises NotImplementedError."""


@dataclass(frozen=True)
class PropertyResult:
    """One property of one group. `counterexample` is empty when it passed."""

    name: str
    sentence: str
    passed: bool
    counterexample: str = ""


Property = Callable[[Make], None]
"""Returns if it holds and raises Broken or NotWritten if not; the first line of its docstring says what holds."""


@dataclass(frozen=True)
class Group:
    """The properties behind one locked cell of a notebook.

    needs: the functions that are tried, by name; none where it is one class. where: says what they ran on, if that
    depends on the machine.
    """

    title: str
    properties: tuple[Property, ...]
    needs: tuple[str, ...] = ()
    where: Callable[[], str] | None = None


def group(
    title: str, *properties: Property, needs: tuple[str, ...] = (), where: Callable[[], str] | None = None
) -> Group:
    """A group of `properties`, in the order they are printed."""
    return Group(title, properties, needs, where)


def sentence_of(prop: Property) -> str:
    """The first line of the docstring: what the student reads."""
    return (prop.__doc__ or prop.__name__).strip().splitlines()[0]


def shown(value: object) -> str:
    """`value` as a reader may see it: one line, printable, at most 120 characters."""
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__} that cannot be printed"
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."


def counted(count: int, thing: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def unwritten(stub: NotImplementedError, asked: str) -> str:
    """The function that is still a stub: the innermost frame, where it is ours to see, else the method `asked` for."""
    name, trace = asked, stub.__traceback__
    while trace is not None:
        # Frames of this package and of the grader only carry the call on.
        if not str(trace.tb_frame.f_globals.get("__name__", "")).startswith(("labkit.", "autograder.")):
            name = trace.tb_frame.f_code.co_name
        trace = trace.tb_next
    return name


class Story:
    """One object under test and what has been asked of it.

    `opening` starts the sentence, e.g. "With 4 blocks of 4 tokens"; `name` is the class under test.
    """

    def __init__(self, make: Make, name: str, args: tuple[int, ...], opening: str) -> None:
        self._opening = opening
        self._calls: list[str] = []
        try:
            self.subject = make(*args)
        except NotImplementedError as stub:
            raise NotWritten(unwritten(stub, "__init__")) from None
        except Exception as raised:
            self._calls.append(f"{name}({', '.join(map(str, args))})")
            self.broken(f"it was built without an error, got {error_of(raised)}")

    def call(self, method: str, *args: Any) -> Any:
        """Call and expect a value. Broken if it raises, NotWritten if the method is still a stub."""
        try:
            return self._call(method, args)
        except NotWritten:
            raise
        except Exception as raised:
            self.broken(f"this to be accepted, got {error_of(raised)}")

    def attempt(self, method: str, *args: Any) -> Exception | None:
        """Call where an error is as likely as a value: the exception, or None."""
        try:
            self._call(method, args)
        except NotWritten:
            raise
        except Exception as raised:
            return raised
        return None

    def refused(self, errors: type[Exception] | tuple[type[Exception], ...], method: str, *args: Any) -> None:
        """Call and expect one of `errors` (or a subclass of it); Broken otherwise."""
        kinds = errors if isinstance(errors, tuple) else (errors,)
        expected = " or ".join(kind.__name__ for kind in kinds)
        raised = self.attempt(method, *args)
        if raised is None:
            self.broken(f"{expected}, nothing was raised")
        if not isinstance(raised, kinds):
            self.broken(f"{expected}, got {error_of(raised)}")

    def get(self, attribute: str) -> int:
        """An attribute or property that must be an integer. It is not part of the told calls."""
        try:
            return index(getattr(self.subject, attribute))
        except NotImplementedError as stub:
            raise NotWritten(unwritten(stub, attribute)) from None
        except AttributeError:
            self.broken(f"an attribute or property {attribute}, found none")
        except Exception as raised:
            self.broken(f"{attribute} to be an integer (an attribute or property), got {error_of(raised)}")

    def peek(self, method: str, *args: Any) -> Any:
        """Call only to look: told in the story only if it goes wrong."""
        value = self.call(method, *args)
        self._calls.pop()
        return value

    def expect(self, holds: bool, expected: str) -> None:
        """Broken, with the calls so far and `expected`, unless `holds`."""
        if not holds:
            self.broken(expected)

    def broken_by(self, raised: Exception, method: str = "") -> NoReturn:
        """Turn an error of calls that were made past the story into NotWritten or Broken."""
        if isinstance(raised, NotImplementedError):
            raise NotWritten(unwritten(raised, method or "a method of this group")) from None
        self.broken(f"every call to be accepted, got {error_of(raised)}")

    def broken(self, expected: str) -> NoReturn:
        """Tell the counterexample: the opening, the last calls, and what was expected of them."""
        left_out = len(self._calls) - _SHOWN_CALLS
        calls = self._calls if left_out <= 0 else [f"after {left_out} earlier calls", *self._calls[-_SHOWN_CALLS:]]
        told = f"{self._opening}: {', '.join(calls)}" if calls else self._opening
        raise Broken(f"{told}: expected {expected}.")

    def _call(self, method: str, args: Sequence[Any]) -> Any:
        self._calls.append(f"{method}({', '.join(map(shown, args))})")
        try:
            return getattr(self.subject, method)(*args)
        except NotImplementedError as stub:
            raise NotWritten(unwritten(stub, method)) from None


def error_of(raised: BaseException) -> str:
    """The class of an error and what it says, on one line."""
    # KeyError prints its argument with quotes; the first argument reads better.
    text = shown(raised.args[0] if len(raised.args) == 1 else str(raised)) if raised.args else ""
    return f"{type(raised).__name__}: {text}" if text else type(raised).__name__
