"""What lab 4 is asked: queries, keys and values drawn from a seed, and how they lie in blocks.

Owns: the kinds of calls (few, as a GPU compiles a kernel for each), their contents, the placing of a content in
scattered blocks between guards, and the answer by definition in float64. The same content can be placed in many ways
and has one answer. Knows nothing of what is looked at afterwards (attention_view.py). Sizes are small: Triton's
interpreter takes milliseconds a program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autograder.judge.subject import Subject
from reference_impl.attention import reference

GUARD = -777.0
"""What stands before and behind every tensor of floats, and between rows that are apart."""
GUARD_INT = -1
GUARD_ELEMENTS = 64


@dataclass(frozen=True)
class Kind:
    """What a kernel is compiled for: type, head_dim, block size, and how many query heads read each KV head."""

    dtype: torch.dtype
    head_dim: int
    block_size: int
    kv_heads: int
    group: int

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group


PLAIN = Kind(torch.float32, 32, 4, 2, 1)
WIDE = Kind(torch.float32, 64, 16, 2, 1)
HALF_ODD = Kind(torch.float16, 128, 7, 2, 1)
SINGLE = Kind(torch.float32, 32, 1, 2, 1)
GROUPED = Kind(torch.float32, 32, 4, 2, 4)
HALF_GROUPED = Kind(torch.float16, 64, 16, 2, 3)
MULTI_QUERY = Kind(torch.float32, 64, 5, 1, 8)
PAIRS = Kind(torch.float32, 64, 16, 3, 2)
SEVENS = Kind(torch.float16, 32, 3, 2, 7)
LARGE_BLOCKS = Kind(torch.float32, 32, 256, 2, 1)
DEEP = Kind(torch.float32, 128, 16, 1, 4)
BRAIN = Kind(torch.bfloat16, 64, 16, 2, 4)
BRAIN_DEEP = Kind(torch.bfloat16, 128, 16, 1, 8)

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative L2 error that the contract allows over `out`; in one row of it, four times as much."""
HUGE = {torch.float32: 1e30, torch.float16: 6e4, torch.bfloat16: 1e30}


@dataclass(frozen=True)
class Content:
    """One batch without any layout. query: [batch, heads, head_dim]; keys, values: one [tokens, kv_heads, head_dim]
    for each sequence."""

    kind: Kind
    query: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    scale: float

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [len(keys) for keys in self.keys]

    def answer(self) -> Tensor:
        """[batch, heads, head_dim] float64, by the definition of attention; no block is involved."""
        rows = [
            reference.attention(self.query[i : i + 1], keys, values, self.scale).out[0]
            if len(keys)
            else torch.zeros(self.query.shape[1:], dtype=torch.float64)
            for i, (keys, values) in enumerate(zip(self.keys, self.values, strict=True))
        ]
        return torch.stack(rows) if rows else torch.zeros(self.query.shape, dtype=torch.float64)


class Draw:
    """Numbers from a seed. Every call goes on where the last one ended."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self._generator).to(dtype)

    def order(self, count: int) -> list[int]:
        """The numbers below `count` in any order."""
        return torch.randperm(count, generator=self._generator).tolist()

    def content(self, kind: Kind, lengths: Sequence[int], scale: float | None = None) -> Content:
        """A batch with these context lengths. scale: 1 / sqrt(head_dim) unless given."""
        tokens = [(length, kind.kv_heads, kind.head_dim) for length in lengths]
        return Content(
            kind,
            self.normal(len(lengths), kind.heads, kind.head_dim, dtype=kind.dtype),
            tuple(self.normal(*shape, dtype=kind.dtype) for shape in tokens),
            tuple(self.normal(*shape, dtype=kind.dtype) for shape in tokens),
            kind.head_dim**-0.5 if scale is None else scale,
        )

    def placed(self, content: Content, layout: Layout | None = None) -> Call:
        """`content` in blocks of no order, some of them free."""
        return _place(self, content, layout or Layout())


@dataclass(frozen=True)
class Layout:
    """How a content lies in memory. The defaults are the plainest and harmless: who reads an unwritten slot, say, fails
    the tests about that and no others."""

    caches: str = "apart"
    """apart, one_tensor, interleaved, heads_first, padded or unlike."""
    strided: bool = False
    """Whether query, out and tables are views with gaps between their rows: the last dimension is always contiguous."""
    key_poison: float = 0.0
    value_poison: float = 0.0
    """What stands in slots without a token and in free blocks."""
    pads: tuple[int, ...] = (-1,)
    """What stands in table entries behind the last block of a sequence."""
    out_fill: float = 0.0
    spare_blocks: int = 3


@dataclass(frozen=True)
class Call:
    """One call of paged_attention. `arenas` is the whole memory of each tensor, guards included."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    context_lens: Tensor
    scale: float
    out: Tensor
    arenas: dict[str, Tensor]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """In the order of the contract."""
        tensors = (self.query, self.key_cache, self.value_cache, self.block_tables, self.context_lens)
        return (*tensors, self.scale, self.out)

    def run(self, subject: Subject) -> Tensor:
        """Have `subject` answer it; gives `out`."""
        subject.paged_attention(*self.arguments)
        return self.out


def guarded(shape: Sequence[int], dtype: torch.dtype, guard: int = GUARD_ELEMENTS) -> tuple[Tensor, Tensor]:
    """A tensor of `shape`, and the memory it lies in with `guard` elements on each side. All of it holds the guard."""
    numel = torch.Size(shape).numel()
    filler = GUARD if dtype.is_floating_point else GUARD_INT
    arena = torch.full((numel + 2 * guard,), filler, dtype=dtype)
    return arena[guard : guard + numel].view(*shape), arena


def caches(form: str, kind: Kind, num_blocks: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Key and value cache [num_blocks, block_size, kv_heads, head_dim] in one of the forms, and their arenas."""
    block = (kind.block_size, kind.kv_heads, kind.head_dim)
    guard = max(GUARD_ELEMENTS, torch.Size(block).numel())
    if form == "one_tensor":
        pool, arena = guarded((2, num_blocks, *block), kind.dtype, guard)
        return pool[0], pool[1], {"caches": arena}
    if form == "interleaved":
        pool, arena = guarded((num_blocks, 2, *block), kind.dtype, guard)
        return pool[:, 0], pool[:, 1], {"caches": arena}
    made = []
    for which in ("keys", "values"):
        odd = form == "heads_first" or (form == "unlike" and which == "values")
        if odd:
            pool, arena = guarded((num_blocks, kind.kv_heads, kind.block_size, kind.head_dim), kind.dtype, guard)
            made.append((pool.transpose(1, 2), arena))
        elif form == "padded":
            pool, arena = guarded((num_blocks, *block[:-1], kind.head_dim + 16), kind.dtype, guard)
            made.append((pool[..., : kind.head_dim], arena))
        else:
            made.append(guarded((num_blocks, *block), kind.dtype, guard))
    (keys, key_arena), (values, value_arena) = made
    return keys, values, {"key_cache": key_arena, "value_cache": value_arena}


def _place(draw: Draw, content: Content, layout: Layout) -> Call:
    kind, size = content.kind, content.kind.block_size
    needed = [-(-length // size) for length in content.lengths]
    num_blocks = sum(needed) + layout.spare_blocks
    free = draw.order(num_blocks)
    key_cache, value_cache, arenas = caches(layout.caches, kind, num_blocks)
    key_cache.fill_(layout.key_poison)
    value_cache.fill_(layout.value_poison)
    batch, width = len(needed), max(needed, default=0) + 2

    gap = (2,) if layout.strided else ()
    # Kernels compute rows of heads by sixteens: a store without its mask shall land in a guard, not in the unknown.
    rows = (batch, kind.heads, *gap, kind.head_dim)
    query, arenas["query"] = guarded(rows, kind.dtype, 32 * kind.head_dim)
    out, arenas["out"] = guarded(rows, kind.dtype, 32 * kind.head_dim)
    tables, arenas["block_tables"] = guarded((batch, *gap, width), torch.int32)
    lens, arenas["context_lens"] = guarded((batch,), torch.int32)
    if layout.strided:
        query, out, tables = query[:, :, 0], out[:, :, 0], tables[:, 0]

    query.copy_(content.query)
    out.fill_(layout.out_fill)
    lens.copy_(torch.tensor(content.lengths, dtype=torch.int32))
    for i, blocks in enumerate(needed):
        mine = [free.pop() for _ in range(blocks)]
        pads = [layout.pads[j % len(layout.pads)] for j in range(width - blocks)]
        tables[i] = torch.tensor(mine + pads, dtype=torch.int32)
        for token in range(0, content.lengths[i], size):
            part = slice(token, token + size)
            count = len(content.keys[i][part])
            key_cache[mine[token // size], :count] = content.keys[i][part]
            value_cache[mine[token // size], :count] = content.values[i][part]
    return Call(query, key_cache, value_cache, tables, lens, content.scale, out, arenas)


class AttentionBackend:
    """The contract as a hidden test must find it right: by its definition in float64, on a GPU by our kernels."""

    @staticmethod
    def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
        """As in the contract."""
        if key_cache.is_cuda:
            # Triton stays out of a judge that has no GPU.
            from reference_impl.attention import store_kv as ours

            ours.store_kv(key, value, key_cache, value_cache, slot_mapping)
        else:
            reference.store_kv(key, value, key_cache, value_cache, slot_mapping)

    @staticmethod
    def paged_attention(
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        out: Tensor,
    ) -> None:
        """As in the contract."""
        if query.is_cuda:
            from reference_impl.attention import paged_decode as ours

            ours.paged_decode(query, key_cache, value_cache, block_tables, context_lens, scale, out)
        else:
            out.copy_(reference.paged_decode(query, key_cache, value_cache, block_tables, context_lens, scale))
