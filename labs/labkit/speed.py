"""How fast a kernel of lab 4 is on this machine's GPU: a measurement for yourself, not the graded one.

Owns: random batches larger than the GPU's caches, the timing, and the sentence. Knows nothing of grading.
Method: copies of the batch that together are four times as large as the second-level cache, all calls in one CUDA
graph so that launches from Python do not count, the median of 20 replays. A plain copy of a gigabyte in the same run is
the measure, bytes read and written. Cost: some seconds on a GPU, nothing elsewhere.
"""

# torch annotates no streams, events or splits.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from labkit.gpu import device

if TYPE_CHECKING:
    from torch import Tensor

_REPLAYS = 20
_COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Speed:
    """call_s: seconds of one call. kv_bytes: keys and values of every context, once. copy_bytes_per_s: of a copy."""

    call_s: float
    kv_bytes: int
    copy_bytes_per_s: float

    @property
    def share(self) -> float:
        """Bytes of keys and values a second, as a share of those of a copy."""
        return self.kv_bytes / self.call_s / self.copy_bytes_per_s


def show(function: Callable[..., None], lengths: Sequence[int]) -> None:
    """Print how fast `function` is on contexts of `lengths` tokens, or in one line why that cannot be said."""
    if device() != "cuda":
        print("Speed is measured on a GPU, and Triton's interpreter runs your kernels here.")
        return
    try:
        found = measure(function, lengths)
    except NotImplementedError:
        print(f"{function.__name__} is not written yet")
        return
    print(
        f"{len(lengths)} contexts of {min(lengths):,} to {max(lengths):,} tokens: {found.call_s * 1e6:,.0f} us, "
        f"{found.kv_bytes / found.call_s / 1e9:,.0f} GB/s of keys and values, {found.share:.0%} of what a copy moves "
        f"({found.copy_bytes_per_s / 1e9:,.0f} GB/s read and written)"
    )


def measure(
    function: Callable[..., None],
    lengths: Sequence[int],
    *,
    heads: int = 32,
    kv_heads: int = 8,
    head_dim: int = 128,
    block_size: int = 16,
) -> Speed:
    """Time `function`, with the signature of paged_attention, on float16. Needs a GPU.

    Raises: ValueError unless there is a token to read.
    """
    import torch

    if not sum(lengths):
        raise ValueError(f"lengths must hold at least one token, got {list(lengths)}")

    blocks = [-(-length // block_size) for length in lengths]
    kv_bytes = sum(lengths) * 2 * kv_heads * head_dim * 2
    copies = 1 + 4 * torch.cuda.get_device_properties(0).L2_cache_size // kv_bytes
    shape = (copies * sum(blocks), block_size, kv_heads, head_dim)
    keys, values = (torch.randn(shape, dtype=torch.float16, device="cuda") for _ in range(2))
    places = torch.randperm(shape[0], device="cuda").to(torch.int32).split(blocks * copies)
    tables = torch.full((copies, len(lengths), max(blocks)), -1, dtype=torch.int32, device="cuda")
    for number, row in enumerate(places):
        tables[number // len(lengths), number % len(lengths), : len(row)] = row
    contexts = torch.tensor(list(lengths), dtype=torch.int32, device="cuda")
    query = torch.randn(len(lengths), heads, head_dim, dtype=torch.float16, device="cuda")
    out = torch.empty_like(query)

    def calls() -> None:
        for table in tables:
            function(query, keys, values, table, contexts, head_dim**-0.5, out)

    call_s = _seconds(calls) / copies
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target: Tensor = torch.empty_like(source)
    return Speed(call_s, kv_bytes, 2 * _COPY_BYTES / _seconds(lambda: target.copy_(source)))


def _seconds(work: Callable[[], object]) -> float:
    """The median over replays of a graph that holds `work`, which runs twice before, to compile."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times: list[float] = []
    for _ in range(_REPLAYS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return median(times)
