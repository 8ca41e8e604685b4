"""A lab 4 as somebody might write it first: one sequence after the other, no kernel."""

import torch


def store_kv(key, value, key_cache, value_cache, slot_mapping):
    block_size = key_cache.shape[1]
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            key_cache[slot // block_size, slot % block_size] = key[token]
            value_cache[slot // block_size, slot % block_size] = value[token]


def paged_attention(query, key_cache, value_cache, block_tables, context_lens, scale, out):
    block_size, kv_heads = key_cache.shape[1:3]
    group = query.shape[1] // kv_heads
    for row, context in enumerate(context_lens.tolist()):
        if not context:
            out[row] = 0
            continue
        blocks = block_tables[row, : -(-context // block_size)].long()
        key = key_cache[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1)
        value = value_cache[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1)
        weights = torch.softmax(torch.einsum("hd,thd->ht", query[row], key) * scale, -1)
        out[row] = torch.einsum("ht,thd->hd", weights, value)
