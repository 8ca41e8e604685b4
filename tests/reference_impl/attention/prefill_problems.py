"""Batches for the prefill kernel, with everything around them that must not matter, and one way to run them.

Owns: drawing, poison, guards, and what holds after every run. Knows nothing of how the kernel works.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.attention.paged_prefill import paged_prefill
from reference_impl.attention.prefill_tuning import PrefillTuning
from tests.reference_impl.attention.decode_problems import GUARD_BLOCKS
from tests.reference_impl.attention.guards import check_near, guarded

SMALL = PrefillTuning(rows=16, tile_tokens=32, edge_tokens=16, num_warps=4, num_stages=2)
"""Tiles so small that short prompts have several, of queries and of keys."""
PADS = 3
"""Query tokens behind the last sequence, which are nobody's."""


@dataclass(frozen=True)
class Problem:
    """What `paged_prefill` is given. Blocks that no table names, and slots behind a context, hold the poison."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor
    cu_seqlens: Tensor
    scale: float
    window: int | None = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.query, self.key_cache, self.value_cache, self.block_tables, self.context_lens, self.cu_seqlens

    @property
    def tokens(self) -> int:
        """Query tokens of all sequences, without the pads."""
        return int(self.cu_seqlens[-1] - self.cu_seqlens[0])


def drawn(
    rows: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    poison: float = float("nan"),
    unused: int = -1,
    first_token: int = 0,
    pads: int = PADS,
    seed: int = 0,
    shuffle: int = 0,
    device: torch.device,
) -> Problem:
    """rows: (query tokens, context) of each sequence. seed draws the numbers, shuffle the places of blocks.

    first_token: where the first sequence begins in the batch that this is a part of.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = [-(-context // block_size) for _, context in rows]
    num_blocks = sum(blocks) + GUARD_BLOCKS
    places = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(shuffle)).to(torch.int32)
    # Keys and values side by side in one tensor, so that no stride is what it would be alone.
    caches = torch.full((num_blocks, 2, block_size, kv_heads, head_dim), poison, dtype=torch.float64)
    tables = torch.full((len(rows), max([*blocks, 0]) + 1), unused, dtype=torch.int32)
    taken = 0
    for place, ((_, context), count) in enumerate(zip(rows, blocks, strict=True)):
        tables[place, :count] = places[taken : taken + count]
        taken += count
        tokens = torch.randn(context, 2, kv_heads, head_dim, generator=generator, dtype=torch.float64)
        at = torch.arange(context)
        caches[tables[place, at // block_size].long(), :, at % block_size] = tokens
    counts = [queries for queries, _ in rows]
    query = torch.randn(sum(counts) + pads, heads, head_dim, generator=generator, dtype=torch.float64)
    caches = caches.to(device, dtype)
    return Problem(
        query.to(device, dtype),
        caches[:, 0],
        caches[:, 1],
        tables.to(device),
        torch.tensor([context for _, context in rows], dtype=torch.int32, device=device),
        torch.tensor(list(accumulate(counts, initial=first_token)), dtype=torch.int32, device=device),
        head_dim**-0.5,
        window,
    )


def run(problem: Problem, tuning: PrefillTuning | None = SMALL) -> Tensor:
    """The kernel's answer without the pads, after a look at what must hold whatever it is."""
    return guarded(
        problem.inputs,
        problem.query,
        lambda out: paged_prefill(*problem.inputs, problem.scale, out, window=problem.window, tuning=tuning),
        problem.tokens,
    )


def expected(problem: Problem) -> Tensor:
    """The oracle's answer in float64, without the pads."""
    return reference.paged_prefill(
        problem.query[: problem.tokens],
        *problem.inputs[1:4],
        problem.cu_seqlens - problem.cu_seqlens[0],
        problem.context_lens,
        problem.scale,
        window=problem.window,
    )


def check(problem: Problem, out: Tensor) -> None:
    """Raises: AssertionError unless `out` is what the definition says, within the type's error."""
    check_near(out, expected(problem))
