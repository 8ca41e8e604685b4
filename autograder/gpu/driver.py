"""The few calls of the CUDA driver that launch a compiled kernel, through ctypes.

Owns: loading a module, the sizes of a kernel's parameters as the kernel itself has them, and the launch. Knows nothing
of plans. The context is torch's: it must be current when a function here is called.
Source: CUDA driver API, modules and execution control.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any

MAX_DYNAMIC_SHARED_SIZE_BYTES, MAX_THREADS_PER_BLOCK, LOCAL_SIZE_BYTES = 8, 0, 3
STATIC_LIMIT_BYTES = 48 << 10
"""Dynamic shared memory that a kernel may use without asking."""
_NO_MORE_PARAMETERS = 1
"""CUDA_ERROR_INVALID_VALUE: what the driver says of a parameter behind the last."""


class DriverError(Exception):
    """A driver call failed; `code` is CUDA's name of the error."""

    def __init__(self, call: str, code: str) -> None:
        super().__init__(f"{call}: {code}")
        self.code = code


def _library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _checked(call: str, result: int) -> None:
    if result:
        name = c_char_p()
        _library().cuGetErrorName(result, byref(name))
        raise DriverError(call, (name.value or str(result).encode()).decode())


class Function:
    """One kernel of one loaded module; the module stays loaded with it."""

    def __init__(self, cubin: bytes, name: str, shared_bytes: int) -> None:
        """Raises: DriverError if the driver does not take the module, has no such kernel or grants no such memory."""
        self._cuda = _library()
        self._module, self._function = c_void_p(), c_void_p()
        _checked("cuModuleLoadData", self._cuda.cuModuleLoadData(byref(self._module), c_char_p(cubin)))
        _checked(
            "cuModuleGetFunction",
            self._cuda.cuModuleGetFunction(byref(self._function), self._module, name.encode()),
        )
        if shared_bytes > STATIC_LIMIT_BYTES:
            _checked(
                "cuFuncSetAttribute",
                self._cuda.cuFuncSetAttribute(self._function, MAX_DYNAMIC_SHARED_SIZE_BYTES, c_int(shared_bytes)),
            )
        self._shared_bytes = shared_bytes

    def parameter_bytes(self) -> list[int]:
        """The size of each parameter, in order, as the compiled kernel has them (CUDA 12.4 or newer)."""
        sizes: list[int] = []
        while True:
            offset, size = c_size_t(), c_size_t()
            result = self._cuda.cuFuncGetParamInfo(self._function, c_size_t(len(sizes)), byref(offset), byref(size))
            if result == _NO_MORE_PARAMETERS:
                return sizes
            _checked("cuFuncGetParamInfo", result)
            sizes.append(size.value)

    def threads_max(self) -> int:
        """Threads that a program of this kernel can have, by its registers."""
        threads = c_int()
        _checked(
            "cuFuncGetAttribute",
            self._cuda.cuFuncGetAttribute(byref(threads), MAX_THREADS_PER_BLOCK, self._function),
        )
        return threads.value

    def launch(self, grid: tuple[int, int, int], threads: int, stream: int, values: Sequence[Any]) -> None:
        """Queue the kernel. `values` are the parameters, in the order and of the sizes of `parameter_bytes`."""
        pointers = (c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        _checked(
            "cuLaunchKernel",
            self._cuda.cuLaunchKernel(
                self._function, *map(c_uint, grid), c_uint(threads), c_uint(1), c_uint(1),
                c_uint(self._shared_bytes), c_void_p(stream), pointers, None,
            ),
        )  # fmt: skip

    def unload(self) -> None:
        """Give the module back."""
        _checked("cuModuleUnload", self._cuda.cuModuleUnload(self._module))
