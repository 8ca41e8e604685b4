"""The GPU of one job: the process that plays plans, started again after every fault, and proven well before it is used.

Owns: the life of that process, its deadlines, and the words in which its ends are told. Knows nothing of sessions and
of what is graded. A canary runs in every new process: before the first kernel of a student it tells a machine's fault
from everything that a student could cause; after a fault it tells whether the GPU can go on. Where nothing of the
submission has faulted since it last was well, and nothing of it is left there, it is the machine's fault again:
somebody else may have filled it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from autograder.gpu.process import READY, Replay, ReplayGone, encoded
from autograder.gpu.timed import TimedCase, Timing
from autograder.gpu.turns import Turns
from autograder.judge.remote import TestEnded
from autograder.judge.verdicts import Verdict
from autograder.sandbox.launch import StartFailed

START_S, PLAY_S, TIME_S = 120.0, 20.0, 120.0
RECOVERY_S = 60.0
"""How long the GPU may take to be well again after a kernel was killed on it."""
Turn = Callable[[], AbstractContextManager[None]]
NOT_WELL = "the GPU does not work as it should, with nothing of a submission on it"


class Stand:
    """Plays and times plans. Close it, or use it as a context manager."""

    def __init__(self, turns: Turns | None = None) -> None:
        """Starts the process and does not wait for it; `prove` does. With `turns` it shares the GPU with other judges.

        Raises: StartFailed.
        """
        self.turns = turns
        self.gpu = ""
        """Its name, once it has been proven."""
        self._clear: Callable[[], None] = lambda: None
        self._has_faulted = False
        """Whether a kernel of the submission has ended a process since the last canary that was well."""
        try:
            self._replay: Replay | None = Replay()
        except OSError as error:
            raise StartFailed(str(error)) from error

    def prove(self, clear: Callable[[], None]) -> None:
        """Run the canary of a new stand. If the GPU is not well, `clear` it of the submission's own process and wait.

        clear: asked again later, if the GPU is not well without a fault of the submission.
        Raises: StartFailed if it is not well then either: nothing of the submission's is left that could be the cause.
        """
        self._clear = clear
        try:
            self._canary()
            return
        except ReplayGone:
            self.close()
        clear()
        if not self._is_well_again():
            raise StartFailed(NOT_WELL)

    def renew(self) -> None:
        """Go on with a process that has played nothing yet. Raises as `play`."""
        self.close()
        self._recover()

    def _canary(self) -> None:
        assert self._replay is not None
        # It imports torch, which needs no turn on the GPU.
        self._replay.request(START_S, op=READY)
        with self.together():
            facts, _ = self._replay.request(START_S, op="canary")
        self.gpu = str(facts["gpu"])
        if not facts["well"]:
            self.close()
            raise ReplayGone("fault", "the canary gives a wrong product, or memory is short")

    def play(
        self, plan: Any, blobs: Sequence[bytes], dtypes: Sequence[str], at_most_s: float = PLAY_S
    ) -> tuple[dict[str, Any], list[bytes]]:
        """A plan on the storages in `blobs` (answers.py).

        Raises: TestEnded if that went wrong on the GPU; StartFailed if the GPU is not well, by no kernel's fault.
        """
        told = {"plan": encoded(plan), "dtypes": list(dtypes)}
        return self._request(self.together, min(PLAY_S, at_most_s), blobs, op="play", **told)

    def time(self, plan: Any, case: TimedCase, tables_seed: int, at_most_s: float = TIME_S) -> Timing:
        """A plan timed on a case (clock.py). Raises as `play`."""
        told = {"plan": encoded(plan), "case": case.to_json(), "tables_seed": tables_seed}
        reply, _ = self._request(self.alone, min(TIME_S, at_most_s), (), op="time", **told)
        return Timing(**reply)

    def textbook_us(self, case: TimedCase, at_most_s: float = TIME_S) -> float | None:
        """A textbook's kernel on a case (textbook.py); None if there is no time. To be asked before any play."""
        try:
            deadline_s = min(TIME_S, at_most_s)
            reply, _ = self._request(self.alone, deadline_s, (), op="textbook", case=case.to_json())
        except TestEnded:
            # No kernel but ours has run: nobody loses anything but a bar in a figure.
            self._has_faulted = False
            return None
        found: float | None = reply["us"]
        return found

    def together(self) -> AbstractContextManager[None]:
        """A turn on the GPU beside other judges'."""
        return nullcontext() if self.turns is None else self.turns.together()

    def alone(self) -> AbstractContextManager[None]:
        """A turn beside nobody, for the clock."""
        return nullcontext() if self.turns is None else self.turns.alone()

    def _request(
        self,
        turn: Turn,
        deadline_s: float,
        blobs: Sequence[bytes],
        **message: Any,
    ) -> tuple[dict[str, Any], list[bytes]]:
        try:
            reply, found = self._asked(turn, deadline_s, blobs, message)
        except ReplayGone as gone:
            if not _lacks_memory(gone):
                raise self._ended(gone, deadline_s) from None
            # Perhaps somebody else had it: once more, when there is memory.
            try:
                reply, found = self._asked(turn, deadline_s, blobs, message)
            except ReplayGone as again:
                raise self._ended(again, deadline_s) from None
        if "refused" in reply:
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, f"what was recorded cannot be played: {reply['refused']}")
        return reply, found

    def _asked(
        self,
        turn: Turn,
        deadline_s: float,
        blobs: Sequence[bytes],
        message: dict[str, Any],
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Of a process that is well. Raises: ReplayGone, and there is none any more; what `_recover` raises."""
        if self._replay is None:
            self._recover()
        assert self._replay is not None
        try:
            with turn():
                return self._replay.request(deadline_s, blobs, **message)
        except ReplayGone:
            self._replay = None
            raise

    def _ended(self, gone: ReplayGone, deadline_s: float) -> TestEnded:
        if _lacks_memory(gone):
            return TestEnded(Verdict.OUT_OF_MEMORY, "its buffers do not fit the GPU")
        self._has_faulted = True
        if gone.kind == "deadline":
            return TestEnded(Verdict.TIMEOUT, f"its kernels did not end within {deadline_s:g} s")
        return TestEnded(Verdict.GPU_FAULT, "a kernel faulted on the GPU, as by an address outside its tensors")

    def _recover(self) -> None:
        """A new process, as soon as the GPU is well again.

        Raises: TestEnded if it never is and a fault was the student's; StartFailed if none was, and it is not well with
        the submission's own process gone either.
        """
        if self._is_well_again():
            return
        if self._has_faulted:
            raise TestEnded(Verdict.GPU_FAULT, "the GPU did not recover from an earlier kernel")
        self._clear()
        if not self._is_well_again():
            raise StartFailed(NOT_WELL)

    def _is_well_again(self) -> bool:
        """A new process, unless the GPU is not well for as long as one waits."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            try:
                self._replay = Replay()
                self._canary()
            except (ReplayGone, OSError):
                self._replay = None
                if time.monotonic() > deadline:
                    return False
                time.sleep(1.0)
            else:
                self._has_faulted = False
                return True

    def close(self) -> None:
        """End the process."""
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lacks_memory(gone: ReplayGone) -> bool:
    return gone.kind != "deadline" and "out of memory" in gone.detail
