"""Misconception: every part has a token.

Killed by: test_split_kv.test_very_unequal_lengths_are_right, test_decode.test_no_context_gives_zeros
Source: bug class 34: -inf - (-inf)
"""

import torch
import triton
import triton.language as tl

PART_TOKENS = 128


@triton.jit
def part_kernel(
    query, key_cache, value_cache, tables, lens, part_out, part_lse, scale, splits,
    q_s, q_h, kc_b, kc_o, kc_h, vc_b, vc_o, vc_h, table_s, table_e, lens_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr,
    TILE: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, HEAD_DIM)
    head = kv_head * GROUP + row
    kept = (row < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    length = tl.load(lens + sequence * lens_stride)
    stop = tl.minimum(length, (split + 1) * PART)
    q = tl.load(query + sequence * q_s + (head * q_h)[:, None] + dim[None, :], mask=kept, other=0.0)
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    found = tl.zeros((ROWS, HEAD_DIM), dtype=tl.float32)
    for start in range(split * PART, stop, TILE):
        token = start + tl.arange(0, TILE)
        there = token < stop
        block = tl.load(tables + sequence * table_s + token // BLOCK_SIZE * table_e, mask=there, other=0).to(tl.int64)
        offset = token % BLOCK_SIZE
        at_key = block * kc_b + offset * kc_o + kv_head * kc_h
        at_value = block * vc_b + offset * vc_o + kv_head * vc_h
        k = tl.load(key_cache + at_key[:, None] + dim[None, :], mask=there[:, None], other=0.0)
        v = tl.load(value_cache + at_value[:, None] + dim[None, :], mask=there[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        fade = tl.exp(top - higher)
        weight = tl.exp(score - higher[:, None])
        total = total * fade + tl.sum(weight, 1)
        found = found * fade[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        top = higher
    found = found / total[:, None]
    at = (sequence * tl.num_programs(1) * GROUP + head) * splits + split
    tl.store(part_out + (at * HEAD_DIM)[:, None] + dim[None, :], found, mask=kept)
    tl.store(part_lse + at, top + tl.log(total), mask=row < GROUP)


@triton.jit
def merge_kernel(part_out, part_lse, out, splits, out_s, out_h, HEAD_DIM: tl.constexpr):
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    dim = tl.arange(0, HEAD_DIM)
    first = (sequence * tl.num_programs(1) + head) * splits
    top = float("-inf")
    total = 0.0
    found = tl.zeros((HEAD_DIM,), dtype=tl.float32)
    for split in range(0, splits):
        lse = tl.load(part_lse + first + split)
        part = tl.load(part_out + (first + split) * HEAD_DIM + dim)
        higher = tl.maximum(top, lse)
        fade = tl.exp(top - higher)
        weight = tl.exp(lse - higher)
        total = total * fade + weight
        found = found * fade + part * weight
        top = higher
    found = found / tl.where(total == 0.0, 1.0, total)
    tl.store(out + sequence * out_s + head * out_h + dim, found.to(out.dtype.element_ty))


@triton.jit
def store_token(
    key, value, key_cache, value_cache, slots,
    key_t, key_h, value_t, value_h, kc_b, kc_o, kc_h, vc_b, vc_o, vc_h, slot_stride, kv_heads,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token * slot_stride).to(tl.int64)
    head = tl.arange(0, HEADS)
    dim = tl.arange(0, HEAD_DIM)
    kept = ((head < kv_heads) & (slot >= 0))[:, None] & (dim < HEAD_DIM)[None, :]
    k = tl.load(key + token * key_t + (head * key_h)[:, None] + dim[None, :], mask=kept)
    v = tl.load(value + token * value_t + (head * value_h)[:, None] + dim[None, :], mask=kept)
    block = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    tl.store(key_cache + block * kc_b + offset * kc_o + (head * kc_h)[:, None] + dim[None, :], k, mask=kept)
    tl.store(value_cache + block * vc_b + offset * vc_o + (head * vc_h)[:, None] + dim[None, :], v, mask=kept)


def store_kv(key, value, key_cache, value_cache, slot_mapping):
    tokens, kv_heads, head_dim = key.shape
    if tokens == 0:
        return
    store_token[(tokens,)](
        key, value, key_cache, value_cache, slot_mapping,
        *key.stride()[:2], *value.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        slot_mapping.stride(0), kv_heads,
        BLOCK_SIZE=key_cache.shape[1], HEAD_DIM=head_dim, HEADS=triton.next_power_of_2(kv_heads),
    )  # fmt: skip


def paged_attention(query, key_cache, value_cache, block_tables, context_lens, scale, out):
    batch, heads, head_dim = query.shape
    if batch == 0:
        return
    block_size, kv_heads = key_cache.shape[1:3]
    group = heads // kv_heads
    # As many parts as the table has room for: that is known without looking at a length.
    splits = triton.cdiv(block_tables.shape[1] * block_size, PART_TOKENS)
    part_out = torch.empty(batch, heads, splits, head_dim, dtype=torch.float32, device=query.device)
    part_lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=query.device)
    part_kernel[(batch, kv_heads, splits)](
        query, key_cache, value_cache, block_tables, context_lens, part_out, part_lse, scale, splits,
        *query.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        *block_tables.stride(), context_lens.stride(0),
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), BLOCK_SIZE=block_size, HEAD_DIM=head_dim,
        TILE=32, PART=PART_TOKENS,
    )  # fmt: skip
    merge_kernel[(batch, heads)](part_out, part_lse, out, splits, *out.stride()[:2], HEAD_DIM=head_dim)
