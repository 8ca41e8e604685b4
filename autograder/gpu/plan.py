"""A recorded plan, read as what it is: a claim by a process that a student controls.

Owns: the form of a plan, the caps, and the check that no step reaches outside its buffers by its own account. What a
kernel does inside cannot be checked by reading; that is why it is played in a process of its own (process.py). Knows
nothing of CUDA and of torch. Source of the form: `record.py`, which writes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autograder.worker.tensors import ITEM_BYTES

KERNELS_MAX, BUFFERS_MAX, STEPS_MAX, ARGUMENTS_MAX, DIMENSIONS_MAX = 64, 1024, 4096, 256, 8
CUBIN_BYTES_MAX = 4 << 20
SET_BYTES_MAX = 4 << 20
"""Of all `set` steps together."""
SCRATCH_BYTES_MAX = 8 << 30
SHARED_BYTES_MAX = 232_448
GRID_MAX = ((1 << 31) - 1, 65_535, 65_535)
WARPS_MAX = 32
NAME_CHARS_MAX = 4096
DTYPE_BYTES = {**ITEM_BYTES, "int16": 2, "int8": 1, "uint16": 2, "uint32": 4, "uint64": 8}
INTEGER_BITS = {
    "i1": 8, "u1": 8, "i8": 8, "u8": 8, "i16": 16, "u16": 16, "i32": 32, "u32": 32, "i64": 64, "u64": 64
}  # fmt: skip
FLOATS = ("fp32", "fp64")

PROBLEMS = {
    "computes": "torch computed on floating-point numbers; on the GPU that is your kernel's work",
    "reads": "floating-point numbers were read by the host",
    "stream": "a kernel was launched on another stream",
    "thread": "a kernel was launched from another thread",
    "argument": "a kernel got an argument of a kind that cannot be played again; pass tensors and numbers",
    "graph": "a CUDA graph was replayed inside the call; launch the kernels themselves",
    "shape": "a kernel asks for clusters, a cooperative grid or dependent launches",
    "address": "a kernel got the address of a tensor as a number; pass the tensor itself",
}
"""Kind -> what the student reads."""


class PlanRefused(Exception):  # noqa: N818 - what happened to the plan
    """Not a plan that the recorder writes. `reason` is for staff and students alike: it holds no number of the plan."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel. Scratch bytes are for each program of the grid."""

    cubin: bytes
    name: str
    shared_bytes: int
    warps: int
    scratch_bytes: int
    scratch_align: int


@dataclass(frozen=True)
class Pointer:
    """The address `offset_bytes` into a buffer."""

    buffer: int
    offset_bytes: int


@dataclass(frozen=True)
class Number:
    """A scalar argument of Triton's type `kind`."""

    kind: str
    value: int | float


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: int
    grid: tuple[int, int, int]
    arguments: tuple[Pointer | Number, ...]


@dataclass(frozen=True)
class View:
    """A strided view of a buffer; strides and offset in elements of dtype."""

    buffer: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Fill:
    """Every element of a view becomes `value`."""

    target: View
    value: int | float | bool


@dataclass(frozen=True)
class Copy:
    """Element by element, with a cast where the types differ."""

    target: View
    source: View


@dataclass(frozen=True)
class Set:
    """A buffer's whole contents."""

    buffer: int
    contents: bytes


Step = Launch | Fill | Copy | Set


@dataclass(frozen=True)
class Plan:
    """What a call does. Buffer b is storage `inputs[b]` of the call, or scratch where that is None."""

    kernels: tuple[Kernel, ...]
    inputs: tuple[int | None, ...]
    sizes_bytes: tuple[int, ...]
    steps: tuple[Step, ...]
    problems: tuple[tuple[str, str], ...]

    def prints(self) -> bool:
        """Whether a kernel says that it prints: it names what the driver gives it to print with."""
        return any(b"vprintf\0" in kernel.cubin for kernel in self.kernels)


def parse(data: Any, inputs_bytes: Sequence[int]) -> Plan:
    """The plan that `data` claims, for a call on storages of `inputs_bytes`.

    Raises: PlanRefused on anything that the recorder does not write, and on anything over a cap.
    """
    fields = _fields(data, ("kernels", "buffers", "steps", "problems"))
    kernels = tuple(_kernel(item) for item in _items(fields["kernels"], KERNELS_MAX, "kernels"))
    reader = _Reader(len(kernels), inputs_bytes)
    reader.buffers(fields["buffers"])
    steps = tuple(reader.step(item) for item in _items(fields["steps"], STEPS_MAX, "steps"))
    problems = tuple(_problem(item) for item in _items(fields["problems"], STEPS_MAX, "problems"))
    return Plan(kernels, tuple(reader.inputs), tuple(reader.sizes), steps, problems)


def _fields(data: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != set(names):
        raise PlanRefused("a plan is missing a part or has one too many")
    return data


def _items(data: Any, most: int, what: str) -> Sequence[Any]:
    if not isinstance(data, (list, tuple)) or len(data) > most:
        raise PlanRefused(f"a plan with more than {most} {what}, or none that can be read")
    return data


def _tagged(data: Any, most: int, what: str) -> Sequence[Any]:
    parts = _items(data, most, f"parts of {what}")
    if not parts or not isinstance(parts[0], str):
        raise PlanRefused(f"{what} of an unknown kind")
    return parts


def _integer(value: Any, least: int, most: int, what: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise PlanRefused(f"{what} out of range")
    return value


def _text(value: Any, what: str) -> str:
    if type(value) is not str or not len(value) <= NAME_CHARS_MAX or "\0" in value:
        raise PlanRefused(f"{what} is no name")
    return value


def _kernel(data: Any) -> Kernel:
    names = ("cubin", "name", "shared", "warps", "scratch_bytes", "scratch_align")
    fields = _fields(data, names)
    cubin = fields["cubin"]
    if type(cubin) is not bytes or not cubin.startswith(b"\x7fELF") or len(cubin) > CUBIN_BYTES_MAX:
        raise PlanRefused("a kernel that is no compiled kernel, or too large a one")
    return Kernel(
        cubin,
        _text(fields["name"], "a kernel's name"),
        _integer(fields["shared"], 0, SHARED_BYTES_MAX, "shared memory"),
        _integer(fields["warps"], 1, WARPS_MAX, "warps"),
        _integer(fields["scratch_bytes"], 0, SCRATCH_BYTES_MAX, "scratch"),
        _integer(fields["scratch_align"], 1, 4096, "the alignment of scratch"),
    )


def _problem(data: Any) -> tuple[str, str]:
    kind, name = _pair(data, "a problem")
    if not isinstance(kind, str) or kind not in PROBLEMS:
        raise PlanRefused("a problem of an unknown kind")
    return kind, _text(name, "a problem's name")


def _pair(data: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(data, (list, tuple)) or len(data) != 2:
        raise PlanRefused(f"{what} is no pair")
    return data[0], data[1]


class _Reader:
    """Reads steps against the buffers that were announced before them."""

    def __init__(self, kernels: int, inputs_bytes: Sequence[int]) -> None:
        self._kernels = kernels
        self._inputs_bytes = inputs_bytes
        self._set_bytes = 0
        self.inputs: list[int | None] = []
        self.sizes: list[int] = []

    def buffers(self, data: Any) -> None:
        for item in _items(data, BUFFERS_MAX + len(self._inputs_bytes), "buffers"):
            kind, value = _pair(item, "a buffer")
            if kind == "input":
                k = _integer(value, 0, len(self._inputs_bytes) - 1, "an input")
                if k in self.inputs:
                    raise PlanRefused("one input stands for two buffers")
                self.inputs.append(k)
                self.sizes.append(self._inputs_bytes[k])
            elif kind == "scratch":
                self.inputs.append(None)
                self.sizes.append(_integer(value, 0, SCRATCH_BYTES_MAX, "a scratch buffer"))
            else:
                raise PlanRefused("a buffer of an unknown kind")
        scratch = sum(size for k, size in zip(self.inputs, self.sizes, strict=True) if k is None)
        if scratch > SCRATCH_BYTES_MAX:
            raise PlanRefused(f"scratch of more than {SCRATCH_BYTES_MAX >> 30} GiB")

    def step(self, data: Any) -> Step:
        kind, *rest = _tagged(data, 4, "a step")
        if kind == "launch" and len(rest) == 3:
            return self._launch(*rest)
        if kind == "fill" and len(rest) == 2:
            return Fill(self._view(rest[0]), self._number(rest[1]))
        if kind == "copy" and len(rest) == 2:
            return self._copy(*rest)
        if kind == "set" and len(rest) == 2:
            return self._set(*rest)
        raise PlanRefused("a step of an unknown kind")

    def _launch(self, kernel: Any, grid: Any, arguments: Any) -> Launch:
        if not isinstance(grid, (list, tuple)) or len(grid) != 3:
            raise PlanRefused("a grid that is not three numbers")
        x, y, z = (_integer(size, 1, most, "a grid") for size, most in zip(grid, GRID_MAX, strict=True))
        passed = tuple(self._argument(item) for item in _items(arguments, ARGUMENTS_MAX, "arguments"))
        return Launch(_integer(kernel, 0, self._kernels - 1, "a kernel"), (x, y, z), passed)

    def _argument(self, data: Any) -> Pointer | Number:
        kind, *rest = _tagged(data, 3, "an argument")
        if kind == "pointer" and len(rest) == 2:
            buffer = self._buffer(rest[0])
            return Pointer(buffer, _integer(rest[1], 0, self.sizes[buffer], "a pointer"))
        if kind in INTEGER_BITS and len(rest) == 1:
            half = 1 << (INTEGER_BITS[kind] - 1)
            return Number(kind, _integer(rest[0], -half, 2 * half - 1, "an argument"))
        if kind in FLOATS and len(rest) == 1 and type(rest[0]) is float:
            return Number(kind, rest[0])
        raise PlanRefused("an argument of an unknown kind")

    def _copy(self, target: Any, source: Any) -> Copy:
        copy = Copy(self._view(target), self._view(source))
        try:
            wide = [max(1, n) for n in copy.target.shape]
            fits = len(copy.source.shape) <= len(wide) and all(
                n in (1, m) for n, m in zip(reversed(copy.source.shape), reversed(wide), strict=False)
            )
        except TypeError:
            fits = False
        if not fits:
            raise PlanRefused("a copy between views of different shapes")
        return copy

    def _set(self, buffer: Any, contents: Any) -> Set:
        number = self._buffer(buffer)
        if type(contents) is not bytes or len(contents) != self.sizes[number]:
            raise PlanRefused("contents of another size than their buffer")
        self._set_bytes += len(contents)
        if self._set_bytes > SET_BYTES_MAX:
            raise PlanRefused(
                f"more than {SET_BYTES_MAX >> 20} MiB of numbers that the host computed; compute them in a kernel"
            )
        return Set(number, contents)

    def _view(self, data: Any) -> View:
        parts = _items(data, 5, "parts of a view")
        if len(parts) != 5 or not isinstance(parts[1], str) or parts[1] not in DTYPE_BYTES:
            raise PlanRefused("a view that cannot be read")
        buffer, dtype = self._buffer(parts[0]), parts[1]
        limit = self.sizes[buffer] // DTYPE_BYTES[dtype]
        shape = tuple(_integer(n, 0, 1 << 40, "a shape") for n in _items(parts[2], DIMENSIONS_MAX, "dimensions"))
        strides = tuple(_integer(n, 0, 1 << 40, "a stride") for n in _items(parts[3], DIMENSIONS_MAX, "dimensions"))
        offset = _integer(parts[4], 0, 1 << 40, "an offset")
        if len(shape) != len(strides):
            raise PlanRefused("a view with shapes and strides of different length")
        if math.prod(shape):
            last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
            if last >= limit:
                raise PlanRefused("a view that reaches outside its buffer")
        return View(buffer, dtype, shape, strides, offset)

    def _buffer(self, value: Any) -> int:
        return _integer(value, 0, len(self.sizes) - 1, "a buffer")

    @staticmethod
    def _number(value: Any) -> int | float | bool:
        if type(value) not in (bool, int, float) or (type(value) is int and abs(value) >> 64):
            raise PlanRefused("a fill with what is no number")
        number: int | float | bool = value
        return number
