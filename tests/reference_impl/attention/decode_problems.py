"""Batches for the decode kernel, with everything around them that must not matter, and one way to run them.

Owns: drawing, poison, guards, and what holds after every run. Knows nothing of how the kernel works.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.work_list import Tuning, WorkList
from tests.reference_impl.attention.guards import check_near, guarded

GUARD_BLOCKS = 2
FINE = Tuning(tile_tokens=16, num_warps=4, num_stages=2, resident=1)
"""Tiles so small that short contexts are cut too."""


@dataclass(frozen=True)
class Problem:
    """What `paged_decode` is given. Blocks that no table names, and slots behind a context, hold the poison."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor
    scale: float
    window: int | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.query, self.key_cache, self.value_cache, self.block_tables, self.context_lens


def drawn(
    lengths: list[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    poison: float = float("nan"),
    unused: int = -1,
    seed: int = 0,
    shuffle: int = 0,
    device: torch.device,
) -> Problem:
    """seed draws the numbers, shuffle the places of blocks: the numbers of a token are the same wherever it lies."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [-(-length // block_size) for length in lengths]
    num_blocks = sum(blocks) + GUARD_BLOCKS
    places = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(shuffle)).to(torch.int32)
    # Keys and values side by side in one tensor, so that no stride is what it would be alone.
    caches = torch.full((num_blocks, 2, block_size, kv_heads, head_dim), poison, dtype=torch.float64)
    tables = torch.full((len(lengths), max([*blocks, 0]) + 1), unused, dtype=torch.int32)
    taken = 0
    for row, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        tables[row, :count] = places[taken : taken + count]
        taken += count
        tokens = torch.randn(length, 2, kv_heads, head_dim, generator=generator, dtype=torch.float64)
        for token in range(length):
            caches[int(tables[row, token // block_size]), :, token % block_size] = tokens[token]
    query = torch.randn(len(lengths), heads, head_dim, generator=generator, dtype=torch.float64)
    caches = caches.to(device, dtype)
    return Problem(
        query.to(device, dtype),
        caches[:, 0],
        caches[:, 1],
        tables.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        head_dim**-0.5,
        window,
    )


def work_for(problem: Problem, *, programs: int | None = None, tuning: Tuning = FINE) -> WorkList:
    """A work list for the problem, refreshed, whose scratch is poison."""
    batch, heads, head_dim = problem.query.shape
    work = WorkList(
        batch,
        heads,
        problem.key_cache.shape[2],
        head_dim,
        problem.query.dtype,
        problem.query.device,
        window=problem.window,
        programs=programs,
        tuning=tuning,
    )
    work.partial_out.fill_(float("nan"))
    work.partial_lse.fill_(float("nan"))
    return work.refresh(problem.context_lens)


def run(problem: Problem, work: WorkList | None = None) -> Tensor:
    """The kernel's answer, after a look at what must hold whatever it is."""
    out = guarded(
        problem.inputs,
        problem.query,
        lambda out: paged_decode(*problem.inputs, problem.scale, out, window=problem.window, work=work),
    )
    if work is not None:
        work.check_invariants()
    return out


def check(problem: Problem, out: Tensor) -> None:
    """Raises: AssertionError unless `out` is what the definition says, within the type's error."""
    check_near(out, reference.paged_decode(*problem.inputs, problem.scale, window=problem.window))


def with_window(problem: Problem, window: int | None) -> Problem:
    """The same batch, its last `window` tokens."""
    return replace(problem, window=window)
