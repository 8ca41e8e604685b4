"""What decode does with a tile of tokens: where it lies in the cache, and what it adds to an online softmax.

Owns: the Triton functions for both. Knows nothing of shares, of sequences or of when a tile is loaded.

The state of a softmax is the largest score so far (to base 2) of each query head, the sum of weights under it, and the
weighted values. TURNED keeps it with the query heads last: tokens are then the rows of both products, of which a matrix
instruction has 16 or more, and query heads its columns, of which 8 will do. With query heads as rows, a group of 4 is
filled up to 16 by registers that are copied before every instruction. Sums are kept for each place in a tile: to add
them up takes the threads of a program three barriers, which is for the end of a sequence and not for every tile.
Source: Milakov and Gimelshein, 2018; Dao et al., NeurIPS 2022, algorithm 1. What it gave: NOTES.md, version 6.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl

from reference_impl.attention.work_list import GRAIN_TOKENS

_TURNED_ROWS = 8
"""Columns of a matrix instruction: so many query heads cost what one does."""


def rows_turned(rows: int, kv_dtype: torch.dtype) -> tuple[int, bool]:
    """Query heads of a product, and whether it is TURNED, where a program has `rows` of them and caches of `kv_dtype`.

    With more than 8 the compiler chooses another instruction, for which it holds a tile more in shared memory: one
    program on a multiprocessor instead of two. Keys in 8 bits are widened in registers, of which none are left.
    """
    turned = kv_dtype.itemsize == 2 and rows <= _TURNED_ROWS
    return (_TURNED_ROWS if turned else rows), turned


def by_grain(block_size: int, kv_dtype: torch.dtype) -> bool:
    """Whether a tile's addresses are found for each grain: blocks hold whole ones.

    Not in 8 bits, where the compiler moves a grain's block number to a register that all threads of a warp share, and
    waits for it as soon as it was asked for: 131 us where it took 113 (64 x 2k, NOTES.md).
    """
    return block_size % GRAIN_TOKENS == 0 and kv_dtype.itemsize > 1


@triton.jit
def blocks_of(
    table,
    stride,
    start,
    low,
    stop,
    TILE: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BY_GRAIN: tl.constexpr,
):
    """The blocks of a tile from `start`, which is a multiple of GRAIN: of each grain, or of each token; 0 where none of
    it is looked at."""
    if BY_GRAIN:
        at = start + tl.arange(0, TILE // GRAIN) * GRAIN
        there = (at + GRAIN > low) & (at < stop)
    else:
        at = start + tl.arange(0, TILE)
        there = (at >= low) & (at < stop)
    # Numbers that are not below 0 divide in one instruction if the compiler is told. 32 bits until they are multiplied.
    return tl.load(table + at.to(tl.uint32) // BLOCK_SIZE * stride, mask=there, other=0)


@triton.jit
def places_of(
    block,
    start,
    block_stride,
    token_stride,
    TILE: tl.constexpr,
    GRAIN: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BY_GRAIN: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Where each token of a tile lies in a cache, in elements, from what `blocks_of` gave for it."""
    place = block.to(tl.int64) * block_stride
    if BY_GRAIN:
        if BLOCK_SIZE > GRAIN:
            at = (start + tl.arange(0, TILE // GRAIN) * GRAIN).to(tl.uint32)
            place += (at % BLOCK_SIZE).to(tl.int32) * token_stride
        place = tl.reshape(place[:, None] + (tl.arange(0, GRAIN) * token_stride)[None, :], (TILE,))
        # Through a change of shape the compiler does not follow what a number is a multiple of, and would copy 2 bytes
        # at once where it can copy 16.
        place = tl.multiple_of(place, ALIGNED)
    else:
        at = (start + tl.arange(0, TILE)).to(tl.uint32)
        place += (at % BLOCK_SIZE).to(tl.int32) * token_stride
    return place


@triton.jit
def nothing_yet(TILE: tl.constexpr, ROWS: tl.constexpr, DIMS: tl.constexpr, TURNED: tl.constexpr):
    """The state before the first token: (top [ROWS], weights, found)."""
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    if TURNED:
        weights = tl.zeros((TILE, ROWS), dtype=tl.float32)
        found = tl.zeros((DIMS, ROWS), dtype=tl.float32)
    else:
        weights = tl.zeros((ROWS,), dtype=tl.float32)
        found = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    return top, weights, found


@triton.jit
def as_state(weight_sum, out, TILE: tl.constexpr, TURNED: tl.constexpr):
    """Sums [ROWS] and weighted values [ROWS, DIMS] that somebody else found, as the state has them."""
    if TURNED:
        first = (tl.arange(0, TILE) == 0)[:, None]
        weights = tl.where(first, weight_sum[None, :], 0.0)
        found = tl.trans(out)
    else:
        weights = weight_sum
        found = out
    return weights, found


@triton.jit
def with_tile(top, weights, found, rows, key, value, there, scale, TURNED: tl.constexpr):
    """The state with one tile more: rows [ROWS, DIMS], key [TILE, DIMS], value like it, or [DIMS, TILE] if TURNED.

    there: [TILE], which tokens there are.
    """
    if TURNED:
        score = tl.dot(key, tl.trans(rows), input_precision="ieee") * scale
        score = tl.where(there[:, None], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight, fade = tl.exp2(score - shift[None, :]), tl.exp2(top - shift)
        weights = weights * fade[None, :] + weight
        found = tl.dot(value, weight.to(value.dtype), found * fade[None, :], input_precision="ieee")
    else:
        score = tl.dot(rows, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight, fade = tl.exp2(score - shift[:, None]), tl.exp2(top - shift)
        weights = weights * fade + tl.sum(weight, 1)
        found = tl.dot(weight.to(value.dtype), value, found * fade[:, None], input_precision="ieee")
    return higher, weights, found


@triton.jit
def normalised(weights, found, TURNED: tl.constexpr):
    """The sum of weights [ROWS] and the output [ROWS, DIMS] of a state; zeros where there was no token."""
    if TURNED:
        weight_sum = tl.sum(weights, 0)
        out = tl.trans(found / tl.where(weight_sum == 0.0, 1.0, weight_sum)[None, :])
    else:
        weight_sum = weights
        out = found / tl.where(weight_sum == 0.0, 1.0, weight_sum)[:, None]
    return weight_sum, out
