"""What NVIDIA's management library tells of this machine's GPUs: which there are, and what slows one down.

Owns: the few calls of that library, through ctypes, and what CUDA_VISIBLE_DEVICES leaves of the GPUs for this process.
Knows nothing of CUDA: it opens no context, so it can be asked before a process has one and while another uses the GPU.
Cost: milliseconds for the first question of a process, then well under one.
Source: NVML API reference: device queries, clocks event reasons; CUDA programming guide: CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_uint, c_ulonglong, c_void_p, create_string_buffer
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEV = Path("/dev")
TEXT_BYTES = 96
SLOWED = {
    0x08: "hardware slowdown", 0x20: "the driver's limit of temperature", 0x40: "the hardware's limit of temperature",
    0x80: "power brake",
}  # fmt: skip
"""Why clocks are lower than the work would have them, by NVML's bits. The limit of power is not among them: work itself
reaches it, and a reference that runs before and behind shows what it costs."""


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine."""

    uuid: str
    """As CUDA_VISIBLE_DEVICES takes it; "" if there is no library to tell."""
    node: str
    """Its name in /dev."""
    name: str = ""


def gpus(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The GPUs that this process may use, in the order in which CUDA_VISIBLE_DEVICES names them: by UUID, by the
    beginning of one, or by its place on the bus, as nvidia-smi counts. Without the library the first node is all that
    is known."""
    found = _all()
    if not found and environment.get(VISIBLE) != "":
        nodes = sorted(DEV.glob("nvidia[0-9]*"), key=lambda node: (len(node.name), node.name))
        return tuple(Gpu("", node.name) for node in nodes[:1])
    return _visible(found, environment.get(VISIBLE))


def _visible(found: Sequence[Gpu], wanted: str | None) -> tuple[Gpu, ...]:
    """What a variable of that value leaves; like CUDA, nothing behind the first that is not there."""
    if wanted is None:
        return tuple(found)
    kept: list[Gpu] = []
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        number = int(word) if word.isdecimal() else None
        meant = [gpu for place, gpu in enumerate(found) if place == number or gpu.uuid.startswith(word)]
        if len(meant) != 1:
            break
        kept += meant
    return tuple(kept)


def only(found: Sequence[Gpu]) -> dict[str, str]:
    """The variable by which a process that is started has the first of `found` and no other; nothing if its UUID is not
    known. By UUID, since a place on the bus is another one where other nodes are missing."""
    return {VISIBLE: found[0].uuid} if found and found[0].uuid else {}


def slowed(uuid: str) -> tuple[str, ...]:
    """Why the clocks of a GPU are held down at this moment; () if they are not, or nobody can tell."""
    bits = reasons_of(uuid) or 0
    return tuple(words for bit, words in SLOWED.items() if bits & bit)


def reasons_of(uuid: str) -> int | None:
    """NVML's bits of what holds the clocks of a GPU where they are, idleness too; None if nobody can tell."""
    library = _library()
    handle, reasons = c_void_p(), c_ulonglong()
    if library is None or library.nvmlDeviceGetHandleByUUID(c_char_p(uuid.encode()), byref(handle)):
        return None
    # Since driver 535 under the first name, before under the second.
    for call in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
        ask = getattr(library, call, None)
        if ask is not None and ask(handle, byref(reasons)) == 0:
            return reasons.value
    return None


@cache
def _library() -> ctypes.CDLL | None:
    """The library, ready; None where there is none, or no driver for it."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


@cache
def _all() -> tuple[Gpu, ...]:
    """Every GPU of the machine, by its place on the bus."""
    library = _library()
    count = c_uint()
    if library is None or library.nvmlDeviceGetCount_v2(byref(count)):
        return ()
    found = []
    for place in range(count.value):
        handle, minor = c_void_p(), c_uint()
        uuid, name = create_string_buffer(TEXT_BYTES), create_string_buffer(TEXT_BYTES)
        if (
            library.nvmlDeviceGetHandleByIndex_v2(c_uint(place), byref(handle)) == 0
            and library.nvmlDeviceGetUUID(handle, uuid, c_uint(TEXT_BYTES)) == 0
            and library.nvmlDeviceGetMinorNumber(handle, byref(minor)) == 0
            and library.nvmlDeviceGetName(handle, name, c_uint(TEXT_BYTES)) == 0
        ):
            found.append(Gpu(uuid.value.decode(), f"nvidia{minor.value}", name.value.decode("utf-8", "replace")))
    return tuple(found)
