"""Functions of a submission that work on tensors in place, behind the wire or in this process.

Owns: a `Subject` whose methods take torch tensors and write into them, as the functions themselves would: the arguments
go over as memory and views, what comes back is copied into the caller's memory. A test cannot tell the two kinds apart.
Torch stays out of this process until a test makes a tensor. Knows nothing of which functions there are or what they are
for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from autograder.judge.remote import Session, TestEnded
from autograder.judge.subject import Make
from autograder.judge.verdicts import Verdict
from autograder.worker import tensors, wire

TORCH_COMPUTED = "torch or the host worked on floating-point numbers, which is for your own kernels to do"


class InPlaceFunctions(ABC):
    """Functions of a submission under their names, called with torch tensors that they write into."""

    elsewhere = True
    """For labkit's checks: what torch does in this process is the judge's, which packs and unpacks."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(name)

        def function(*args: Any) -> None:
            self._call(name, args)

        return function

    @abstractmethod
    def _call(self, name: str, args: tuple[Any, ...]) -> None:
        """Call function `name`, wherever it is, and leave what it wrote in the caller's tensors."""


class RemoteFunctions(InPlaceFunctions):
    """The functions of a submission, in its worker. They keep nothing here: after a crash the next call gets a fresh
    worker."""

    def __init__(self, session: Session, names: Sequence[str], faults: Mapping[str, str]) -> None:
        super().__init__(names)
        self._session = session
        self._faults = faults

    def _call(self, name: str, args: tuple[Any, ...]) -> None:
        """Raises: what the student's code raised, or TestEnded; the caller's tensors are as before then."""
        if name in self._faults:
            raise TestEnded(Verdict.MISSING, self._faults[name])
        answer = asked(self._session, name, args)
        if answer.get("computed"):
            # Without its name, as a hidden number could be spelt with it; the rehearsal tells names.
            raise TestEnded(Verdict.WRONG, TORCH_COMPUTED)
        try:
            tensors.restore(args, answer["contents"])
        except wire.WireError as error:
            self._session.fresh()
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, f"the answer could not cross: {error}") from None


def asked(session: Session, name: str, args: Sequence[Any], ghost: bool = False) -> dict[str, Any]:
    """What the worker says of one call: `contents`, a list, and `computed`. Raises: as `RemoteFunctions._call`."""
    buffers, packed = tensors.pack(args)
    sent = [{**buffer, "bytes": wire.encode(buffer["bytes"])} for buffer in buffers]
    session.worker()
    answer = session.ask(session.generation, op="function", name=name, buffers=sent, args=packed, ghost=ghost)
    if not isinstance(answer, dict) or not isinstance(answer.get("contents"), list):
        session.fresh()
        raise TestEnded(Verdict.PROTOCOL_VIOLATION, "the worker sent what no worker sends")
    return answer


def rehearse(session: Session, calls: Mapping[str, Sequence[Any]], faults: Mapping[str, str]) -> dict[str, str]:
    """Try one public call of each function, before any hidden test, and again with kernels that do nothing.

    Gives the faults, with words for the student, of functions that need no kernel for their answer. A courtesy, not a
    proof: the worker says so, and student code shares it. Notes by name what torch computed.
    """
    found = {}
    for name, args in calls.items():
        if name in faults:
            continue
        try:
            answer = asked(session, name, args)
            ghost = asked(session, name, args, ghost=True)
        except (Exception, TestEnded):
            # The hidden tests will meet it again, and have words for it.
            continue
        if answer.get("computed"):
            session.note(f"{name}: {TORCH_COMPUTED} ({answer['computed']})")
        given = [buffer["bytes"] for buffer in tensors.pack(args)[0]]
        if given != answer["contents"] == ghost["contents"]:
            found[name] = f"{name} gives the same answer when its @triton.jit kernels do nothing; the work is theirs"
    return found


class LocalFunctions:
    """Functions of this process, given their tensors as a worker gives them: in other memory, on `device`."""

    elsewhere = True

    def __init__(self, target: Any, device: str = "cpu") -> None:
        self._target = target
        self._device = device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        function = getattr(self._target, name)

        def call(*args: Any) -> None:
            values, storages = tensors.unpack(*tensors.pack(args), self._device)
            function(*values)
            tensors.restore(args, tensors.contents(storages))

        return call


def local_functions(target: Any, device: str = "cpu") -> Make:
    """A `Make` for the functions of a module or object in this process: the reference kernels, honest designs."""

    def make() -> Any:
        return LocalFunctions(target, device)

    return make


def remote_functions(session: Session, names: Sequence[str], faults: Mapping[str, str]) -> Make:
    """A `Make` without arguments for the functions `names` of the submission. A call of one in `faults` ends the test
    as MISSING."""

    def make() -> Any:
        return RemoteFunctions(session, names, faults)

    return make
