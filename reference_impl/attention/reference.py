"""Attention as the definition says it: slow, plain, and what every kernel is held against.

Owns: dense and paged attention, partial results and their merge, and the write of keys and values into slots. Knows
nothing of speed: sequences are taken one by one, their keys and values gathered into one piece, and everything is
computed at `dtype`, float64 unless another is asked for.

    query    [tokens, heads, head_dim]                   heads is a multiple of kv_heads
    key      [tokens, kv_heads, head_dim]                value likewise
    caches   [num_blocks, block_size, kv_heads, head_dim]
    tables   [sequences, max_blocks]                     entries behind the last block of a sequence are never read

Query head h looks at KV head h // (heads // kv_heads). The last query token of a sequence is its last token; a token
looks at itself and what stands before it, with `window` only at the last `window` of these.
Nothing but a sequence's own slots is read, so neither blocks of others nor unwritten slots matter, whatever they hold.
Caches may hold 8-bit floats (`fp8.py`): then `k_scale` and `v_scale` [kv_heads] float32 say what they stand for.
Source: Vaswani et al., NeurIPS 2017, section 3.2; Kwon et al., SOSP 2023, section 4.1 (over blocks); Milakov and
Gimelshein, 2018, and Dao et al., NeurIPS 2022, section 3.1, for the merge of partial results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference_impl.attention.fp8 import FP8, as_bytes, check_scales, dequantised, quantised
from reference_impl.memory.block_table import blocks_for


@dataclass(frozen=True)
class Partial:
    """Attention over some of the keys, ready to be merged with that over others.

    out: [tokens, heads, head_dim], 0 where there was no key. lse: [tokens, heads], the logarithm of the sum of the
    exponentials of the scores, -inf where there was no key.
    """

    out: Tensor
    lse: Tensor


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    causal: bool = True,
    window: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Partial:
    """One sequence's queries over its keys and values, at most as many queries as keys if causal.

    Raises: ValueError, naming the argument, on shapes that do not go together or a window below 1.
    Cost: O(query tokens * key tokens * heads * head_dim) time, O(query tokens * key tokens * heads) memory.
    """
    _check(query, key, value, causal, window)
    queries, keys = query.shape[0], key.shape[0]
    group = query.shape[1] // key.shape[1]
    spread_key = key.to(dtype).repeat_interleave(group, dim=1)
    spread_value = value.to(dtype).repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query.to(dtype), spread_key) * scale
    scores = scores.masked_fill(~_visible(queries, keys, causal, window, query.device), float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    # Every query sees a key, itself at least, or there are none at all: -inf - -inf cannot come up.
    weights = torch.exp(scores - lse.unsqueeze(-1))
    return Partial(torch.einsum("hqk,khd->qhd", weights, spread_value), lse.transpose(0, 1))


def merge(first: Partial, second: Partial) -> Partial:
    """Attention over the keys of both. Associative, and `Partial` over no keys changes nothing.

    Raises: ValueError on partials of unlike shapes.
    """
    if first.out.shape != second.out.shape or first.lse.shape != second.lse.shape:
        raise ValueError(f"partials of shapes {tuple(first.out.shape)} and {tuple(second.out.shape)} cannot be merged")
    lse = torch.logaddexp(first.lse, second.lse)
    shift = lse.masked_fill(lse.isneginf(), 0.0)
    out = first.out * torch.exp(first.lse - shift).unsqueeze(-1) + second.out * torch.exp(second.lse - shift).unsqueeze(
        -1
    )
    return Partial(out, lse)


def store_kv(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Write each token's key and value into its slot, `block * block_size + offset`; slot -1 writes nowhere.

    The caches may have any strides. Raises: ValueError, with nothing written, on shapes that do not go together, a slot
    below -1 or behind the cache, or one named twice.
    """
    num_blocks, block_size = key_cache.shape[:2]
    if key.shape != value.shape or key_cache.shape != value_cache.shape or key.shape[1:] != key_cache.shape[2:]:
        shapes = [tuple(tensor.shape) for tensor in (key, value, key_cache, value_cache)]
        raise ValueError(f"key, value, key_cache and value_cache of shapes {shapes} do not go together")
    if slot_mapping.shape != key.shape[:1]:
        raise ValueError(f"slot_mapping has shape {tuple(slot_mapping.shape)} for {key.shape[0]} tokens")
    written = slot_mapping >= 0
    slots = slot_mapping[written]
    if slot_mapping.numel() and not (
        int(slot_mapping.min()) >= -1 and int(slot_mapping.max()) < num_blocks * block_size
    ):
        raise ValueError(f"slot_mapping must be -1 to {num_blocks * block_size - 1}")
    if torch.unique(slots).numel() != slots.numel():
        raise ValueError("slot_mapping names a slot twice")
    check_scales(key_cache, k_scale, v_scale)
    blocks, offsets = slots // block_size, slots % block_size
    for tensor, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        if scale is None:
            cache[blocks, offsets] = tensor[written]
        else:
            as_bytes(cache)[blocks, offsets] = as_bytes(quantised(tensor[written], scale))


def gather(cache: Tensor, table: Tensor, num_tokens: int) -> Tensor:
    """The first `num_tokens` tokens of a sequence in order: [num_tokens, kv_heads, head_dim].

    Raises: ValueError if the table is too short, or names a block that the cache does not have.
    """
    num_blocks, block_size = cache.shape[:2]
    blocks = table[: blocks_for(num_tokens, block_size)].long()
    if blocks.numel() * block_size < num_tokens:
        raise ValueError(f"a table of {table.numel()} blocks of {block_size} does not hold {num_tokens} tokens")
    if blocks.numel() and not (int(blocks.min()) >= 0 and int(blocks.max()) < num_blocks):
        raise ValueError(f"the table {blocks.tolist()} names a block outside of 0 to {num_blocks - 1}")
    memory = as_bytes(cache) if cache.dtype == FP8 else cache
    return memory[blocks].view(cache.dtype).flatten(0, 1)[:num_tokens]


def paged_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    dtype: torch.dtype = torch.float64,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """One query token for each sequence, [sequences, heads, head_dim], over its `context_lens` tokens in the cache.

    A context of 0 gives zeros. The answer has the query's shape, at `dtype`. Errors as `attention` and `gather`.
    """
    starts = torch.arange(query.shape[0] + 1)
    return paged_prefill(
        query,
        key_cache,
        value_cache,
        block_tables,
        starts,
        context_lens,
        scale,
        window=window,
        dtype=dtype,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def paged_prefill(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    dtype: torch.dtype = torch.float64,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """The queries of many sequences end to end, [tokens, heads, head_dim], each over its own tokens in the cache.

    Sequence i has the query tokens from `cu_seqlens[i]` to before `cu_seqlens[i + 1]`, the last of `context_lens[i]`: a
    whole prompt, a chunk of one behind what is cached, or one token of a decode. A query token with no context
    gives zeros. Errors as `attention` and `gather`; ValueError on counts that do not go together.
    """
    sequences = context_lens.numel()
    if block_tables.shape[0] != sequences or cu_seqlens.numel() != sequences + 1:
        counts = f"{block_tables.shape[0]} tables, {cu_seqlens.numel()} offsets"
        raise ValueError(f"{sequences} context lengths do not go with {counts}")
    if int(cu_seqlens[0]) != 0 or int(cu_seqlens[-1]) != query.shape[0]:
        raise ValueError(f"cu_seqlens must go from 0 to the {query.shape[0]} query tokens, got {cu_seqlens.tolist()}")
    check_scales(key_cache, k_scale, v_scale)
    out = torch.zeros(query.shape, dtype=dtype, device=query.device)
    for place in range(sequences):
        start, stop, context = int(cu_seqlens[place]), int(cu_seqlens[place + 1]), int(context_lens[place])
        if not context:
            continue
        key, value = (
            found if by is None else dequantised(found, by, dtype)
            for found, by in (
                (gather(key_cache, block_tables[place], context), k_scale),
                (gather(value_cache, block_tables[place], context), v_scale),
            )
        )
        out[start:stop] = attention(query[start:stop], key, value, scale, window=window, dtype=dtype).out
    return out


def _visible(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] bool: which key each query looks at."""
    at = torch.arange(keys - queries, keys, device=device).unsqueeze(1)
    key_at = torch.arange(keys, device=device).unsqueeze(0)
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device)
    if causal:
        visible &= key_at <= at
    if window is not None:
        visible &= key_at > at - window
    return visible


def _check(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None) -> None:
    if key.shape != value.shape:
        raise ValueError(f"key has shape {tuple(key.shape)}, value {tuple(value.shape)}")
    if query.dim() != 3 or key.dim() != 3 or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"query has shape {tuple(query.shape)}, key {tuple(key.shape)}: need [tokens, heads, head_dim]"
        )
    if not key.shape[1] or query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are no multiple of {key.shape[1]} KV heads")
    if causal and query.shape[0] > key.shape[0]:
        raise ValueError(f"{query.shape[0]} query tokens have only {key.shape[0]} keys; the last of both is one token")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
