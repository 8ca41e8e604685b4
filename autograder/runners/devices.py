"""What a submission can be graded on here.

Owns: the one place that says so, and the choice between them. Knows nothing of how anything runs on a device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from autograder.course import Lab
from autograder.nvml import Gpu, gpus

DEVICES = ("auto", "cpu", "cuda")


def here() -> tuple[str, ...]:
    """The devices of this machine: always "cpu", and "cuda" if there is an NVIDIA GPU for this process, and Triton."""
    return ("cpu", "cuda") if gpus() and importlib.util.find_spec("triton") else ("cpu",)


def of_one_kind(found: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of `found` that are of the first one's kind: shares of a read ceiling do not compare between kinds."""
    return tuple(gpu for gpu in found if gpu.name == found[0].name)


def choose(lab: Lab, wanted: str) -> str:
    """The device that submissions to `lab` are graded on: auto takes a GPU if there is one and the lab has use for it.

    Raises: ValueError for a device that the lab or this machine does not have.
    """
    if wanted not in DEVICES:
        raise ValueError(f"unknown device {wanted!r}; one of {', '.join(DEVICES)}")
    if wanted == "auto":
        return "cuda" if "cuda" in lab.devices and "cuda" in here() else "cpu"
    if wanted not in lab.devices:
        raise ValueError(f"{lab.id} has no group that runs on a GPU; use --device auto or cpu")
    if wanted not in here():
        raise ValueError("--device cuda needs an NVIDIA GPU and Triton, and there is none here; use --device cpu")
    return wanted
