"""What a step needs from the host, sent to the device in one piece.

Owns: the memory that it is sent from. Knows nothing of what the numbers mean.
A copy out of ordinary memory makes the host wait for what the GPU was told before; one out of memory that the system
keeps in place does not. Such memory may not be written again before it was read, so there are several pieces that take
turns, each with an event that says when.
Cost: one copy on the host and one to the device, whatever the number of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
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
        """Each of them on the device, in its own shape and type. On a GPU the host does not wait.

        On a CPU they may be the arrays' own memory.
        """
        if self.device.type != "cuda":
            return [torch.from_numpy(array).to(self.device) for array in arrays]
        num_bytes = packed_bytes(arrays)
        pinned = self._piece(num_bytes)
        pack(arrays, pinned.numpy())
        sent = pinned[:num_bytes].to(self.device, non_blocking=True)
        self._sent()
        return unpack(arrays, sent)

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
        event.record(torch.cuda.current_stream(self.device))
        self._read[self._next] = event
        self._next = (self._next + 1) % _PIECES


def _starts(arrays: Sequence[NDArray[Any]]) -> list[int]:
    """The first byte of each, where any type may begin; and the end of the last one's room."""
    rooms = (-(-array.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES for array in arrays)
    return list(accumulate(rooms, initial=0))


def packed_bytes(arrays: Sequence[NDArray[Any]]) -> int:
    """What they take in one piece."""
    return _starts(arrays)[-1]


def pack(arrays: Sequence[NDArray[Any]], into: NDArray[np.uint8]) -> None:
    """Copy them into the first `packed_bytes` of it, one behind the other."""
    for start, array in zip(_starts(arrays), arrays, strict=False):
        into[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def unpack(arrays: Sequence[NDArray[Any]], packed: Tensor) -> list[Tensor]:
    """What was packed of `arrays`, as views of `packed` [bytes] uint8 in their shapes and types."""
    return [
        packed[start : start + array.nbytes].view(_torch_type(array)).view(array.shape)
        for start, array in zip(_starts(arrays), arrays, strict=False)
    ]


def _torch_type(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(array[:0]).dtype
