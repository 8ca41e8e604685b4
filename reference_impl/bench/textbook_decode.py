"""Paged decode as a textbook has it: one program for each sequence and KV head, one block a step.

Owns: the kernel that ours is measured beside. Fine for many sequences of one length; with few, or with one long one
among many short, most of the GPU waits for the longest. Block sizes of 16 and more that are powers of two, and such
head dimensions.
Source: Kwon et al., SOSP 2023, section 5.1.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


def fits(head_dim: int, block_size: int) -> bool:
    """Whether the kernel takes such a cache."""
    return all(size >= 16 and triton.next_power_of_2(size) == size for size in (head_dim, block_size))


def textbook_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """Shapes as `attention.paged_decode`; all contiguous. Raises: ValueError unless `fits`."""
    batch, heads, head_dim = query.shape
    block_size, kv_heads = key_cache.shape[1:3]
    if not fits(head_dim, block_size):
        raise ValueError(f"head_dim {head_dim} and block size {block_size} must be powers of two from 16")
    group = heads // kv_heads
    _textbook_decode[(batch, kv_heads)](
        query,
        key_cache,
        value_cache,
        block_tables,
        context_lens,
        out,
        scale,
        block_tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=triton.next_power_of_2(group),
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
    )


@triton.jit
def _textbook_decode(
    query,
    key_cache,
    value_cache,
    block_tables,
    context_lens,
    out,
    scale,
    max_blocks,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    sequence, kv_head = tl.program_id(0), tl.program_id(1)
    row, dim, offset = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_SIZE)
    at = ((sequence * KV_HEADS + kv_head) * GROUP + row)[:, None] * HEAD_DIM + dim[None, :]
    rows = tl.load(query + at, mask=(row < GROUP)[:, None], other=0.0)
    length = tl.load(context_lens + sequence)
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight_sum = tl.zeros((ROWS,), dtype=tl.float32)
    found = tl.zeros((ROWS, HEAD_DIM), dtype=tl.float32)
    for step in range(0, tl.cdiv(length, BLOCK_SIZE)):
        block = tl.load(block_tables + sequence * max_blocks + step).to(tl.int64)
        slot = (block * BLOCK_SIZE + offset) * KV_HEADS + kv_head
        there = step * BLOCK_SIZE + offset < length
        key = tl.load(key_cache + slot[:, None] * HEAD_DIM + dim[None, :], mask=there[:, None], other=0.0)
        value = tl.load(value_cache + slot[:, None] * HEAD_DIM + dim[None, :], mask=there[:, None], other=0.0)
        score = tl.where(there[None, :], tl.dot(rows, tl.trans(key), input_precision="ieee") * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        fade = tl.exp(top - higher)
        weight_sum = weight_sum * fade + tl.sum(weight, 1)
        found = found * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = higher
    tl.store(out + at, (found / weight_sum[:, None]).to(out.dtype.element_ty), mask=(row < GROUP)[:, None])
