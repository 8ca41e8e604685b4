"""Functions of a submission that work on tensors in place, behind the wire or in this process.

Owns: a `Subject` whose methods take torch tensors and write into them, as the functions themselves would: the arguments
go over as memory and views, what comes back is copied into the caller's memory. A test cannot tell the two kinds apart.
Torch stays out of this process until a test makes a tensor. Knows nothing of which functions there are or what they are
for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autograder.judge.remote import Session, TestEnded
from autograder.judge.subject import Make
from autograder.judge.verdicts import Verdict
from autograder.worker import tensors, wire


class RemoteFunctions:
    """The functions of a submission, in its worker. They keep nothing here: after a crash the next call gets a fresh
    worker."""

    def __init__(self, session: Session, names: Sequence[str], faults: Mapping[str, str]) -> None:
        self._session = session
        self._names = frozenset(names)
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(name)

        def function(*args: Any) -> None:
            self._call(name, args)

        return function

    def _call(self, name: str, args: tuple[Any, ...]) -> None:
        """Raises: what the student's code raised, or TestEnded; the caller's tensors are as before then."""
        if name in self._faults:
            raise TestEnded(Verdict.MISSING, self._faults[name])
        buffers, packed = tensors.pack(args)
        sent = [{**buffer, "bytes": wire.encode(buffer["bytes"])} for buffer in buffers]
        session = self._session
        session.worker()
        written = session.ask(session.generation, op="function", name=name, buffers=sent, args=packed)
        try:
            tensors.restore(args, written if isinstance(written, list) else [])
        except wire.WireError as error:
            session.fresh()
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, f"the answer could not cross: {error}") from None


class LocalFunctions:
    """Functions of this process, given their tensors as a worker gives them: in other memory, on `device`."""

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
