"""Misconception: all rows of a tile are heads.

Killed by: test_layout.test_every_element_of_out_is_written_and_no_other
Source: a store without its mask
On a GPU: programs race for the heads behind a tile; the interpreter runs them one after another, and the right one last
"""

import torch
import triton
import triton.language as tl


@triton.jit
def store_rows(
    source, cache, slots, rows, kv_heads, source_t, source_h, cache_b, cache_o, cache_h, slot_stride,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token = row // kv_heads
    head = row % kv_heads
    slot = tl.load(slots + token * slot_stride, mask=row < rows, other=-1).to(tl.int64)
    dim = tl.arange(0, HEAD_DIM)
    kept = (slot >= 0)[:, None] & (dim >= 0)[None, :]
    moved = tl.load(source + (token * source_t + head * source_h)[:, None] + dim[None, :], mask=kept)
    to = slot // BLOCK_SIZE * cache_b + slot % BLOCK_SIZE * cache_o + head * cache_h
    tl.store(cache + to[:, None] + dim[None, :], moved, mask=kept)


def store_kv(key, value, key_cache, value_cache, slot_mapping):
    tokens, kv_heads, head_dim = key.shape
    if tokens == 0:
        return
    rows = tokens * kv_heads
    for source, cache in ((key, key_cache), (value, value_cache)):
        store_rows[(triton.cdiv(rows, 16),)](
            source, cache, slot_mapping, rows, kv_heads, *source.stride()[:2], *cache.stride()[:3],
            slot_mapping.stride(0), BLOCK_SIZE=cache.shape[1], HEAD_DIM=head_dim, ROWS=16,
        )  # fmt: skip


@triton.jit
def grouped_kernel(
    query, key_cache, value_cache, tables, lens, out, scale,
    q_s, q_h, out_s, out_h, kc_b, kc_o, kc_h, vc_b, vc_o, vc_h, table_s, table_e, lens_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, HEAD_DIM)
    head = kv_head * GROUP + row
    kept = (row < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    q = tl.load(query + sequence * q_s + (head * q_h)[:, None] + dim[None, :], mask=kept, other=0.0)
    length = tl.load(lens + sequence * lens_stride)
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    found = tl.zeros((ROWS, HEAD_DIM), dtype=tl.float32)
    for start in range(0, length, TILE):
        token = start + tl.arange(0, TILE)
        there = token < length
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
    found = found / tl.where(total == 0.0, 1.0, total)[:, None]
    at = out + sequence * out_s + (head * out_h)[:, None] + dim[None, :]
    tl.store(at, found.to(out.dtype.element_ty))


def paged_attention(query, key_cache, value_cache, block_tables, context_lens, scale, out):
    batch, heads, head_dim = query.shape
    if batch == 0:
        return
    kv_heads = key_cache.shape[2]
    group = heads // kv_heads
    grouped_kernel[(batch, kv_heads)](
        query, key_cache, value_cache, block_tables, context_lens, out, scale,
        *query.stride()[:2], *out.stride()[:2], *key_cache.stride()[:3], *value_cache.stride()[:3],
        *block_tables.stride(), context_lens.stride(0),
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)),
        BLOCK_SIZE=key_cache.shape[1], HEAD_DIM=head_dim, TILE=32,
    )  # fmt: skip
