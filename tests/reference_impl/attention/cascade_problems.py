"""Batches that begin alike, with everything around them that must not matter, and one way to run them.

Owns: drawing, poison, guards, and what holds after every run. Knows nothing of how the kernels work.
The prefix lies in blocks of its own. What a sequence's table has in its place, slots before the first own token and
behind the last, and blocks that no table names, are all poison.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.attention.cascade_decode import cascade_decode
from reference_impl.attention.cascade_work import CascadeWork
from reference_impl.attention.prefill_tuning import PrefillTuning
from tests.reference_impl.attention.decode_problems import FINE, GUARD_BLOCKS
from tests.reference_impl.attention.guards import check_near, guarded

SMALL = PrefillTuning(rows=16, tile_tokens=32, edge_tokens=16, num_warps=4, num_stages=2)
"""Tiles so small that a short prefix has several, of rows and of keys."""


@dataclass(frozen=True)
class Problem:
    """What `cascade_decode` is given, and what the definition says to it, [batch, heads, head_dim] float64."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    prefix_table: Tensor
    prefix_tokens: int
    block_tables: Tensor
    context_lens: Tensor
    scale: float
    want: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        caches = (self.query, self.key_cache, self.value_cache)
        return *caches, self.prefix_table, self.block_tables, self.context_lens

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor, Tensor, float]:
        """In the order of the call."""
        query, key_cache, value_cache, table, tables, lengths = self.tensors
        return query, key_cache, value_cache, table, self.prefix_tokens, tables, lengths, self.scale


def drawn(
    prefix_tokens: int,
    lengths: list[int],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    poison: float = float("nan"),
    unused: int = -1,
    whole: bool = False,
    seed: int = 0,
    shuffle: int = 0,
    device: torch.device,
) -> Problem:
    """lengths: of whole contexts; one below `prefix_tokens` ends within the prefix.

    seed draws the numbers, shuffle the places of blocks. whole: tables name the prefix's blocks, which must be full,
    instead of `unused`.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = -(-prefix_tokens // block_size)
    first = prefix_tokens // block_size
    own = [max(0, -(-length // block_size) - first) if length > prefix_tokens else 0 for length in lengths]
    num_blocks = shared + sum(own) + GUARD_BLOCKS
    places = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(shuffle)).to(torch.int32)
    # Keys and values side by side in one tensor, so that no stride is what it would be alone.
    caches = torch.full((num_blocks, 2, block_size, kv_heads, head_dim), poison, dtype=dtype)

    def put(table: Tensor, start: int, stop: int) -> Tensor:
        """Numbers of tokens `start` to `stop`, [tokens, 2, kv_heads, head_dim], now in the blocks of `table`."""
        tokens = torch.randn(stop - start, 2, kv_heads, head_dim, generator=generator).to(dtype)
        at = torch.arange(start, stop)
        caches[table[at // block_size].long(), :, at % block_size] = tokens
        return tokens

    prefix_table = torch.full((shared + 1,), unused, dtype=torch.int32)
    prefix_table[:shared] = places[:shared]
    prefix = put(prefix_table, 0, prefix_tokens)
    query = torch.randn(len(lengths), heads, head_dim, generator=generator).to(dtype)
    tables = torch.full((len(lengths), first + max([*own, 0]) + 1), unused, dtype=torch.int32)
    if whole:
        tables[:, :first] = prefix_table[:first]
    want = torch.zeros(len(lengths), heads, head_dim, dtype=torch.float64)
    taken = shared
    for row, (length, count) in enumerate(zip(lengths, own, strict=True)):
        tables[row, first : first + count] = places[taken : taken + count]
        taken += count
        tokens = torch.cat([prefix, put(tables[row], prefix_tokens, max(length, prefix_tokens))])[:length]
        if length:
            want[row] = reference.attention(query[row : row + 1], tokens[:, 0], tokens[:, 1], head_dim**-0.5).out[0]
    caches = caches.to(device)
    lens = torch.tensor(lengths, dtype=torch.int32, device=device)
    given = (query.to(device), caches[:, 0], caches[:, 1], prefix_table.to(device), prefix_tokens, tables.to(device))
    return Problem(*given, lens, head_dim**-0.5, want.to(device))


def work_for(problem: Problem, *, programs: int | None = None, tuning: PrefillTuning | None = SMALL) -> CascadeWork:
    """Work for the problem, refreshed, whose scratch is poison."""
    batch, heads, head_dim = problem.query.shape
    work = CascadeWork(
        batch,
        heads,
        problem.key_cache.shape[2],
        head_dim,
        problem.query.dtype,
        problem.query.device,
        programs=programs,
        tuning=tuning,
        suffix_tuning=FINE,
    )
    work.suffixes.partial_out.fill_(float("nan"))
    work.suffixes.partial_lse.fill_(float("nan"))
    work.refresh(problem.context_lens, problem.prefix_tokens)
    if work.begun is not None:
        work.begun.out.fill_(float("nan"))
        work.begun.lse.fill_(float("nan"))
    return work


def run(problem: Problem, work: CascadeWork | None = None) -> Tensor:
    """The kernels' answer, after a look at what must hold whatever it is."""
    out = guarded(problem.tensors, problem.query, lambda out: cascade_decode(*problem.inputs, out, work=work))
    if work is not None:
        work.check_invariants()
    return out


def check(problem: Problem, out: Tensor) -> None:
    """Raises: AssertionError unless `out` is what the definition says, within the type's error."""
    check_near(out, problem.want)
