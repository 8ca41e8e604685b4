"""The batches on which prefill is timed, and random ones of that shape.

Owns: lengths and shapes, and how a batch is drawn: physical blocks in random order, fresh random numbers, and two
copies of everything, so that no call finds its own data in the second-level cache. Knows nothing of kernels or clocks.
The tuned cases are those that were looked at while the kernel was tuned; the held-out ones were not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from reference_impl.bench.kernel_cases import uniform

_COPIES = 2


@dataclass(frozen=True)
class PrefillCase:
    """One step of prefill. rows: (query tokens, context with them) of each sequence."""

    name: str
    rows: tuple[tuple[int, int], ...]
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    held_out: bool = False

    @property
    def equal(self) -> bool:
        """Whether all sequences are alike, so that they fit a rectangle without padding."""
        return len(set(self.rows)) == 1

    @property
    def tokens(self) -> int:
        """Query tokens of all sequences."""
        return sum(queries for queries, _ in self.rows)

    @property
    def flops(self) -> int:
        """Operations that the definition asks for: 4 * head_dim for each query head, token and token it sees."""
        seen = sum(queries * context - queries * (queries - 1) // 2 for queries, context in self.rows)
        return 4 * self.head_dim * self.heads * seen


@dataclass(frozen=True)
class PrefillReplica:
    """A copy of a case's data: caches [num_blocks, block_size, kv_heads, head_dim], else [tokens, heads, head_dim]."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    out: Tensor


@dataclass(frozen=True)
class PrefillBatch:
    """A case drawn: replicas share tables and lengths. block_tables: [sequences, max_blocks] int32, -1 where unused."""

    case: PrefillCase
    replicas: list[PrefillReplica]
    block_tables: Tensor
    context_lens: Tensor
    cu_seqlens: Tensor
    scale: float


def _prompts(lengths: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((length, length) for length in lengths)


PREFILL_CASES: tuple[PrefillCase, ...] = (
    PrefillCase("prefill, 1 x 8k, 32/8, 128", _prompts((8192,)), 32, 8, 128),
    PrefillCase("prefill, 8 x 2k, 32/8, 128", _prompts((2048,) * 8), 32, 8, 128),
    PrefillCase("prefill, 16 x uniform 1..4k, 32/8, 128", _prompts(uniform(16, 1, 4096, 4)), 32, 8, 128),
    PrefillCase("prefill, 28 x uniform 100..1024, 16/8, 128", _prompts(uniform(28, 100, 1024, 5)), 16, 8, 128),
    PrefillCase("prefill, 512 behind 8k, 32/8, 128", ((512, 8704),), 32, 8, 128),
    # Held out.
    PrefillCase("prefill, 4 x 4k, 32/32, 128", _prompts((4096,) * 4), 32, 32, 128, held_out=True),
    PrefillCase("prefill, 8 x 2k, 32/8, 64", _prompts((2048,) * 8), 32, 8, 64, held_out=True),
    PrefillCase("prefill, 4 x 2k, 8/1, 256", _prompts((2048,) * 4), 8, 1, 256, block_size=32, held_out=True),
    PrefillCase("prefill, 6 x 3001, 28/4, 96", _prompts((3001,) * 6), 28, 4, 96, held_out=True),
    PrefillCase(
        "prefill, 12 x 300 behind uniform 1..6k, 32/8, 128",
        tuple((300, 300 + cached) for cached in uniform(12, 1, 6000, 6)),
        32,
        8,
        128,
        held_out=True,
    ),
)


def draw_prefill(case: PrefillCase, generator: torch.Generator) -> PrefillBatch:
    """A batch on the generator's device, a fresh one at every call."""
    device = generator.device
    blocks = [-(-context // case.block_size) for _, context in case.rows]
    num_blocks = sum(blocks)
    shuffled = torch.randperm(num_blocks, generator=generator, device=device).to(torch.int32)
    tables = torch.full((len(blocks), max(blocks)), -1, dtype=torch.int32, device=device)
    start = 0
    for place, count in enumerate(blocks):
        tables[place, :count] = shuffled[start : start + count]
        start += count

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=case.dtype)

    def replica() -> PrefillReplica:
        query = random(case.tokens, case.heads, case.head_dim)
        key_cache, value_cache = (random(num_blocks, case.block_size, case.kv_heads, case.head_dim) for _ in range(2))
        return PrefillReplica(query, key_cache, value_cache, torch.full_like(query, float("nan")))

    starts = list(accumulate((queries for queries, _ in case.rows), initial=0))
    return PrefillBatch(
        case,
        [replica() for _ in range(_COPIES)],
        tables,
        torch.tensor([context for _, context in case.rows], dtype=torch.int32, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        case.head_dim**-0.5,
    )
