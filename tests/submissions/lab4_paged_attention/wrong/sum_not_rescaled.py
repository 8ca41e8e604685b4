"""Misconception: only the answer needs rescaling when a larger score comes.

Killed by: test_numerics.test_the_largest_score_may_come_first_or_last, test_decode.test_larger_blocks_are_right
Source: classic of online softmax
"""

import torch
import triton
import triton.language as tl


@triton.jit
def store_kernel(
    key, value, key_cache, value_cache, slots,
    key_t, key_h, value_t, value_h, kc_b, kc_o, kc_h, vc_b, vc_o, vc_h, slot_stride,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + token * slot_stride).to(tl.int64)
    if slot >= 0:
        dim = tl.arange(0, HEAD_DIM)
        block = slot // BLOCK_SIZE
        offset = slot % BLOCK_SIZE
        k = tl.load(key + token * key_t + head * key_h + dim)
        v = tl.load(value + token * value_t + head * value_h + dim)
        tl.store(key_cache + block * kc_b + offset * kc_o + head * kc_h + dim, k)
        tl.store(value_cache + block * vc_b + offset * vc_o + head * vc_h + dim, v)


@triton.jit
def attention_kernel(
    query, key_cache, value_cache, tables, lens, out, scale,
    q_s, q_h, out_s, out_h, kc_b, kc_o, kc_h, vc_b, vc_o, vc_h, table_s, table_e, lens_stride,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    kv_head = head // GROUP
    dim = tl.arange(0, HEAD_DIM)
    q = tl.load(query + sequence * q_s + head * q_h + dim).to(tl.float32) * scale
    length = tl.load(lens + sequence * lens_stride)
    top = float("-inf")
    total = 0.0
    found = tl.zeros((HEAD_DIM,), dtype=tl.float32)
    for start in range(0, length, TILE):
        token = start + tl.arange(0, TILE)
        there = token < length
        block = tl.load(tables + sequence * table_s + token // BLOCK_SIZE * table_e, mask=there, other=0).to(tl.int64)
        offset = token % BLOCK_SIZE
        at_key = block * kc_b + offset * kc_o + kv_head * kc_h
        at_value = block * vc_b + offset * vc_o + kv_head * vc_h
        k = tl.load(key_cache + at_key[:, None] + dim[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        v = tl.load(value_cache + at_value[:, None] + dim[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        score = tl.where(there, tl.sum(k * q[None, :], 1), float("-inf"))
        higher = tl.maximum(top, tl.max(score, 0))
        fade = tl.exp(top - higher)
        weight = tl.exp(score - higher)
        total = total + tl.sum(weight, 0)
        found = found * fade + tl.sum(weight[:, None] * v, 0)
        top = higher
    if length > 0:
        found = found / total
    tl.store(out + sequence * out_s + head * out_h + dim, found.to(out.dtype.element_ty))


def store_kv(key, value, key_cache, value_cache, slot_mapping):
    tokens, kv_heads, head_dim = key.shape
    if tokens == 0:
        return
    store_kernel[(tokens, kv_heads)](
        key, value, key_cache, value_cache, slot_mapping,
        *key.stride()[:2], *value.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        slot_mapping.stride(0), BLOCK_SIZE=key_cache.shape[1], HEAD_DIM=head_dim,
    )  # fmt: skip


def paged_attention(query, key_cache, value_cache, block_tables, context_lens, scale, out):
    batch, heads, head_dim = query.shape
    if batch == 0:
        return
    attention_kernel[(batch, heads)](
        query, key_cache, value_cache, block_tables, context_lens, out, scale,
        *query.stride()[:2], *out.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        *block_tables.stride(), context_lens.stride(0),
        GROUP=heads // key_cache.shape[2], BLOCK_SIZE=key_cache.shape[1], HEAD_DIM=head_dim, TILE=8,
    )  # fmt: skip
