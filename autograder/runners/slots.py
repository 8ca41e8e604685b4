"""Room for jobs on the GPUs of one machine.

Owns: which GPU a job gets. Knows nothing of jobs. The GPU with the most room is taken, the first of several; a job that
comes back because the machine failed it is given another GPU, where there is one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from autograder.nvml import Gpu


class GpuSlots:
    """`at_once` slots on each of `gpus`. Safe for threads."""

    def __init__(self, gpus: Sequence[Gpu], at_once: int) -> None:
        """Raises: ValueError without a GPU, or with less than one slot on each."""
        if not gpus:
            raise ValueError("no GPU to give out")
        if at_once < 1:
            raise ValueError(f"at least one slot on each GPU, got {at_once}")
        self.at_once = at_once
        self._used = dict.fromkeys(gpus, 0)
        self._changed = threading.Condition()

    @property
    def total(self) -> int:
        """Jobs that can have a slot at the same time."""
        return self.at_once * len(self._used)

    @contextmanager
    def one(self, but: Gpu | None = None) -> Iterator[Gpu]:
        """A slot until the end; waits for it. Not on `but`, unless that is the only GPU."""
        among = [gpu for gpu in self._used if gpu != but] or list(self._used)
        with self._changed:
            self._changed.wait_for(lambda: min(self._used[gpu] for gpu in among) < self.at_once)
            mine = min(among, key=self._used.__getitem__)
            self._used[mine] += 1
        try:
            yield mine
        finally:
            with self._changed:
                self._used[mine] -= 1
                self._changed.notify_all()

    def check_invariants(self) -> None:
        """Raises: AssertionError naming the GPU that has more jobs than slots, or less than none."""
        with self._changed:
            for gpu, used in self._used.items():
                assert 0 <= used <= self.at_once, f"{gpu.node} has {used} jobs in {self.at_once} slots"
