"""The batches on which decode kernels are timed, and random ones of that shape.

Owns: lengths and shapes, and how a batch is drawn: physical blocks in random order, fresh random numbers, and as many
copies of the cache as no second-level cache holds. Knows nothing of kernels or clocks.
The tuned cases are those that were looked at while the kernel was tuned; the held-out ones were not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference_impl.attention.fp8 import FP8, KVScales, quantised

ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative L2 over the output, as lab 4 has it."""
REPLICA_BYTES = 512_000_000
"""All copies of one batch's keys and values together: ten times the second-level cache of an H100."""


@dataclass(frozen=True)
class DecodeCase:
    """One decode step of a batch: `lengths` tokens of context each."""

    name: str
    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None
    held_out: bool = False
    narrow: bool = False
    """Whether keys and values are kept in 8 bits; queries and answers are of `dtype`."""

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the cache."""
        return FP8 if self.narrow else self.dtype

    @property
    def equal(self) -> bool:
        """Whether all contexts are of one length, so that a rectangle has no padding."""
        return len(set(self.lengths)) == 1

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that must be read."""
        tokens = sum(min(length, self.window or length) for length in self.lengths)
        return 2 * tokens * self.kv_heads * self.head_dim * self.kv_dtype.itemsize


@dataclass(frozen=True)
class Replica:
    """A copy of a case's data: caches [num_blocks, block_size, kv_heads, head_dim], else [batch, heads, head_dim]."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    out: Tensor


@dataclass(frozen=True)
class Batch:
    """A case drawn: replicas share tables and lengths. block_tables: [batch, max_blocks] int32, -1 where unused."""

    case: DecodeCase
    replicas: list[Replica]
    block_tables: Tensor
    context_lens: Tensor
    scale: float
    kv_scales: KVScales | None = None

    @property
    def scaled(self) -> dict[str, Any]:
        """What a cache of 8 bits needs, as keywords of our functions."""
        return {} if self.kv_scales is None else {"k_scale": self.kv_scales.k, "v_scale": self.kv_scales.v}


def lognormal(count: int, mean: float, sigma: float, least: int, most: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths like those of real requests: most short, a few very long."""
    drawn = np.random.default_rng(seed).lognormal(mean, sigma, count)
    return tuple(int(length) for length in np.clip(drawn, least, most))


def uniform(count: int, least: int, most: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths from `least` to `most`."""
    return tuple(int(length) for length in np.random.default_rng(seed).integers(least, most + 1, count))


_UNEQUAL = lognormal(64, 7, 1, 64, 16_384)

DECODE_CASES: tuple[DecodeCase, ...] = (
    DecodeCase("1 x 16k, 32/8, 128", (16_384,), 32, 8, 128, 16),
    DecodeCase("8 x 4k, 32/8, 128", (4096,) * 8, 32, 8, 128, 16),
    DecodeCase("64 x 2k, 32/8, 128", (2048,) * 64, 32, 8, 128, 16),
    DecodeCase("256 x 1k, 32/8, 128", (1024,) * 256, 32, 8, 128, 16),
    DecodeCase("64 x lognormal(7, 1), 32/8, 128", _UNEQUAL, 32, 8, 128, 16),
    DecodeCase("64 x lognormal(7, 1), 32/8, 128, block 32", _UNEQUAL, 32, 8, 128, 32),
    DecodeCase("32 x 2k, 32/32, 128", (2048,) * 32, 32, 32, 128, 16),
    DecodeCase("64 x 1k, 16/4, 64", (1024,) * 64, 16, 4, 64, 16),
    DecodeCase("128 x 512, 16/8, 128", (512,) * 128, 16, 8, 128, 16),
    # Held out.
    DecodeCase(
        "48 x lognormal(6.5, 1.5), 28/4, 128", lognormal(48, 6.5, 1.5, 16, 32_768, 1), 28, 4, 128, 16, held_out=True
    ),
    DecodeCase("200 x uniform 1..2000, 64/8, 128, block 32", uniform(200, 1, 2000, 2), 64, 8, 128, 32, held_out=True),
    DecodeCase("1 x 32k + 63 x 500, 32/8, 128", (32_768, *(500,) * 63), 32, 8, 128, 16, held_out=True),
    DecodeCase("40 x 3001, 32/32, 96", (3001,) * 40, 32, 32, 96, 16, held_out=True),
    DecodeCase("96 x lognormal(7, 1), 8/1, 256", lognormal(96, 7, 1, 64, 16_384, 3), 8, 1, 256, 16, held_out=True),
    DecodeCase("100 x 777, 9/3, 64, block 64", (777,) * 100, 9, 3, 64, 64, held_out=True),
    DecodeCase("64 x 8k, window 1024, 32/8, 128", (8192,) * 64, 32, 8, 128, 16, window=1024, held_out=True),
    DecodeCase("64 x lognormal(7, 1), 32/8, 128, float16", _UNEQUAL, 32, 8, 128, 16, torch.float16, held_out=True),
    # In 8 bits: the tiles follow from the rule, and were tried on none of these.
    DecodeCase("64 x 2k, 32/8, 128, fp8", (2048,) * 64, 32, 8, 128, 16, held_out=True, narrow=True),
    DecodeCase("64 x lognormal(7, 1), 32/8, 128, fp8", _UNEQUAL, 32, 8, 128, 16, held_out=True, narrow=True),
)


def draw(case: DecodeCase, generator: torch.Generator) -> Batch:
    """A batch on the generator's device, a fresh one at every call."""
    device = generator.device
    blocks = [-(-length // case.block_size) for length in case.lengths]
    num_blocks = sum(blocks)
    shuffled = torch.randperm(num_blocks, generator=generator, device=device).to(torch.int32)
    tables = torch.full((len(blocks), max(blocks)), -1, dtype=torch.int32, device=device)
    start = 0
    for place, count in enumerate(blocks):
        tables[place, :count] = shuffled[start : start + count]
        start += count

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=case.dtype)

    def replica() -> Replica:
        query = random(len(blocks), case.heads, case.head_dim)
        size = (num_blocks, case.block_size, case.kv_heads, case.head_dim)
        key_cache, value_cache = (random(*size) if by is None else quantised(random(*size), by) for by in halves)
        return Replica(query, key_cache, value_cache, torch.full_like(query, float("nan")))

    # Powers of two with room for four times the largest of random numbers, as an engine would choose.
    scales = KVScales(*torch.full((2, case.kv_heads), 2.0**-4, device=device)) if case.narrow else None
    halves = scales or (None, None)
    copies = max(2, -(-REPLICA_BYTES // case.kv_bytes))
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    return Batch(case, [replica() for _ in range(copies)], tables, lengths, case.head_dim**-0.5, scales)


def four_digits(value: float) -> float:
    """The rest is noise."""
    return float(f"{value:.4g}")
