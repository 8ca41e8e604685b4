"""A plan played on data that did not exist when its kernels were compiled.

Owns: loading a plan's kernels, its memory with guards on both sides, and playing its steps on the current stream,
under capture or not. Knows nothing of what the call should compute, of clocks or of the process it runs in. What a
hostile kernel does here it does to this process: its owner throws it away.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from autograder.gpu.driver import Function
from autograder.gpu.plan import Copy, Fill, Launch, Number, Plan, PlanRefused, Pointer, Set, Step, View

GUARD_BYTES = 64 << 10
GUARD_PATTERN = 0xA5
POISONS = (0xFF, 0x7E)
"""Bytes that scratch is filled with: NaN in every float type, and a huge number in every float type."""
HIDDEN_PARAMETERS_MAX = 2
"""Behind a kernel's own parameters Triton passes scratch memory and a profiler's; some versions pass only the first."""

_CTYPES: dict[str, type[ctypes._SimpleCData]] = {  # type: ignore[type-arg]
    "i1": ctypes.c_uint8, "u1": ctypes.c_uint8, "i8": ctypes.c_int8, "u8": ctypes.c_uint8,
    "i16": ctypes.c_int16, "u16": ctypes.c_uint16, "i32": ctypes.c_int32, "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64, "u64": ctypes.c_uint64, "fp32": ctypes.c_float, "fp64": ctypes.c_double,
}  # fmt: skip


class Guarded:
    """Memory of a buffer between two guards, so that a write beside it is seen."""

    def __init__(self, size_bytes: int, device: str = "cuda") -> None:
        self._whole = torch.full((size_bytes + 2 * GUARD_BYTES,), GUARD_PATTERN, dtype=torch.uint8, device=device)
        self.inner = self._whole[GUARD_BYTES : GUARD_BYTES + size_bytes]
        """The buffer: [size_bytes] uint8. Its address is a multiple of 512, as torch's own are."""

    def intact(self) -> bool:
        """Whether both guards are as they were."""
        edge = self.inner.numel() + GUARD_BYTES
        return bool((self._whole[:GUARD_BYTES] == GUARD_PATTERN).all() & (self._whole[edge:] == GUARD_PATTERN).all())


class Unguarded(Guarded):
    """Memory of a buffer and nothing else, for a tool that sees for itself what lies beside it."""

    def __init__(self, size_bytes: int) -> None:
        self._whole = self.inner = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")

    def intact(self) -> bool:
        return True


class Loaded:
    """The kernels of a plan, ready to launch."""

    def __init__(self, plan: Plan) -> None:
        """Raises: DriverError if the driver does not take a kernel, PlanRefused if a launch does not fit its own."""
        self.plan = plan
        self.functions = [Function(k.cubin, k.name, k.shared_bytes) for k in plan.kernels]
        sizes = [function.parameter_bytes() for function in self.functions]
        self.hidden = [0] * len(sizes)
        for step in plan.steps:
            if isinstance(step, Launch):
                self.hidden[step.kernel] = _hidden(step, sizes[step.kernel])
        for kernel, function in zip(plan.kernels, self.functions, strict=True):
            if 32 * kernel.warps > function.threads_max():
                raise PlanRefused("a kernel with more threads than its registers allow")

    def unload(self) -> None:
        """Give the modules back."""
        for function in self.functions:
            function.unload()


def _hidden(launch: Launch, sizes: Sequence[int]) -> int:
    """How many parameters the kernel has behind those of the launch."""
    own = [8 if isinstance(a, Pointer) else ctypes.sizeof(_CTYPES[a.kind]) for a in launch.arguments]
    hidden = list(sizes[len(own) :])
    if list(sizes[: len(own)]) != own or len(hidden) > HIDDEN_PARAMETERS_MAX or any(size != 8 for size in hidden):
        raise PlanRefused("a launch whose arguments are not those of its kernel")
    return len(hidden)


class Scratch:
    """The scratch of a plan; plays that follow one another may share it."""

    def __init__(self, plan: Plan, memory: Callable[[int], Guarded] = Guarded) -> None:
        self.buffers = {
            number: memory(size)
            for number, (k, size) in enumerate(zip(plan.inputs, plan.sizes_bytes, strict=True))
            if k is None
        }
        needed = [0] * len(plan.kernels)
        for step in plan.steps:
            if isinstance(step, Launch):
                x, y, z = step.grid
                needed[step.kernel] = max(needed[step.kernel], x * y * z * plan.kernels[step.kernel].scratch_bytes)
        self.of_kernels = [memory(size) if size else None for size in needed]

    def poison(self, pattern: int, but: Collection[int] = ()) -> None:
        """Fill all of it with one byte, `but` the buffers of these numbers."""
        kept = [memory for number, memory in self.buffers.items() if number not in but]
        for memory in (*kept, *self.of_kernels):
            if memory is not None:
                memory.inner.fill_(pattern)

    def intact(self) -> bool:
        """Whether nothing was written beside it."""
        return all(memory.intact() for memory in (*self.buffers.values(), *self.of_kernels) if memory is not None)


class Player:
    """A plan bound to memory: the storages of one call, and scratch."""

    def __init__(self, loaded: Loaded, inputs: Sequence[Tensor], scratch: Scratch) -> None:
        """inputs: the call's storages as [bytes] uint8, in the order that the plan numbers them."""
        self._loaded = loaded
        self._plan = loaded.plan
        self._scratch = scratch
        self._memory = [
            scratch.buffers[number].inner if k is None else inputs[k] for number, k in enumerate(self._plan.inputs)
        ]
        self._contents = {
            index: torch.frombuffer(bytearray(step.contents), dtype=torch.uint8).to("cuda")
            for index, step in enumerate(self._plan.steps)
            if isinstance(step, Set) and step.contents
        }
        self._parameters = {
            index: self._values(step) for index, step in enumerate(self._plan.steps) if isinstance(step, Launch)
        }
        self._skipped: frozenset[int] = frozenset()

    def play(self) -> None:
        """Queue every step on the current stream."""
        for index, step in enumerate(self._plan.steps):
            if index not in self._skipped:
                self._step(index, step)

    def settle(self) -> None:
        """Play once, and leave out of later plays what the host made and no kernel changes: it is made once for many.

        That is a work list computed by torch from the lengths, which a whole model's layers would share.
        """
        self.play()
        torch.cuda.synchronize()
        touched: set[int] = set()
        skipped = set()
        for index, step in enumerate(self._plan.steps):
            if isinstance(step, Set) and step.contents and step.buffer not in touched:
                unchanged = torch.equal(self._memory[step.buffer], self._contents[index])
                skipped |= {index} if unchanged else set()
            touched |= _buffers(step)
        self._skipped = frozenset(skipped)

    @property
    def settled(self) -> frozenset[int]:
        """The buffers that later plays find ready."""
        return frozenset(step.buffer for index, step in self._ready())

    def settled_intact(self) -> bool:
        """Whether these still hold what the host made."""
        return all(torch.equal(self._memory[step.buffer], self._contents[index]) for index, step in self._ready())

    def _ready(self) -> list[tuple[int, Set]]:
        steps = [(index, self._plan.steps[index]) for index in sorted(self._skipped)]
        return [(index, step) for index, step in steps if isinstance(step, Set)]

    def _step(self, index: int, step: Step) -> None:
        if isinstance(step, Launch):
            kernel = self._plan.kernels[step.kernel]
            stream = torch.cuda.current_stream().cuda_stream
            function = self._loaded.functions[step.kernel]
            function.launch(step.grid, 32 * kernel.warps, stream, self._parameters[index])
        elif isinstance(step, Fill):
            self._view(step.target).fill_(step.value)
        elif isinstance(step, Copy):
            self._view(step.target).copy_(self._view(step.source))
        elif step.contents:
            self._memory[step.buffer].copy_(self._contents[index])

    def _values(self, launch: Launch) -> list[ctypes._SimpleCData]:  # type: ignore[type-arg]
        kernel = self._plan.kernels[launch.kernel]
        values = [self._value(argument) for argument in launch.arguments]
        hidden = self._loaded.hidden[launch.kernel]
        scratch = self._scratch.of_kernels[launch.kernel]
        if kernel.scratch_bytes and not hidden:
            raise PlanRefused("a kernel with scratch and no place to pass it")
        addresses = [scratch.inner.data_ptr() if scratch is not None else 0, 0]
        return values + [ctypes.c_uint64(address) for address in addresses[:hidden]]

    def _value(self, argument: Pointer | Number) -> ctypes._SimpleCData:  # type: ignore[type-arg]
        if isinstance(argument, Pointer):
            return ctypes.c_uint64(self._memory[argument.buffer].data_ptr() + argument.offset_bytes)
        return _CTYPES[argument.kind](argument.value)

    def _view(self, view: View) -> Tensor:
        dtype = getattr(torch, view.dtype)
        memory = self._memory[view.buffer]
        whole = memory[: memory.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        return torch.as_strided(whole, view.shape, view.strides, whole.storage_offset() + view.offset)


def _buffers(step: Step) -> set[int]:
    """Every buffer that a step may write into."""
    if isinstance(step, Launch):
        return {argument.buffer for argument in step.arguments if isinstance(argument, Pointer)}
    if isinstance(step, Set):
        return {step.buffer}
    return {step.target.buffer}
