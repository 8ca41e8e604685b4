"""In the worker, without a GPU: whether a student's kernels did the work of a call, or torch did.

Owns: the dispatch mode that names what torch computed on floats, and the call in which every kernel does nothing.
It shares a process with student code, which may switch all of it off: it tells honest students what a grader with a GPU
would not accept, and no more. There the plan of a call is played without them (record.py).
"""

# Triton ships no types, and a dispatch mode gets whatever torch was called with.
# mypy: disable-error-code="import-untyped,no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

if TYPE_CHECKING or __package__:
    from autograder.worker.record import COPIES, FILLED_WITH, UNWRITTEN, Recorder
else:
    # In the sandbox this file lies beside record.py, outside any package.
    from record import COPIES, FILLED_WITH, UNWRITTEN, Recorder

MOVES = UNWRITTEN | set(FILLED_WITH) | COPIES
"""What torch may do with floats: allocate, fill, copy and cast."""


READS = {"numpy", "__array__", "tolist", "__dlpack__", "untyped_storage", "storage"}
"""Methods of a tensor by which the host gets at its numbers without an operation of torch's."""


class Watch(TorchDispatchMode):
    """Sees torch's operations in this thread. `computed` is the first that computed on floats, or let the host read
    them; "" if none did."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # To keep its compiler out of such a mode, torch would import all of it: seconds in every worker.
        return False

    def __init__(self) -> None:
        super().__init__()
        self.computed = ""
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
        if not self._deaf and not self.computed and isinstance(tensor, Tensor) and tensor.is_floating_point():
            self.computed = f"Tensor.{method}"

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name
        if not self._deaf and not self.computed and name not in MOVES:
            taken = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            given = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            floats = any(tensor.is_floating_point() or tensor.is_complex() for tensor in (*taken, *given))
            if floats and not Recorder._only_looks(func, taken, given):
                self.computed = str(name)
        return result


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
    """Every launch does nothing."""
    with _instead(lambda executor, *args, **kwargs: None):
        yield


@contextmanager
def _instead(launch: Callable[..., Any]) -> Iterator[None]:
    interpret = GridExecutor.__call__
    GridExecutor.__call__ = launch
    try:
        yield
    finally:
        GridExecutor.__call__ = interpret
