"""How much memory a worker and everything it started hold, seen from outside.

Owns: the walk over a process's descendants and the sum of their resident pages. For workers with a GPU: CUDA maps more
addresses than any machine has memory, so the cap on addresses that the others live under would refuse it. Knows nothing
of what is done about it.
"""

from __future__ import annotations

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Resident bytes of `pid` and its descendants; pages that several share count for each. Cost: a few files each."""
    total, waiting = 0, [pid]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        try:
            total += int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
            for task in (folder / "task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, ValueError, IndexError):
            # It ended while it was looked at.
            continue
    return total
