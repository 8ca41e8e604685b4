"""Every cap that the grader puts on a submission, in one place.

Owns: the numbers. Who enforces which: the judge's clock and pipes (`call_s`, `load_cell_s`, `total_s`,
`printed_bytes`, `restarts`), the kernel through rlimits set in the worker (`memory_bytes`, `cpu_s`, `open_files`,
`file_bytes`), the worker's system-call filter (`allow_processes`), the mounts (`disk_bytes`), intake
(`submission_bytes`, `cells`). Depth and items of what crosses stand in `autograder.worker.wire`, which must run without
this package. A lab's suite may name other numbers for its submissions (`LIMITS`).
"""

from __future__ import annotations

from dataclasses import dataclass

from autograder.worker import wire


@dataclass(frozen=True)
class Limits:
    """Caps for one submission. Times in seconds of the judge's clock, sizes in bytes."""

    submission_bytes: int = 4 << 20
    cells: int = 1_000
    load_cell_s: float = 10.0
    call_s: float = 10.0
    impatient_call_s: float = 1.0
    """The deadline of a call once `patience` calls have run into theirs: one endless method must not eat the rest."""
    patience: int = 2
    total_s: float = 60.0
    restarts: int = 120
    """More than a lab has tests: a method that kills its worker in each takes none from the others' tests."""
    cpu_s: int = 60
    memory_bytes: int = 2 << 30
    """Of address space; -1 for a worker with a GPU, which is watched instead."""
    resident_bytes: int = 0
    """Of memory in use by the worker and what it starts, if above 0: the judge looks, and kills."""
    processes: int = -1
    """Of processes and threads together, -1 without a cap; for workers that may start processes."""
    disk_bytes: int = 64 << 20
    file_bytes: int = 16 << 20
    open_files: int = 64
    allow_processes: bool = False
    """Whether student code may fork and exec. Threads it may start either way: their stacks count as memory."""
    printed_bytes: int = 64 << 10
    frame_bytes: int = wire.FRAME_BYTES_MAX
    """The largest request, and the largest answer that the worker tries to send."""
    reply_bytes: int = wire.REPLY_BYTES_MAX
    """The largest answer that the judge takes."""

    def for_worker(self) -> dict[str, int]:
        """The part that the worker applies to itself."""
        names = (
            "memory_bytes",
            "file_bytes",
            "open_files",
            "cpu_s",
            "processes",
            "allow_processes",
            "frame_bytes",
        )
        return {name: getattr(self, name) for name in names}
