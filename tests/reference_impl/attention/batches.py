"""Batches over a poisoned cache, for every attention that is held against the oracle.

Owns: where the tokens of a batch lie and what stands elsewhere (NaN). Knows nothing of who computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from reference_impl.attention.metadata import AttentionMetadata, BatchRow, build_metadata
from reference_impl.attention.reference import paged_prefill, store_kv

NAN = float("nan")


@dataclass(frozen=True)
class Shape:
    """What a batch is made from. rows: (query tokens, context tokens) of each sequence, in the order of a batch."""

    rows: tuple[tuple[int, int], ...]
    block_size: int
    kv_heads: int
    group: int
    head_dim: int
    heads_outermost: bool
    num_pads: int
    seed: int


@st.composite
def shapes(draw: st.DrawFn, *, longest: int = 40, most_queries: int = 12) -> Shape:
    """Decodes, whole prompts and chunks in one batch, lengths of every kind."""
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from([1, 1, 2, most_queries]), st.integers(0, longest)).map(
                lambda pair: (pair[0], pair[0] + pair[1])
            ),
            max_size=6,
        )
    )
    return Shape(
        rows=tuple(sorted(rows, key=lambda row: row[0] > 1)),
        block_size=draw(st.sampled_from([1, 2, 3, 16])),
        kv_heads=draw(st.sampled_from([1, 2, 3])),
        group=draw(st.sampled_from([1, 2, 3])),
        head_dim=draw(st.sampled_from([2, 8])),
        heads_outermost=draw(st.booleans()),
        num_pads=draw(st.integers(0, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


class Batch:
    """A batch of `shape`, its keys and values already in the caches, at blocks in no order."""

    def __init__(self, shape: Shape, *, dtype: torch.dtype = torch.float32) -> None:
        make = torch.Generator().manual_seed(shape.seed)
        size = shape.block_size
        num_blocks = sum(-(-context // size) for _, context in shape.rows) + 2
        free = torch.randperm(num_blocks, generator=make).tolist()
        tables = [[free.pop() for _ in range(-(-context // size))] for _, context in shape.rows]
        self.key_cache, self.value_cache = (self._cache(num_blocks, shape, dtype) for _ in range(2))
        for table, (_, context) in zip(tables, shape.rows, strict=True):
            slots = torch.tensor([table[token // size] * size + token % size for token in range(context)])
            key, value = (torch.randn(context, shape.kv_heads, shape.head_dim, generator=make) for _ in range(2))
            store_kv(key.to(dtype), value.to(dtype), self.key_cache, self.value_cache, slots)
        rows = [BatchRow(table, *sizes) for table, sizes in zip(tables, shape.rows, strict=True)]
        self.metadata = build_metadata(rows, size, num_pads=shape.num_pads)
        heads = shape.kv_heads * shape.group
        self.query = torch.randn(self.metadata.num_tokens, heads, shape.head_dim, generator=make).to(dtype)

    @staticmethod
    def _cache(num_blocks: int, shape: Shape, dtype: torch.dtype) -> Tensor:
        if shape.heads_outermost:
            cache = torch.full((shape.kv_heads, num_blocks, shape.block_size, shape.head_dim), NAN, dtype=dtype)
            return cache.permute(1, 2, 0, 3)
        return torch.full((num_blocks, shape.block_size, shape.kv_heads, shape.head_dim), NAN, dtype=dtype)

    def expected(self, scale: float, window: int | None = None) -> Tensor:
        """The oracle's answer in float64, without the pads."""
        metadata: AttentionMetadata = self.metadata
        return paged_prefill(
            self.query[: int(metadata.cu_seqlens[-1])],
            self.key_cache,
            self.value_cache,
            metadata.block_tables,
            metadata.cu_seqlens,
            metadata.context_lens,
            scale,
            window=window,
        )
