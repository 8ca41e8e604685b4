"""Attention over paged keys and values in plain torch, fast on a CPU and right on any device.

Owns: the arithmetic of a layer. Knows nothing of how a batch is taken apart (`torch_layout.py`), and keeps nothing:
what all layers of a step share is put into the step's own metadata.

Keys and values of a group of sequences are gathered into one piece, then used at once, while they are still in the
processor's cache. The group of query heads that share a KV head are the rows of one small product, so keys and values
are never repeated. Fastest if the cache keeps its heads outermost, as `engine/kv_cache.py` does: a gathered head is
then one piece too, and no product has to copy its operand.

Measured for one layer, 32 decodes of 33 to 925 tokens, 9 heads over 3 KV heads of 64 numbers, float32, blocks of 16,
one core of an AMD EPYC: 3.2 ms, 3.8 in blocks of one token; with the heads not outermost 4.2; gathered sequence by
sequence for torch's own attention 3.3, as one padded batch 22. On two idle cores: 1.9 ms in groups, 2.9 sequence by
sequence, which starts and joins the cores five times as often. Half of it is the gather, the one time that memory is
read. For prompts torch's own attention is as fast as anything in blocks, and one call instead of fifty.
Cost: every token of every context is read once a layer; arithmetic 4 * head_dim a query head and token.
Source: Kwon et al., SOSP 2023, section 4.1; Ainslie et al., 2023, for the groups of heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reference_impl.attention.fp8 import FP8, KVScales, as_bytes, check_scales, quantised
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.attention.torch_layout import Blocks, Chunk, Geometry, Group, Layout, layout


class TorchAttention:
    """The `Attention` of `backend.py`. Nothing but a sequence's own slots reaches its answer, whatever they hold."""

    def store_kv(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        *,
        scales: KVScales | None = None,
    ) -> None:
        """As in the contract. Raises: IndexError (on a CPU) on a slot behind the cache, ValueError on scales that do
        not go with it. Cost: O(tokens).
        """
        check_scales(key_cache, *(scales or (None, None)))
        block_size = key_cache.shape[1]
        written = slot_mapping >= 0
        if not bool(written.all()):
            key, value, slot_mapping = key[written], value[written], slot_mapping[written]
        place = (slot_mapping // block_size, slot_mapping % block_size)
        if scales is None:
            key_cache[place] = key
            value_cache[place] = value
        else:
            as_bytes(key_cache)[place] = as_bytes(quantised(key, scales.k))
            as_bytes(value_cache)[place] = as_bytes(quantised(value, scales.v))

    def attend(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        *,
        window: int | None = None,
        scales: KVScales | None = None,
    ) -> Tensor:
        """As in the contract; a pad gets zeros. Raises: ValueError on scales that do not go with the caches."""
        check_scales(key_cache, *(scales or (None, None)))
        num_blocks, block_size, kv_heads, head_dim = key_cache.shape
        geometry = Geometry(num_blocks, block_size, kv_heads, window)
        parts: Layout | None = metadata.worked_out.get((TorchAttention, geometry))
        if parts is None:
            parts = layout(metadata, geometry, head_dim, query.dtype)
            metadata.worked_out[TorchAttention, geometry] = parts
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if (tokens := sum(metadata.query_tokens)) < len(out):
            out[tokens:] = 0
        if parts.groups:
            _decodes(query, key_cache, value_cache, parts, scale, out, scales)
        for chunk in parts.chunks:
            _chunk(query, key_cache, value_cache, chunk, parts, scale, out, scales)
        return out


def _decodes(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    parts: Layout,
    scale: float,
    out: Tensor,
    scales: KVScales | None,
) -> None:
    """All sequences with one query token, group by group."""
    kv_heads, head_dim = key_cache.shape[2:]
    num_decodes = parts.order.shape[0] // kv_heads
    # [decodes * kv_heads, query heads of a KV head, head_dim], in the order of the groups.
    rows = query[:num_decodes].reshape(num_decodes * kv_heads, -1, head_dim).index_select(0, parts.order).mul_(scale)
    if scales is not None:
        # A key's scale is the query's as well, and a value's the answer's: nothing is multiplied for each token.
        of_key, of_value = (by[parts.order % kv_heads].view(-1, 1, 1) for by in scales)
        rows.mul_(of_key)
    found = torch.empty_like(rows)
    for group in parts.groups:
        keys, values = (
            _gather(cache, group.read, buffer).view(kv_heads * group.members, -1, head_dim)
            for cache, buffer in zip((key_cache, value_cache), parts.buffers, strict=True)
        )
        _clear_dead(values, group, kv_heads)
        scores = torch.bmm(rows[group.rows], keys.transpose(1, 2))
        if group.hidden is not None:
            # Filled, not added: a score of a hidden slot may be NaN.
            scores.view(kv_heads, group.members, -1, keys.shape[1]).masked_fill_(group.hidden, float("-inf"))
        torch.bmm(torch.softmax(scores, dim=-1), values, out=found[group.rows])
    if scales is not None:
        found.mul_(of_value)
    out[:num_decodes].view(found.shape).index_copy_(0, parts.order, found)


def _clear_dead(values: Tensor, group: Group, kv_heads: int) -> None:
    """A weight of 0 times NaN is NaN: what is hidden must not only weigh nothing, it must be a number."""
    if group.dead is not None:
        values.view(kv_heads, -1, values.shape[-1]).index_fill_(1, group.dead, 0)


def _chunk(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    chunk: Chunk,
    parts: Layout,
    scale: float,
    out: Tensor,
    scales: KVScales | None,
) -> None:
    """One sequence with more query tokens than one."""
    keys, values = (
        _gather(cache, chunk.read, buffer)[:, chunk.keys].unsqueeze(0)
        for cache, buffer in zip((key_cache, value_cache), parts.buffers, strict=True)
    )
    queries = query[chunk.queries].transpose(0, 1).unsqueeze(0)  # [1, heads, queries, head_dim]
    if scales is not None:
        of_key, of_value = (by.repeat_interleave(query.shape[1] // len(by)).view(-1, 1, 1) for by in scales)
        queries = (queries * of_key).to(query.dtype)
    found = scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    if scales is not None:
        found.mul_(of_value)
    out[chunk.queries] = found[0].transpose(0, 1)


def _gather(cache: Tensor, read: Blocks, buffer: Tensor) -> Tensor:
    """The tokens of these blocks, in order: [kv_heads, blocks * block_size, head_dim], in `buffer`, of its type."""
    num_blocks, block_size, kv_heads, head_dim = cache.shape
    if cache.dtype == FP8:
        # torch moves bytes by index; they become numbers, exactly, on their way into the buffer.
        stored = _gather(as_bytes(cache), read, torch.empty_like(buffer, dtype=torch.uint8)).view(FP8)
        return buffer[: stored.numel()].view(stored.shape).copy_(stored)
    piece = buffer[: read.by_head.shape[0] * block_size * head_dim]
    heads_outermost = cache.permute(2, 0, 1, 3)
    if heads_outermost.is_contiguous():
        rows = heads_outermost.view(kv_heads * num_blocks, block_size * head_dim)
        torch.index_select(rows, 0, read.by_head, out=piece.view(-1, block_size * head_dim))
    else:
        blocks = cache.index_select(0, read.blocks)
        piece.view(kv_heads, -1, block_size, head_dim).copy_(blocks.permute(2, 0, 1, 3))
    return piece.view(kv_heads, -1, head_dim)
