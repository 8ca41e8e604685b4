"""The GPU of one job: the process that plays plans, started again after every fault, and proven well before it is used.

Owns: the life of that process, its deadlines, and the words in which its ends are told. Knows nothing of sessions and
of what is graded. A canary runs in every new process: before the first kernel of a student it tells a machine's fault
from everything that a student could cause; after a fault it tells whether the GPU can go on.
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
        try:
            self._replay: Replay | None = Replay()
        except OSError as error:
            raise StartFailed(str(error)) from error

    def prove(self, clear: Callable[[], None]) -> None:
        """Run the canary of a new stand. If the GPU is not well, `clear` it of the submission's own process and wait.

        Raises: StartFailed if it is not well then either: nothing of the submission's is left that could be the cause.
        """
        try:
            self._canary()
            return
        except ReplayGone:
            self.close()
            clear()
        try:
            self._recover()
        except TestEnded as ended:
            raise StartFailed(f"{NOT_WELL}: {ended.message}") from ended

    def renew(self) -> None:
        """Go on with a process that has played nothing yet. Raises: TestEnded."""
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
        """A plan on the storages in `blobs` (answers.py). Raises: TestEnded if that went wrong on the GPU."""
        told = {"plan": encoded(plan), "dtypes": list(dtypes)}
        return self._request(self.together(), min(PLAY_S, at_most_s), blobs, op="play", **told)

    def time(self, plan: Any, case: TimedCase, tables_seed: int, at_most_s: float = TIME_S) -> Timing:
        """A plan timed on a case (clock.py). Raises: TestEnded if that went wrong on the GPU."""
        told = {"plan": encoded(plan), "case": case.to_json(), "tables_seed": tables_seed}
        reply, _ = self._request(self.alone(), min(TIME_S, at_most_s), (), op="time", **told)
        return Timing(**reply)

    def textbook_us(self, case: TimedCase, at_most_s: float = TIME_S) -> float | None:
        """A textbook's kernel on a case (textbook.py); None if there is no time. To be asked before any play."""
        try:
            deadline_s = min(TIME_S, at_most_s)
            reply, _ = self._request(self.alone(), deadline_s, (), op="textbook", case=case.to_json())
        except TestEnded:
            # No kernel but ours has run: nobody loses anything but a bar in a figure.
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
        self, turn: AbstractContextManager[None], deadline_s: float, blobs: Sequence[bytes], **message: Any
    ) -> tuple[dict[str, Any], list[bytes]]:
        if self._replay is None:
            self._recover()
        assert self._replay is not None
        try:
            with turn:
                reply, found = self._replay.request(deadline_s, blobs, **message)
        except ReplayGone as gone:
            self._replay = None
            raise _ended(gone, deadline_s) from None
        if "refused" in reply:
            raise TestEnded(Verdict.PROTOCOL_VIOLATION, f"what was recorded cannot be played: {reply['refused']}")
        return reply, found

    def _recover(self) -> None:
        """A new process, as soon as the GPU is well again. The fault was the student's: so is it if it never is."""
        deadline = time.monotonic() + RECOVERY_S
        while True:
            try:
                self._replay = Replay()
                self._canary()
                return
            except (ReplayGone, OSError):
                self._replay = None
                if time.monotonic() > deadline:
                    raise TestEnded(Verdict.GPU_FAULT, "the GPU did not recover from an earlier kernel") from None
                time.sleep(1.0)

    def close(self) -> None:
        """End the process."""
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ended(gone: ReplayGone, deadline_s: float) -> TestEnded:
    if gone.kind == "deadline":
        return TestEnded(Verdict.TIMEOUT, f"its kernels did not end within {deadline_s:g} s")
    if "out of memory" in gone.detail:
        return TestEnded(Verdict.OUT_OF_MEMORY, "its buffers do not fit the GPU")
    return TestEnded(Verdict.GPU_FAULT, "a kernel faulted on the GPU, as by an address outside its tensors")
