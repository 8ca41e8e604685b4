"""Kernels through the compiler of a GPU that is not here, in a process of its own: in this one Triton interprets.

Owns: the process. Knows nothing of what is compiled: that is the script, which prints one line of JSON for each case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def compiled_cases(script: str, cases: Mapping[str, object]) -> dict[str, object]:
    """Case -> what the script said of it. Raises: AssertionError with the end of its errors if it failed."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "labs")))
    command = [sys.executable, "-c", script, json.dumps(list(cases.values()))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))
