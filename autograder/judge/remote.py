"""The student's object behind the wire, and the life of the workers that hold it.

Owns: starting workers, loading the student's cells into them, deadlines, and turning what comes back into plain
values, public exceptions or the end of a test. After a worker is lost the next test gets a fresh one. Knows nothing
of points.
"""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autograder.intake import Cell
from autograder.judge.subject import Call, Subject
from autograder.judge.verdicts import Verdict
from autograder.sandbox.launch import Connection, WorkerGone
from autograder.sandbox.limits import Limits
from autograder.worker import wire
from labkit.contracts import OutOfBlocks

FLAGS_MAX, FLAG_CHARS_MAX, LINE_MAX = 40, 400, 10_000_000


class TestEnded(BaseException):
    """The test cannot go on; `verdict` says how it ended. Not an Exception: no test and no library may swallow it."""

    __test__ = False

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message


class StudentRaised(Exception):  # noqa: N818 - what happened
    """Mixed into every exception that came from the student's code, so that it is told from a fault of ours."""


PUBLIC_ERRORS: dict[str, type[Exception]] = {
    name: value
    for name, value in vars(builtins).items()
    # Those two kinds cannot be built without arguments, which stay behind.
    if isinstance(value, type)
    and issubclass(value, Exception)
    and not issubclass(value, (UnicodeError, BaseExceptionGroup))
} | {"OutOfBlocks": OutOfBlocks}


def rebuilt(error: Any) -> Exception:
    """The exception of an `error` reply as a local object of the nearest public classes: several, where one of the
    student's has several bases. Its message stays behind: the student's text could carry what a hidden test passed in.
    """
    bases = error.get("bases") if isinstance(error, dict) else None
    names = [name for name in bases or () if isinstance(name, str)]
    public = list(dict.fromkeys(PUBLIC_ERRORS[name] for name in names if name in PUBLIC_ERRORS))
    nearest = [one for one in public if not any(issubclass(other, one) for other in public if other is not one)]
    first, *_ = nearest = nearest or [Exception]
    try:
        made: Exception = type(first.__name__, (StudentRaised, *nearest), {"__module__": "builtins"})()
    except TypeError:
        # No class can have all of them, so no student's had: the worker was made to say so.
        made = type(first.__name__, (StudentRaised, first), {"__module__": "builtins"})()
    return made


@dataclass(frozen=True)
class Plan:
    """What a session runs: the cells, where, and under which caps."""

    cells: tuple[Cell, ...]
    tier: str
    limits: Limits
    packages: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    gpu: bool = False


class Session:
    """The workers of one submission, one at a time. `start` is called by the clock of this process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.flags: list[str] = []
        self.generation = 0
        self.garbage: list[int] = []
        self.hurry = False
        """Whether every call has the short deadline: set for public counterexamples, which are a courtesy."""
        self.sealed = False
        """Whether hidden values may be known to student code, so that nothing it says is shown any more."""
        self._connection: Connection | None = None
        self._timeouts = 0
        self._skipped: set[str] = set()
        self._late: set[str] = set()
        """Cells that did not end once."""
        self._ends_at = time.monotonic() + plan.limits.total_s

    def worker(self) -> Connection:
        """The running worker, or a fresh one with the student's cells loaded."""
        if self._connection is None:
            self._start()
        assert self._connection is not None
        return self._connection

    def _start(self) -> None:
        """Load every cell; one that kills the worker, or twice does not end, is left out and the rest loaded again."""
        limits = self.plan.limits
        while True:
            if self.generation >= limits.restarts:
                raise TestEnded(Verdict.NOT_RUN, "the worker had to be started too often")
            self._check_budget()
            self.generation += 1
            connection = Connection(self.plan.tier, limits, self.plan.packages, self.plan.environment, self.plan.gpu)
            try:
                loaded = self._load(connection)
            except BaseException:
                connection.close()
                raise
            if loaded:
                self._connection = connection
                return

    def _load(self, connection: Connection) -> bool:
        for cell in self.plan.cells:
            if cell.name in self._skipped:
                continue
            self._check_budget()
            try:
                self._run_cell(connection, cell)
            except WorkerGone as gone:
                # Once may be the machine's doing: much of the time is not the cell's but that of what it imports.
                if gone.kind == "deadline" and cell.name not in self._late:
                    self._late.add(cell.name)
                    return False
                self._skipped.add(cell.name)
                how = {"deadline": f"ran longer than {self.plan.limits.load_cell_s:g} s", "died": "ended its process"}
                self.note(f"{cell.name} {how.get(gone.kind, 'broke the protocol')} and was left out")
                return False
        return True

    def _run_cell(self, connection: Connection, cell: Cell) -> None:
        """Run one cell; an error in it is a remark, as in a notebook run with "allow errors"."""
        # Never past the end of the budget, so that many slow cells cannot add up.
        deadline_s = min(self.plan.limits.load_cell_s, self._ends_at - time.monotonic())
        reply = connection.request(deadline_s, op="exec", name=cell.name, source=cell.source)
        error = reply.get("error")
        if _is_syntax_error(error) and cell.plain not in ("", cell.source):
            reply = connection.request(deadline_s, op="exec", name=cell.name, source=cell.plain)
            error = reply.get("error")
            if not error:
                self.note(f"{cell.name}: lines for the notebook only (%, !, ?) were left out")
        if isinstance(error, dict) and not cell.ours:
            self.note(f"{cell.name} stopped at line {_line(error)}: {_short(error)}")

    def note(self, flag: str) -> None:
        """A remark for the feedback, once: every fresh worker loads the same cells again.

        None is taken once hidden tests have run. A worker that met one may leave a sign in the machine, the page cache
        say, and the next one could spell it out in the error of a cell.
        """
        if not self.sealed and flag not in self.flags and len(self.flags) < FLAGS_MAX:
            self.flags.append(flag[:FLAG_CHARS_MAX])

    def ask(self, generation: int, **message: Any) -> Any:
        """The value of one request to the worker that holds the object. Raises: what the student's code raised, or
        TestEnded. Objects die with their worker, so a request for an older worker ends the test as well."""
        if self._connection is None or generation != self.generation:
            raise TestEnded(Verdict.CRASHED, "the object was lost when its process ended")
        connection = self._connection
        deadline_s = self._deadline_s(message["op"])
        dropped, self.garbage = self.garbage, []
        try:
            reply = connection.request(deadline_s, drop=dropped, **message)
            if "ok" in reply:
                return wire.decode(reply["ok"])
        except WorkerGone as gone:
            self._lose()
            raise self._ended(gone, deadline_s) from None
        except wire.WireError as error:
            self._lose()
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, f"the answer could not cross: {error}") from None
        if "refused" in reply:
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, "the answer holds something too large or too deep to cross")
        raised = rebuilt(reply.get("error"))
        if isinstance(raised, MemoryError):
            raise TestEnded(Verdict.OUT_OF_MEMORY, "the memory cap was reached")
        raise raised

    def _ended(self, gone: WorkerGone, deadline_s: float) -> TestEnded:
        if gone.kind == "deadline":
            self._timeouts += 1
            return TestEnded(Verdict.TIMEOUT, f"a call did not end within {deadline_s:g} s")
        if gone.kind == "memory":
            return TestEnded(Verdict.OUT_OF_MEMORY, "the memory cap was reached")
        if gone.kind == "died":
            return TestEnded(Verdict.CRASHED, "the process ended during a call")
        return TestEnded(Verdict.PROTOCOL_VIOLATION, "the worker sent what no worker sends")

    def _deadline_s(self, op: str) -> float:
        limits = self.plan.limits
        left_s = self.left_s()
        # Building a large pool, a timed batch and the compilation of kernels may honestly take long; one call may not.
        impatient = self._timeouts >= limits.patience and op in ("call", "function")
        deadline_s = limits.impatient_call_s if impatient or (self.hurry and op != "record") else limits.call_s
        return min(deadline_s, left_s)

    def left_s(self) -> float:
        """Seconds left for this submission. Raises: TestEnded if there are none."""
        self._check_budget()
        return self._ends_at - time.monotonic()

    def pardon(self, seconds: float) -> None:
        """Add to the budget what was spent on waiting for others."""
        self._ends_at += seconds

    def _check_budget(self) -> None:
        if time.monotonic() > self._ends_at:
            self._lose()
            raise TestEnded(Verdict.NOT_RUN, f"the {self.plan.limits.total_s:g} s for this submission were used up")

    def fresh(self) -> None:
        """Forget the running worker, and with it whatever student code remembered."""
        self._lose()

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self.garbage.clear()

    close = _lose


def _is_syntax_error(error: Any) -> bool:
    return isinstance(error, dict) and isinstance(error.get("bases"), list) and "SyntaxError" in error["bases"]


def _line(error: dict[str, Any]) -> int:
    line = error.get("line")
    return line if type(line) is int and 0 <= line < LINE_MAX else 0


def _short(error: dict[str, Any]) -> str:
    """Name and message of an exception at load time, when no hidden value has reached the worker yet."""
    return f"{str(error.get('name'))[:80]}: {str(error.get('message'))[:200]}"


class RemoteSubject:
    """An object of the student's class, in the worker. Methods and attributes are those of the contract."""

    def __init__(
        self, session: Session, name: str, methods: Sequence[str], faults: Mapping[str, str], args: tuple[Any, ...]
    ) -> None:
        self._session = session
        self._methods = frozenset(methods)
        self._faults = faults
        self._handle = 0
        self._generation = 0
        session.worker()
        self._generation = session.generation
        handle = self._ask(op="new", name=name, args=[wire.encode(arg) for arg in args])
        if type(handle) is not int:
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, "the worker sent what no worker sends")
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._methods:
            return self._ask(op="get", target=self._handle, method=name)

        def method(*args: Any, **named: Any) -> Any:
            if named:
                raise TypeError(f"{name} is called with positional arguments only over the wire")
            return self._call(name, args)

        return method

    def _call(self, name: str, args: tuple[Any, ...], scribble: bool = False) -> Any:
        if name in self._faults:
            raise TestEnded(Verdict.MISSING, self._faults[name])
        return self._ask(op="call", target=self._handle, method=name, args=_encoded(args), scribble=scribble)

    def scribbled(self, method: str, *args: Any) -> Any:
        return self._call(method, args, scribble=True)

    def timed_answers(self, calls: Sequence[Call]) -> tuple[float, list[Any]]:
        missing = next((self._faults[name] for name, _ in calls if name in self._faults), None)
        if missing is not None:
            raise TestEnded(Verdict.MISSING, missing)
        encoded = [[name, _encoded(args)] for name, args in calls]
        start = time.perf_counter()
        text = self._ask(op="batch", target=self._handle, calls=encoded)
        seconds = time.perf_counter() - start
        try:
            answers = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            answers = None
        if not isinstance(answers, list) or len(answers) != len(calls):
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, "many calls at once were not answered one by one")
        return seconds, answers

    def timed_batch_s(self, calls: Sequence[Call]) -> float:
        return self.timed_answers(calls)[0]

    def _ask(self, **message: Any) -> Any:
        return self._session.ask(self._generation, **message)

    def __del__(self) -> None:
        # Only noted here: the collector may run in the middle of another request.
        if self._handle and self._session.generation == self._generation:
            self._session.garbage.append(self._handle)


def _encoded(args: Sequence[Any]) -> list[Any]:
    """Arguments for the wire; numpy's integers go over as numpy's integers."""
    return [wire.encode(wire.NumpyInteger(arg) if type(arg).__module__ == "numpy" else arg) for arg in args]


def remote(session: Session, name: str, methods: Sequence[str], faults: Mapping[str, str]) -> Callable[..., Subject]:
    """A `Make` for class `name` of the submission. A call of a method in `faults` ends the test as MISSING."""

    def make(*args: Any) -> Subject:
        return RemoteSubject(session, name, methods, faults, args)

    return make
