"""Whether the kernels of a call did its work, or torch did: rule 9 of lab 4.

Owns: what torch may do with floats, the dispatch mode that names what else it did, and the call in which every kernel
does nothing. The public checks use it, and a grader without a GPU. It is honest with the honest only: code in the same
process may switch all of it off. Knows nothing of what a call should compute. Standard library, torch and triton only.
"""

# Triton ships no types, and a dispatch mode gets whatever torch was called with.
# mypy: disable-error-code="import-untyped,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.compiler import CompiledKernel
from triton.runtime.interpreter import GridExecutor

UNWRITTEN = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided"}
FILLED_WITH: dict[str, float | None] = {
    "aten::zeros": 0.0, "aten::zeros_like": 0.0, "aten::new_zeros": 0.0, "aten::zero_": 0.0,
    "aten::ones": 1.0, "aten::ones_like": 1.0, "aten::new_ones": 1.0,
    # With a number that stands in the call.
    "aten::full": None, "aten::full_like": None, "aten::new_full": None, "aten::fill_": None, "aten::fill": None,
}  # fmt: skip
COPIES = {"aten::copy_", "aten::clone", "aten::_to_copy"}
MOVES = UNWRITTEN | set(FILLED_WITH) | COPIES
"""What torch may do with floats: allocate, fill, copy and cast."""

READS = {"numpy", "__array__", "tolist", "__dlpack__", "untyped_storage", "storage"}
"""Methods of a tensor by which the host gets at its numbers without an operation of torch's."""


def only_looks(func: Any, taken: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether an operation writes nothing and gives nothing but views of what it took."""
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments):
        return False
    known = {tensor.untyped_storage().data_ptr() for tensor in taken}
    return bool(given) and all(tensor.untyped_storage().data_ptr() in known for tensor in given)


class Watch(TorchDispatchMode):
    """Sees torch's operations in this thread on tensors of `device`, "cpu" or "cuda". `computed` is the first that
    computed on floats, or let the host read them; "" if none did.

    On a GPU, call a function once before it is watched: Triton tries and times kernels in the first call.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To keep its compiler out of such a mode, torch would import all of it: seconds in every worker.
        return False

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.computed = ""
        self._device = device
        self._deaf = False

    @contextmanager
    def looking(self) -> Iterator[Watch]:
        """Watch, but not what the interpreter itself does with a kernel's arguments."""
        interpret = GridExecutor.__call__

        def unseen(executor: Any, *args: Any, **kwargs: Any) -> Any:
            self._deaf = True
            try:
                return interpret(executor, *args, **kwargs)
            finally:
                self._deaf = False

        with _instead(unseen), _Reading(self), self:
            yield self

    def read(self, method: str, tensor: Any) -> None:
        """A method of a tensor was called that gives its numbers away."""
        if not self._deaf and not self.computed and isinstance(tensor, Tensor) and self._is_ours(tensor):
            self.computed = f"Tensor.{method}"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._deaf and not self.computed:
            taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            given = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if any(self._is_ours(tensor) for tensor in (*taken, *given)) and not self._moves(func, taken, given):
                self.computed = str(func._schema.name)
        return result

    def _is_ours(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._device and (tensor.is_floating_point() or tensor.is_complex())

    def _moves(self, func: Any, taken: list[Tensor], given: list[Tensor]) -> bool:
        """Whether an operation leaves numbers as they are, and on the device."""
        if func._schema.name in COPIES:
            return all(tensor.device.type == self._device for tensor in given)
        return func._schema.name in MOVES or only_looks(func, taken, given)


class _Reading(TorchFunctionMode):
    """Tells a watch of methods that are no operations."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and args:
            self._watch.read(name, args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def without_kernels() -> Iterator[None]:
    """Every launch does nothing, in Triton's interpreter and on a GPU, where kernels are compiled as ever."""
    compiled = CompiledKernel.run
    CompiledKernel.run = property(lambda kernel: lambda *launch: None)
    try:
        with _instead(lambda executor, *args, **kwargs: None):
            yield
    finally:
        CompiledKernel.run = compiled


@contextmanager
def _instead(launch: Callable[..., Any]) -> Iterator[None]:
    interpret = GridExecutor.__call__
    GridExecutor.__call__ = launch
    try:
        yield
    finally:
        GridExecutor.__call__ = interpret
