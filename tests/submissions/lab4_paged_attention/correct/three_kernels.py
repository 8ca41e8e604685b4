"""Scores, softmax and weighted sum in three kernels, with the scores in scratch memory between them."""

import torch
import triton
import triton.language as tl


@triton.jit
def score_kernel(
    query, key_cache, tables, lens, scores, scale, width,
    q_s, q_h, kc_b, kc_o, kc_h, table_s, table_e, lens_stride,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    dim = tl.arange(0, HEAD_DIM)
    q = tl.load(query + sequence * q_s + head * q_h + dim).to(tl.float32)
    length = tl.load(lens + sequence * lens_stride)
    row = scores + (sequence * tl.num_programs(1) + head) * width
    for start in range(0, length, TILE):
        token = start + tl.arange(0, TILE)
        there = token < length
        block = tl.load(tables + sequence * table_s + token // BLOCK_SIZE * table_e, mask=there, other=0).to(tl.int64)
        at = block * kc_b + token % BLOCK_SIZE * kc_o + head // GROUP * kc_h
        k = tl.load(key_cache + at[:, None] + dim[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        tl.store(row + token, tl.sum(k * q[None, :], 1) * scale, mask=there)


@triton.jit
def softmax_kernel(scores, lens, width, lens_stride, TILE: tl.constexpr):
    sequence = tl.program_id(0).to(tl.int64)
    row = scores + (sequence * tl.num_programs(1) + tl.program_id(1)) * width
    length = tl.load(lens + sequence * lens_stride)
    top = tl.full((TILE,), float("-inf"), dtype=tl.float32)
    for start in range(0, length, TILE):
        token = start + tl.arange(0, TILE)
        top = tl.maximum(top, tl.load(row + token, mask=token < length, other=float("-inf")))
    highest = tl.max(top, 0)
    total = tl.zeros((TILE,), dtype=tl.float32)
    for start in range(0, length, TILE):
        token = start + tl.arange(0, TILE)
        weight = tl.exp(tl.load(row + token, mask=token < length, other=float("-inf")) - highest)
        tl.store(row + token, weight, mask=token < length)
        total += weight
    whole = tl.sum(total, 0)
    tl.debug_barrier()
    for start in range(0, length, TILE):
        token = start + tl.arange(0, TILE)
        weight = tl.load(row + token, mask=token < length, other=0.0)
        tl.store(row + token, weight / whole, mask=token < length)


@triton.jit
def value_kernel(
    scores, value_cache, tables, lens, out, width,
    out_s, out_h, vc_b, vc_o, vc_h, table_s, table_e, lens_stride,
    GROUP: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    dim = tl.arange(0, HEAD_DIM)
    length = tl.load(lens + sequence * lens_stride)
    row = scores + (sequence * tl.num_programs(1) + head) * width
    found = tl.zeros((HEAD_DIM,), dtype=tl.float32)
    for start in range(0, length, TILE):
        token = start + tl.arange(0, TILE)
        there = token < length
        block = tl.load(tables + sequence * table_s + token // BLOCK_SIZE * table_e, mask=there, other=0).to(tl.int64)
        at = block * vc_b + token % BLOCK_SIZE * vc_o + head // GROUP * vc_h
        v = tl.load(value_cache + at[:, None] + dim[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        weight = tl.load(row + token, mask=there, other=0.0)
        found += tl.sum(weight[:, None] * v, 0)
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
    width = block_tables.shape[1] * block_size
    scores = torch.empty(batch, heads, width, dtype=torch.float32, device=query.device)
    constants = {"GROUP": heads // kv_heads, "BLOCK_SIZE": block_size, "HEAD_DIM": head_dim, "TILE": 32}
    tables = (*block_tables.stride(), context_lens.stride(0))
    score_kernel[(batch, heads)](
        query, key_cache, block_tables, context_lens, scores, scale, width,
        *query.stride()[:2], *key_cache.stride()[:3], *tables, **constants,
    )  # fmt: skip
    softmax_kernel[(batch, heads)](scores, context_lens, width, context_lens.stride(0), TILE=128)
    value_kernel[(batch, heads)](
        scores, value_cache, block_tables, context_lens, out, width,
        *out.stride()[:2], *value_cache.stride()[:3], *tables, **constants,
    )  # fmt: skip
