"""The paradox of free memory: refused while more than half of it is free.

Owns: the search for that moment in a workload, and the proof that only the placement is to blame. Knows nothing of how
an allocator works.
Two memories of the same size live through the same history. Each request takes room for all its tokens, prompt and
output, when it comes, and returns it when its last token is made: one token a step. The first memory gives one range
by first fit, the second gives blocks. Nothing else differs: no request is given more than it uses, and the second
memory is not allowed to grow as tokens come, though paging could.
Source: Kwon et al., SOSP 2023, section 3.1 (external fragmentation).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from labkit.contracts import OutOfBlocks, OutOfMemory
from labkit.workloads import sample
from reference_impl.memory.block_allocator import BlockAllocator
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import ContiguousAllocator, Event, at_least_one

Arrival = tuple[int, int, int]
"""Step of arrival, prompt tokens, output tokens."""


@dataclass(frozen=True)
class Paradox:
    """The moment, in tokens. `history` is every call before it, for `ContiguousAllocator(capacity)` to be replayed."""

    capacity: int
    block_size: int
    step: int
    request: int
    wanted: int
    free: int
    holes: tuple[tuple[int, int], ...]
    blocks_needed: int
    blocks_free: int
    history: tuple[Event, ...]

    @property
    def free_share(self) -> float:
        """Share of the memory that was free when the request was refused."""
        return self.free / self.capacity

    @property
    def largest_hole(self) -> int:
        """Tokens of the longest hole: less than was wanted."""
        return max((size for _, size in self.holes), default=0)

    def __str__(self) -> str:
        return (
            f"step {self.step}: request {self.request} wants {self.wanted} tokens and {self.free} of {self.capacity} "
            f"are free ({self.free_share:.0%}), but the largest of {len(self.holes)} holes has {self.largest_hole}: "
            f"refused. In blocks of {self.block_size} it needs {self.blocks_needed} of {self.blocks_free} free ones: "
            "admitted."
        )


def paradox(
    seed: int, capacity: int = 15_728, load: float = 0.4, workload: str = "azure_conv", requests: int = 10_000
) -> Paradox | None:
    """The paradox in a seeded workload; None if `requests` requests hold none.

    Lengths are `labkit.workloads.sample(workload, seed)`, those that exceed the memory left out; arrivals are random
    at the rate that would keep the share `load` of the memory in use. The capacity is that of OPT-13B with 12 GiB for
    KV. Raises: ValueError as `arrivals` and `first_paradox` do. Cost: O(requests), well under a second.
    """
    lengths = sample(workload, seed, requests)
    pairs = zip(lengths.prompt_tokens.tolist(), lengths.output_tokens.tolist(), strict=True)
    rows = [(prompt, output) for prompt, output in pairs if prompt + output <= capacity]
    return first_paradox(arrivals(rows, capacity, load, seed), capacity)


def arrivals(rows: Sequence[tuple[int, int]], capacity: int, load: float, seed: int) -> Iterator[Arrival]:
    """(prompt, output) rows in their order, at random steps: exponential gaps that make the mean use `load`.

    Mean use is what Little's law says of memory: rate of arrival times tokens times steps of a request, if nobody is
    refused. Raises: ValueError on no rows or a load that is not above 0.
    """
    if not rows:
        raise ValueError("no requests to arrive")
    if not load > 0:
        raise ValueError(f"load must be above 0, got {load}")
    dice = random.Random(seed)
    rate = load * capacity * len(rows) / sum((prompt + output) * output for prompt, output in rows)
    moment = 0.0
    for prompt, output in rows:
        moment += dice.expovariate(rate)
        yield int(moment), prompt, output


def first_paradox(arrivals: Iterable[Arrival], capacity: int, block_size: int = 16) -> Paradox | None:
    """The first refusal with more than half of the memory free; None if `arrivals`, in order of step, hold none.

    Requests that either memory refuses before that are dropped from both, so that both stay alike.
    Raises: ValueError on a capacity that is not whole blocks, an arrival before the one above it, or tokens below 1.
    """
    if capacity % at_least_one("block_size", block_size):
        raise ValueError(f"capacity {capacity} is no multiple of block_size {block_size}")
    ranges, blocks = ContiguousAllocator(capacity), BlockAllocator(capacity // block_size, block_size)
    ends: list[tuple[int, int]] = []
    history: list[Event] = []
    now = 0
    for request, (step, prompt, output) in enumerate(arrivals):
        if step < now or prompt < 1 or output < 1:
            raise ValueError(
                f"request {request}: step {step} after step {now}, {prompt} prompt and {output} output tokens"
            )
        now = step
        while ends and ends[0][0] <= now:
            _, done = heapq.heappop(ends)
            ranges.free(done)
            blocks.free(done)
            history.append(("free", done))
        wanted = prompt + output
        free_blocks = blocks.num_free_blocks
        try:
            blocks.allocate(request, wanted)
        except OutOfBlocks:
            continue
        try:
            ranges.allocate(request, wanted)
        except OutOfMemory:
            holes = tuple(ranges.holes())
            free = sum(size for _, size in holes)
            if 2 * free > capacity:
                needed = blocks_for(wanted, block_size)
                return Paradox(
                    capacity, block_size, now, request, wanted, free, holes, needed, free_blocks, tuple(history)
                )
            blocks.free(request)
            continue
        history.append(("allocate", request, wanted))
        heapq.heappush(ends, (now + output, request))
    return None
