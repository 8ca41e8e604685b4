"""What a step needs from the host, sent to the device in one piece.

Owns: the memory that it is sent from. Knows nothing of what the numbers mean.
A copy out of ordinary memory makes the host wait for what the GPU was told before; one out of memory that the system
keeps in place does not. Such memory may not be written again before it was read, so there are several pieces that take
turns, each with an event that says when.
Cost: one copy on the host and one to the device, whatever the number of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PIECES = 3
"""A step that runs, one behind it, and one that is being made ready."""
_ALIGNED_BYTES = 16


class Uploader:
    """Sends arrays to `device`. On a CPU, or another device than an NVIDIA GPU, it is torch's own copy."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned: list[Tensor] = [torch.empty(0, dtype=torch.uint8)] * _PIECES
        self._read: list[torch.cuda.Event | None] = [None] * _PIECES
        self._next = 0

    def send(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """Each of them on the device, in its own shape and type. On a GPU the host does not wait."""
        if self.device.type != "cuda":
            return [torch.from_numpy(array).to(self.device) for array in arrays]
        starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES for array in arrays)]).tolist()
        pinned = self._piece(starts[-1])
        host = pinned.numpy()
        for start, array in zip(starts, arrays, strict=False):
            host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        sent = pinned[: starts[-1]].to(self.device, non_blocking=True)
        self._sent()
        return [
            sent[start : start + array.nbytes].view(_torch_type(array)).view(array.shape)
            for start, array in zip(starts, arrays, strict=False)
        ]

    def _piece(self, num_bytes: int) -> Tensor:
        """The next piece, as large as that, once the device has read what it held."""
        read = self._read[self._next]
        if read is not None:
            read.synchronize()
        if self._pinned[self._next].numel() < num_bytes:
            self._pinned[self._next] = torch.empty(2 * num_bytes, dtype=torch.uint8, pin_memory=True)
        return self._pinned[self._next]

    def _sent(self) -> None:
        event = self._read[self._next] or torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._read[self._next] = event
        self._next = (self._next + 1) % _PIECES


def _torch_type(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(array[:0]).dtype
