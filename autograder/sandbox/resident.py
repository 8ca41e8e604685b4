"""The processes of a worker and the memory they hold, seen from outside.

Owns: the walk over a process's descendants and the sum of their resident pages. For workers with a GPU: CUDA maps more
addresses than any machine has memory, so the cap on addresses that the others live under would refuse it. Knows nothing
of what is done about it.
"""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """`pid` and its descendants that are there now. Cost: a few files each."""
    found, waiting = [], [pid]
    while waiting:
        process = waiting.pop()
        try:
            for task in (Path("/proc") / str(process) / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            # It ended while it was looked at.
            continue
        found.append(process)
    return found


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended unattended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident_bytes(pid: int) -> int:
    """Resident bytes of `pid` and its descendants; pages that several share count for each."""
    total = 0
    for process in tree(pid):
        try:
            total += int((Path("/proc") / str(process) / "statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            continue
    return total
