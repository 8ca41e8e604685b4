"""From a layer's q, k, v product to queries that attention takes and keys and values in their slots: one kernel.

Owns: that kernel and the call around it. Knows nothing of layers or of who gave a token its slot. A program takes some
heads of one token: it norms queries and keys (where the model does), turns them, writes queries back to where they
stood, and keys and values into the caches, or keys back too where somebody else stores them. Planes i and i + D/2 of a
head are turned together, so each is loaded as a half of its own and nothing is shuffled between threads. Into a cache
of 8-bit floats go the numbers that another would read from qkv, over their scale (`attention/fp8.py`).

    qkv   | q q q q q q q q | k k | v v |      a token's row
            norm, turn        norm,           ROWS heads a program
                              turn
            in place          slot   slot

Rows of which qkv was made without their norm (`Unnormed`) are read here once for each program of a token, and all of
its heads are multiplied by what that gives.

Cost: every byte read and written once, in float32 arithmetic, rounded once; one launch.
Source: Su et al., RoFormer, 2021, section 3.2.2; Kwon et al., SOSP 2023, section 5.1, for the fused store.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_impl.attention.casts import INTERPRETED, narrowed
from reference_impl.attention.fp8 import FP8, check_scales
from reference_impl.attention.sizes import cdiv, next_power_of_2
from reference_impl.model.fused import late_norm, norm_factor
from reference_impl.model.ops import Heads, Slots, Unnormed
from reference_impl.model.rope import Turn

_ELEMENTS = 1_024
"""Numbers of a program; with two warps each thread has 16, in pieces of 16 bytes for 16-bit types."""
_REGISTERS = 128
"""Of a thread, so that there is room for all that it loads. Left to itself the compiler takes half, and loads late."""


def turn_heads(qkv: Tensor, heads: Heads, turn: Turn, slots: Slots | None, unnormed: Unnormed | None = None) -> None:
    """Norm and turn queries and keys of qkv [tokens, all heads * head_dim] in place; rows have any stride.

    turn: cos and sin [tokens, head_dim / 2] float32. slots: keys and values are written there, and those in qkv are of
    no use afterwards; slot -1 writes nowhere; caches [num_blocks, block_size, kv_heads, head_dim] of qkv's type, or of
    8-bit floats with scales, with a contiguous last dimension. Slots are in the caches and no two are the same: the
    caller's promise, as in `store_kv`.
    None: nothing is stored, and values stay as they are, but for what `unnormed` asks.
    unnormed: what qkv was made of, if that was not normed before.
    Raises: ValueError, with nothing written, on shapes or types that do not go together.
    """
    _check(qkv, heads, turn)
    if slots is not None:
        _check_slots(qkv, heads, slots)
    tokens = qkv.shape[0]
    late, constants = late_norm(unnormed, tokens)
    if not tokens:
        return
    half = next_power_of_2(heads.head_dim // 2)
    rows = max(1, min(next_power_of_2(heads.num_heads), _ELEMENTS // (2 * half)))
    count = heads.num_heads + heads.num_kv_heads * (1 if slots is None and unnormed is None else 2)
    query_norm, key_norm = heads.norms or (None, None)
    _turn_heads[(tokens, cdiv(count, rows))](
        qkv,
        turn.cos,
        turn.sin,
        None if query_norm is None else query_norm.weight,
        None if key_norm is None else key_norm.weight,
        0.0 if query_norm is None else query_norm.eps,
        0.0 if key_norm is None else key_norm.eps,
        qkv.stride(0),
        *late,
        *_slot_arguments(slots),
        HEADS=heads.num_heads,
        KV_HEADS=heads.num_kv_heads,
        HEAD_DIM=heads.head_dim,
        HALF=half,
        ROWS=rows,
        NORMED=query_norm is not None,
        STORED=slots is not None,
        BLOCK_SIZE=1 if slots is None else slots.key_cache.shape[1],
        INTERPRETED=INTERPRETED,
        **constants,
        num_warps=2,
        maxnreg=_REGISTERS,
    )


def _slot_arguments(slots: Slots | None) -> tuple[Tensor | int | None, ...]:
    if slots is None:
        return (None, None, None, None, None, *[0] * 9)
    keys, values, mapping = slots.key_cache, slots.value_cache, slots.slot_mapping
    k_scale, v_scale = slots.scales or (None, None)
    steps = (by.stride(0) for by in slots.scales) if slots.scales else (0, 0)
    strides = (*keys.stride()[:3], *values.stride()[:3], mapping.stride(0), *steps)
    return (keys, values, mapping, k_scale, v_scale, *strides)


# Slots: as lengths in attention/paged_prefill.py.
@triton.jit(do_not_specialize_on_alignment=["slot_mapping"])
def _turn_heads(
    qkv,
    cos,
    sin,
    query_weight,
    key_weight,
    query_eps,
    key_eps,
    qkv_token,
    unnormed,
    unnormed_row,
    eps,
    key_cache,
    value_cache,
    slot_mapping,
    k_scale,
    v_scale,
    key_block,
    key_token,
    key_head,
    value_block,
    value_token,
    value_head,
    slot_stride,
    k_scale_head,
    v_scale_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    NORMED: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    INTERPRETED: tl.constexpr,
    NORM_SIZE: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
):
    """ROWS heads of one token, be they queries, keys or values."""
    # 64 bits from here on: a layer's cache may have more than 2**31 elements, and so may a prompt's rows.
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    plane = tl.arange(0, HALF)
    in_plane = plane < HEAD_DIM // 2
    # Values are somebody else's affair if they are only to stay where they are, as they are.
    stop: tl.constexpr = HEADS + KV_HEADS * (1 + (STORED | (NORM_SIZE > 0)))
    kept = (head < stop)[:, None] & in_plane[None, :]
    place = qkv + token * qkv_token + (head * HEAD_DIM)[:, None] + plane[None, :]
    low = tl.load(place, mask=kept, other=0.0).to(tl.float32)
    high = tl.load(place + HEAD_DIM // 2, mask=kept, other=0.0).to(tl.float32)
    # What all heads share is loaded for each of them, as its numbers lie: one row for all would go from thread to
    # thread through shared memory, and every load wait for the one before.
    each = tl.zeros((ROWS, HALF), dtype=tl.int64)
    at = token * (HEAD_DIM // 2) + plane[None, :] + each
    cosine = tl.load(cos + at, mask=kept, other=0.0)
    sine = tl.load(sin + at, mask=kept, other=0.0)
    if NORM_SIZE > 0:
        factor_of_row = norm_factor(unnormed + token * unnormed_row, eps, NORM_SIZE, NORM_BLOCK)
        low *= factor_of_row
        high *= factor_of_row
    normed_low, normed_high = low, high
    if NORMED:
        query = head < HEADS
        weight_low = _weight(query_weight, key_weight, plane[None, :] + each, kept, query)
        weight_high = _weight(query_weight, key_weight, plane[None, :] + HEAD_DIM // 2 + each, kept, query)
        factor = tl.sum(low * low + high * high, 1) / HEAD_DIM + tl.where(query, query_eps, key_eps)
        factor = tl.rsqrt(factor)[:, None]
        normed_low = low * factor * weight_low
        normed_high = high * factor * weight_high
    turned_low = (normed_low * cosine - normed_high * sine).to(qkv.dtype.element_ty)
    turned_high = (normed_high * cosine + normed_low * sine).to(qkv.dtype.element_ty)
    low_value, high_value = low.to(qkv.dtype.element_ty), high.to(qkv.dtype.element_ty)
    value = head >= HEADS + KV_HEADS
    if STORED:
        slot = tl.load(slot_mapping + token * slot_stride).to(tl.int64)
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        # A slot of -1 must not reach an address.
        there = kept & (slot >= 0)
        key = (head >= HEADS) & (head < HEADS + KV_HEADS)
        low_key, high_key = turned_low, turned_high
        if k_scale is not None:
            of_key = tl.load(k_scale + (head - HEADS) * k_scale_head, mask=key, other=1.0)[:, None]
            at_value = v_scale + (head - HEADS - KV_HEADS) * v_scale_head
            of_value = tl.load(at_value, mask=value & (head < stop), other=1.0)[:, None]
            low_key = narrowed(turned_low.to(tl.float32), of_key, INTERPRETED)
            high_key = narrowed(turned_high.to(tl.float32), of_key, INTERPRETED)
            low_value = narrowed(low_value.to(tl.float32), of_value, INTERPRETED)
            high_value = narrowed(high_value.to(tl.float32), of_value, INTERPRETED)
        keys = key_cache + block * key_block + offset * key_token + ((head - HEADS) * key_head)[:, None]
        tl.store(keys + plane[None, :], low_key, mask=there & key[:, None])
        tl.store(keys + plane[None, :] + HEAD_DIM // 2, high_key, mask=there & key[:, None])
        values = value_cache + block * value_block + offset * value_token
        values += ((head - HEADS - KV_HEADS) * value_head)[:, None]
        tl.store(values + plane[None, :], low_value, mask=there & value[:, None])
        tl.store(values + plane[None, :] + HEAD_DIM // 2, high_value, mask=there & value[:, None])
        kept = kept & (head < HEADS)[:, None]
    elif NORM_SIZE > 0:
        turned_low = tl.where(value[:, None], low_value, turned_low)
        turned_high = tl.where(value[:, None], high_value, turned_high)
    tl.store(place, turned_low, mask=kept)
    tl.store(place + HEAD_DIM // 2, turned_high, mask=kept)


@triton.jit
def _weight(query_weight, key_weight, at, kept, query):
    """[ROWS, HALF] float32: the weight of each head's norm at the dimensions `at`."""
    of_query = tl.load(query_weight + at, mask=kept & query[:, None], other=0.0).to(tl.float32)
    of_key = tl.load(key_weight + at, mask=kept & (query == 0)[:, None], other=0.0).to(tl.float32)
    return tl.where(query[:, None], of_query, of_key)


def _check(qkv: Tensor, heads: Heads, turn: Turn) -> None:
    width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim
    if qkv.dim() != 2 or qkv.shape[1] != width or qkv.stride(1) != 1:
        found = f"{tuple(qkv.shape)} of strides {qkv.stride()}"
        raise ValueError(f"qkv is {found}: need [tokens, {width}] with contiguous rows")
    planes = (qkv.shape[0], heads.head_dim // 2)
    for name, table in (("cos", turn.cos), ("sin", turn.sin)):
        if table.shape != planes or table.dtype != torch.float32 or not table.is_contiguous():
            found = f"{tuple(table.shape)} of {table.dtype}"
            raise ValueError(f"{name} is {found}: need {planes} of float32 in one piece, as `turns` gives them")


def _check_slots(qkv: Tensor, heads: Heads, slots: Slots) -> None:
    keys, values, mapping = slots.key_cache, slots.value_cache, slots.slot_mapping
    need = (heads.num_kv_heads, heads.head_dim)
    if keys.dim() != 4 or keys.shape != values.shape or keys.shape[2:] != need:
        raise ValueError(f"caches of shapes {tuple(keys.shape)} and {tuple(values.shape)} do not hold heads of {need}")
    if not (qkv.dtype == keys.dtype == values.dtype or keys.dtype == values.dtype == FP8):
        raise ValueError(f"keys of {qkv.dtype} do not go into caches of {keys.dtype} and {values.dtype}: need one type")
    if mapping.shape != qkv.shape[:1] or mapping.dtype not in (torch.int32, torch.int64):
        found = f"{tuple(mapping.shape)} of {mapping.dtype}"
        raise ValueError(f"slot_mapping is {found}: need one int64 or int32 for each of {qkv.shape[0]} tokens")
    for name, cache in (("key_cache", keys), ("value_cache", values)):
        if cache.stride(3) != 1:
            raise ValueError(f"the last dimension of {name} has stride {cache.stride(3)}: need 1")
    check_scales(keys, *(slots.scales or (None, None)))
