"""In the worker, and where plans are played: room for what kernels print.

Owns: the size of the buffer between a kernel and the host, in the context of this process. Knows nothing of where the
lines go. Source: CUDA driver API, context management, CU_LIMIT_PRINTF_FIFO_SIZE.
"""

from __future__ import annotations

import ctypes

ROOM_BYTES = 256 << 20
"""A million lines, at 256 bytes each: one from each thread of 8,192 programs of four warps."""
_PRINTF_FIFO_SIZE = 1


def make_room() -> bool:
    """Give kernels `ROOM_BYTES` for what they print, and say whether they have it. The GPU's context must be current.

    A full buffer holds the kernel up until the host has emptied it, so that one print in every thread, as students look
    for a mistake, passes every deadline (H100, 524,288 lines: 30 s in the driver's own 8 MB, 9 s in 32, 1.1 s in 256).
    To be asked for as soon as the GPU is open: once a kernel that may print was loaded, and a library's may, CUDA keeps
    the size as it is.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    return bool(cuda.cuCtxSetLimit(_PRINTF_FIFO_SIZE, ctypes.c_size_t(ROOM_BYTES)) == 0)
