"""In the worker: what one call does on the GPU, taken down as data that can be played again on other numbers.

Owns: the hook in Triton's launcher, the dispatch mode that sees torch's operations, and the plan they write. Knows
nothing of what the call should compute. It shares a process with student code, which may rewrite any of it: whoever
plays the plan believes none of it (plan.py). Standard library, torch, triton and labkit only.

A plan holds, as plain data:
    kernels   {cubin, name, shared, warps, scratch_bytes, scratch_align}
    buffers   ["input", k], the k-th storage of the call, or ["scratch", bytes]
    steps     ["launch", kernel, [x, y, z], arguments]; an argument is ["pointer", buffer, byte offset] or [type, value]
              ["fill", view, value], ["copy", view, view], ["set", buffer, contents]
    problems  [kind, name]: what makes the call unfit to be played, such as torch computing on floats
A view is [buffer, dtype, shape, strides, offset], in elements.

Floats never stand in a plan: whatever holds them is an input, or written by a step. Integers that torch computed do
(`set`), since the integers of the call stay the same when it is played; so do a few floats that the call did not make.
"""

# Triton ships no types, and a dispatch mode gets whatever torch was called with.
# mypy: disable-error-code="import-untyped,no-untyped-call"
from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.compiler import CompiledKernel

from labkit.watch import COPIES, FILLED_WITH, UNWRITTEN, only_looks

if TYPE_CHECKING or __package__:
    from autograder.worker import prints
else:
    # In the sandbox this file lies beside prints.py, outside any package.
    import prints

NUMBERS = {"i1", "u1", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "fp32", "fp64"}

KEPT_FLOAT_BYTES = 64 << 10
"""A larger storage of floats from before the call is a workspace: its contents stay behind."""

COMPUTES, READS, STREAM, THREAD, ARGUMENT, GRAPH, SHAPE, ADDRESS = (
    "computes", "reads", "stream", "thread", "argument", "graph", "shape", "address"
)  # fmt: skip
"""Kinds of problems; `plan.PROBLEMS` has the words for the student."""


class _Place:
    """One storage: its number in the plan, and whether the plan still lacks what the host wrote into it."""

    def __init__(self, number: int, storage: torch.UntypedStorage, captured: bool) -> None:
        self.number = number
        self.storage = storage  # held, so that its address is not given to another one
        self.captured = captured
        """Whether its contents are known to the plan by value alone, not by a step that makes them."""
        self.behind = captured
        """Whether the contents changed since the plan last set them."""


def record(function: Callable[..., Any], arguments: Sequence[Any], inputs: Sequence[Tensor]) -> dict[str, Any]:
    """The plan of `function(*arguments)`; `inputs` are the storages that the arguments look into, each as a tensor.

    The function is called twice, the first time unrecorded: that is when kernels are compiled and tuned.
    Raises: whatever the function raises.
    """
    function(*arguments)
    torch.cuda.synchronize()
    recorder = Recorder(inputs)
    with recorder.listening():
        function(*arguments)
        recorder.finish()
    torch.cuda.synchronize()
    return recorder.plan()


def usable() -> bool:
    """Whether the GPU still takes work from this process; after a kernel's bad access it does not."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


class Recorder(TorchDispatchMode):
    """Writes the plan of everything that happens while it listens."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To keep its compiler out of such a mode, torch would import all of it: seconds in every worker.
        return False

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._kernels: list[dict[str, Any]] = []
        self._known_kernels: dict[int, int] = {}
        self._held: list[Any] = []
        self._buffers: list[list[Any]] = []
        self._steps: list[list[Any]] = []
        self._problems: dict[tuple[str, str], None] = {}
        self._places: dict[int, _Place] = {}
        self._deaf = False
        self._thread = threading.get_ident()
        self._stream = torch.cuda.current_stream().cuda_stream
        for k, tensor in enumerate(inputs):
            self._add(tensor.untyped_storage(), ["input", k], captured=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record Triton's launches from every thread, and torch's operations in this one."""
        launcher = CompiledKernel.run
        replayed = torch.cuda.CUDAGraph.replay

        def run(kernel: Any) -> Callable[..., Any]:
            launch = launcher.fget(kernel)

            def recorded(x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> Any:
                # Behind the packed metadata, the launch metadata and two hooks stand the kernel's arguments.
                self._launch(kernel, (x, y, z), stream, rest[4:])
                return launch(x, y, z, stream, function, *rest)

            return recorded

        def replay(graph: Any) -> Any:
            self._problem(GRAPH)
            return replayed(graph)

        CompiledKernel.run = property(run)
        torch.cuda.CUDAGraph.replay = replay  # type: ignore[method-assign, assignment]
        try:
            with self:
                yield
        finally:
            CompiledKernel.run = launcher
            torch.cuda.CUDAGraph.replay = replayed  # type: ignore[method-assign]

    def plan(self) -> dict[str, Any]:
        """What was recorded, as plain data."""
        return {
            "kernels": self._kernels,
            "buffers": self._buffers,
            "steps": self._steps,
            "problems": [list(problem) for problem in self._problems],
        }

    def finish(self) -> None:
        """The end of the call: what the host left in the call's own storages belongs to its result."""
        for place in self._places.values():
            if self._buffers[place.number][0] == "input":
                self._catch_up(place)

    # Torch's operations.

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._deaf:
            taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            given = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if any(tensor.is_cuda for tensor in (*taken, *given)):
                self._operation(func, args, kwargs, taken, given)
        return result

    def _operation(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], taken: list[Tensor], given: list[Tensor]
    ) -> None:
        name = func._schema.name
        for tensor in taken:
            if tensor.is_cuda:
                self._place(tensor, kept=True)
        if name in UNWRITTEN:
            for tensor in given:
                self._place(tensor)
        elif name in FILLED_WITH and (number := self._number(name, args, kwargs)) is not None:
            self._steps.append(["fill", self._view(given[0]), number])
        elif name in COPIES:
            source = args[1] if name == "aten::copy_" else args[0]
            self._copy(name, given[0], source)
        elif only_looks(func, taken, given):
            for tensor in given:
                self._place(tensor)
        elif any(tensor.is_floating_point() or tensor.is_complex() for tensor in (*taken, *given)):
            self._problem(COMPUTES if given and given[0].is_cuda else READS, name)
        else:
            for tensor in given:
                self._captured(tensor)

    @staticmethod
    def _number(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | int | bool | None:
        """What an operation fills with; None if it is a tensor on the GPU, which is another thing."""
        number = FILLED_WITH[name]
        if number is None:
            number = kwargs.get("fill_value", kwargs.get("value", args[-1] if args else None))
        if isinstance(number, Tensor) and not number.is_cuda and number.dim() == 0:
            # So arrives the number of `x[:] = 0`.
            number = number.item()
        return number if isinstance(number, (bool, int, float)) else None

    def _copy(self, name: str, target: Tensor, source: Any) -> None:
        """A copy on the GPU is a step. Integers may come and go; floats from the host are taken by value, to it not."""
        if not target.is_cuda:
            if source.is_floating_point():
                self._problem(READS, name)
        elif not isinstance(source, Tensor) or not source.is_cuda:
            self._captured(target)
        else:
            self._steps.append(["copy", self._view(target), self._view(source)])

    # Storages.

    def _add(self, storage: torch.UntypedStorage, buffer: list[Any], captured: bool) -> _Place:
        place = _Place(len(self._buffers), storage, captured)
        self._buffers.append(buffer)
        self._places[storage.data_ptr()] = place
        return place

    def _place(self, tensor: Tensor, kept: bool = False) -> _Place:
        """The place of a tensor's storage. `kept`: if it is not known, nothing that was seen made it. Then it was kept
        from before the call, or made of a list on the host; integers and few floats are taken by value."""
        storage = tensor.untyped_storage()
        found = self._places.get(storage.data_ptr())
        if found is not None:
            return found
        captured = kept and (not tensor.is_floating_point() or storage.nbytes() <= KEPT_FLOAT_BYTES)
        return self._add(storage, ["scratch", storage.nbytes()], captured)

    def _captured(self, tensor: Tensor) -> None:
        place = self._place(tensor)
        place.captured = place.behind = True

    def _catch_up(self, place: _Place) -> None:
        """Let the plan set what the host wrote since it last did."""
        if not place.behind:
            return
        self._deaf = True
        try:
            whole = torch.empty(0, dtype=torch.uint8, device="cuda").set_(place.storage)
            contents = bytes(whole.cpu().numpy().tobytes())
        finally:
            self._deaf = False
        self._steps.append(["set", place.number, contents])
        place.behind = False

    def _view(self, tensor: Tensor) -> list[Any]:
        place = self._place(tensor)
        # A partial write by a step lands on what the host wrote before.
        self._catch_up(place)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return [place.number, dtype, list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]

    def _problem(self, kind: str, name: str = "") -> None:
        self._problems[kind, name] = None

    # Triton's launches.

    def _launch(self, kernel: Any, grid: tuple[int, int, int], stream: int, arguments: Sequence[Any]) -> None:
        if threading.get_ident() != self._thread:
            self._problem(THREAD)
        if stream != self._stream:
            self._problem(STREAM)
        if 0 in grid:
            return
        types = list(kernel.src.signature.values())
        passed = [
            self._argument(kind, value) for kind, value in zip(types, arguments, strict=True) if kind != "constexpr"
        ]
        self._steps.append(["launch", self._kernel(kernel), [int(n) for n in grid], passed])

    def _kernel(self, kernel: Any) -> int:
        if id(kernel) not in self._known_kernels:
            facts = kernel.metadata
            if facts.num_ctas != 1 or facts.launch_cooperative_grid or facts.launch_pdl:
                self._problem(SHAPE)
            self._known_kernels[id(kernel)] = len(self._kernels)
            self._held.append(kernel)
            self._kernels.append(
                {
                    "cubin": bytes(kernel.asm["cubin"]),
                    "name": facts.name,
                    "shared": facts.shared,
                    "warps": facts.num_warps,
                    "scratch_bytes": facts.global_scratch_size,
                    "scratch_align": facts.global_scratch_align,
                }
            )
        return self._known_kernels[id(kernel)]

    def _argument(self, kind: Any, value: Any) -> list[Any]:
        if isinstance(kind, str) and kind.startswith("*"):
            tensor = getattr(value, "base", value)
            if isinstance(tensor, Tensor):
                return self._pointer(tensor, value)
        elif kind in NUMBERS:
            if kind in ("i64", "u64") and self._is_address(value):
                self._problem(ADDRESS)
            return [kind, float(value) if kind.startswith("fp") else int(value)]
        self._problem(ARGUMENT, str(kind))
        return ["i32", 0]

    def _pointer(self, tensor: Tensor, value: Any) -> list[Any]:
        if not tensor.is_cuda or tensor.numel() == 0:
            # An empty tensor has no storage; a kernel that reads it reads what is not there.
            return ["i64", 0]
        place = self._place(tensor, kept=True)
        self._catch_up(place)
        return ["pointer", place.number, value.data_ptr() - place.storage.data_ptr()]

    def _is_address(self, value: int) -> bool:
        return any(start <= value < start + place.storage.nbytes() for start, place in self._places.items())


def sample_call(
    buffers: Sequence[dict[str, Any]], args: Sequence[dict[str, Any]], decode: Callable[[Any], Any]
) -> tuple[list[Any], list[Tensor]]:
    """The arguments of a call whose floats nobody sent: integers as given, random numbers for the rest.

    Returns: the arguments and their storages, as flat tensors on the GPU.
    """
    # It opens the GPU, where the student's code has not.
    torch.cuda.synchronize()
    prints.make_room()
    storages = []
    for buffer in buffers:
        dtype = getattr(torch, buffer["dtype"])
        if buffer["bytes"] is None:
            storages.append(torch.randn(buffer["numel"], device="cuda").to(dtype))
        else:
            contents = bytearray(decode(buffer["bytes"]))
            flat = torch.frombuffer(contents, dtype=dtype) if contents else torch.empty(0, dtype=dtype)
            storages.append(flat.to("cuda"))
    values: list[Any] = []
    for arg in args:
        if "value" in arg:
            values.append(decode(arg["value"]))
        else:
            place, _, shape, strides, offset = arg["tensor"]
            values.append(torch.as_strided(storages[place], shape, strides, offset))
    return values, storages
