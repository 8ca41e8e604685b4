"""What a kernel loads, counted while Triton's interpreter runs it.

Owns: the count, and the table that puts it beside a formula. It looks at every load that passes through the
interpreter and keeps those from the two caches. Knows nothing of how a kernel works.
Cost: an interpreted run, and some microseconds a load. Source: the interpreter of Triton 3.6 and 3.7, whose builder
loads everything through `create_masked_load`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.checks.paged import NAN, Batch, batch
from labkit.figures import Table
from labkit.gpu import interpreted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Work:
    """programs: those that load a key or a value. bytes: of keys and values, by all of them. longest_tokens: the most
    tokens that one program loads, keys and values counted once."""

    programs: int
    bytes: int
    longest_tokens: int


def count(function: Callable[..., None], given: Batch) -> Work:
    """Run `function`, with the signature of paged_attention, on a batch and count. Raises: RuntimeError on a GPU."""
    import torch

    if not interpreted():
        raise RuntimeError("loads are counted in Triton's interpreter only: start again with TRITON_INTERPRET=1")
    loaded: Counter[tuple[int, ...]] = Counter()
    with _watched(loaded, [_range_of(given.key_cache), _range_of(given.value_cache)]):
        function(*given.inputs.values(), given.scale, torch.full_like(given.query, NAN))
    token_bytes = 2 * given.query.shape[2] * given.query.element_size()
    return Work(len(loaded), loaded.total(), max(loaded.values(), default=0) // token_bytes)


def compare_counts(
    formula: Callable[..., tuple[int, int, int]],
    *versions: Callable[..., None],
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
) -> Table | None:
    """A table of what `formula` says of each version and what a run of it loads, in float32.

    Says in one line what is missing where something is not written yet, or where a GPU runs the kernels.
    """
    if not interpreted():
        print(
            "A GPU runs the kernels here, and their loads cannot be counted. Without a GPU, or with TRITON_INTERPRET=1"
        )
        print("in the environment, this cell counts them in Triton's interpreter.")
        return None
    rows = []
    for version in versions:
        given = batch(lengths, heads=heads, kv_heads=kv_heads, head_dim=head_dim, block_size=block_size)
        try:
            said = formula(version.__name__, list(lengths), heads, kv_heads, head_dim, 4, max([1, *lengths]))
            found = count(version, given)
        except Exception as raised:
            print(f"{version.__name__}: write it and counted_work first ({type(raised).__name__})")
            return None
        for what, due, got in zip(
            ("programs", "bytes", "longest walk, tokens"),
            said,
            (found.programs, found.bytes, found.longest_tokens),
            strict=True,
        ):
            rows.append((version.__name__, what, f"{due:,}", f"{got:,}", "yes" if due == got else "NO"))
    return Table(("Version", "What", "Your formula", "Counted", "Same"), rows, caption="Work, predicted and counted")


def _range_of(cache: Tensor) -> tuple[int, int]:
    """First address of a tensor and the one behind its last."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
    return cache.data_ptr(), cache.data_ptr() + span * cache.element_size()


@contextmanager
def _watched(loaded: Counter[tuple[int, ...]], ranges: list[tuple[int, int]]) -> Iterator[None]:
    """While the block runs, the interpreter tells each load; bytes from `ranges` are added to their program's.

    Caches that are views of one tensor lie between each other: an address in both counts once.
    """
    from triton.runtime.interpreter import interpreter_builder as builder  # type: ignore[import-untyped]

    place: list[int] = []
    launches = 0

    def starts(*at: int) -> None:
        nonlocal place, launches
        launches += not any(at)
        place = [launches, *at]
        plain_starts(*at)

    def loads(pointers: Any, mask: Any, *rest: Any) -> Any:
        result = plain_loads(pointers, mask, *rest)
        inside = mask.data & False
        for start, stop in ranges:
            inside = inside | ((pointers.data >= start) & (pointers.data < stop) & mask.data)
        number = int(inside.sum()) * result.data.itemsize
        if number:
            loaded[tuple(place)] += number
        return result

    plain_starts, plain_loads = builder.set_grid_idx, builder.create_masked_load
    builder.set_grid_idx, builder.create_masked_load = starts, loads
    try:
        yield
    finally:
        del builder.set_grid_idx, builder.create_masked_load
