"""The device that a model lies on: made the current one, and asked whether it still answers.

Owns: nothing. Knows nothing of what runs there. Kernels that are not torch's own, streams and graphs go to the device
that is current in their thread, wherever their tensors lie: with a second GPU that must be said around each step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Within it, launches of this thread go to `device`. Cost: some microseconds; nothing on a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def is_alive(device: torch.device) -> bool:
    """Whether `device` did all that it was told, and takes more. Waits for it.

    What a kernel does wrong, such as an access out of bounds, ends a GPU for the process; a lack of memory does not.
    """
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            return False
    return True
