"""Attention over paged keys and values on a GPU: our Triton kernels behind the engine's surface.

Owns: which part of a batch goes to which kernel, and the work lists of a step. Knows nothing of how a kernel works.
Sequences with one query token stand first and go to `paged_decode` in one launch, all others to `paged_prefill` in
another, whatever their lengths; decodes of which the metadata say that they begin alike, to `cascade_decode`. Nothing
here waits for the GPU, and nothing that is launched depends on lengths the host has, but for that of a common prefix
and the sum of all: a batch can be captured in a CUDA graph and replayed when the numbers in its tensors have changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impl.attention.cascade_decode import cascade_decode
from reference_impl.attention.cascade_work import CascadeWork
from reference_impl.attention.fp8 import KVScales
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.paged_prefill import paged_prefill
from reference_impl.attention.store_kv import store_kv
from reference_impl.attention.work_list import WorkList


class TritonAttention:
    """The `Attention` of `backend.py`. Nothing but a sequence's own slots reaches its answer, whatever they hold."""

    stores_by_copy = True
    """To store is to copy, or with scales what `fp8.quantised` says, and nothing else: a kernel that holds keys and
    values may write them into their slots."""

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
        """As in the contract. Raises: ValueError on shapes or types that do not go together. Cost: one launch."""
        k_scale, v_scale = scales or (None, None)
        store_kv(key, value, key_cache, value_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale)

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
        """As in the contract; a pad gets zeros. Raises: ValueError on shapes or types that do not go together.

        Cost: at most three launches a layer, and one a step for the work list.
        """
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        tokens, decodes = sum(metadata.query_tokens), metadata.num_decodes
        if tokens < len(out):
            out[tokens:] = 0
        tables, contexts = metadata.block_tables, metadata.context_lens
        k_scale, v_scale = scales or (None, None)
        if decodes:
            self._decode(query, key_cache, value_cache, metadata, scale, out, window, scales)
        if decodes < len(metadata.query_tokens):
            paged_prefill(
                query[decodes:tokens],
                key_cache,
                value_cache,
                tables[decodes:],
                contexts[decodes:],
                metadata.cu_seqlens[decodes:],
                scale,
                out[decodes:tokens],
                window=window,
                k_scale=k_scale,
                v_scale=v_scale,
            )
        return out

    def _decode(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        out: Tensor,
        window: int | None,
        scales: KVScales | None,
    ) -> None:
        """The first rows."""
        decodes, (k_scale, v_scale) = metadata.num_decodes, scales or (None, None)
        query, out = query[:decodes], out[:decodes]
        tables, contexts = metadata.block_tables[:decodes], metadata.context_lens[:decodes]
        # A window may hide some of a prefix, and other tokens of it from each sequence.
        if window is None and (prefix := metadata.prefix_tokens):
            cascade_decode(
                query,
                key_cache,
                value_cache,
                tables[0],
                prefix,
                tables,
                contexts,
                scale,
                out,
                work=_cascade_work(query, key_cache, metadata, prefix),
                k_scale=k_scale,
                v_scale=v_scale,
            )
            return
        paged_decode(
            query,
            key_cache,
            value_cache,
            tables,
            contexts,
            scale,
            out,
            work=_work_list(query, key_cache, metadata, window),
            k_scale=k_scale,
            v_scale=v_scale,
        )


def _cascade_work(query: Tensor, key_cache: Tensor, metadata: AttentionMetadata, prefix_tokens: int) -> CascadeWork:
    """The step's, made by its first layer."""
    _, heads, head_dim = query.shape
    kv_heads, kv_dtype = key_cache.shape[2], key_cache.dtype
    key = (CascadeWork, heads, kv_heads, head_dim, query.dtype, kv_dtype)
    work: CascadeWork | None = metadata.worked_out.get(key)
    if work is None:
        batch = metadata.num_decodes
        work = CascadeWork(batch, heads, kv_heads, head_dim, query.dtype, query.device, kv_dtype=kv_dtype)
        metadata.worked_out[key] = work.refresh(metadata.context_lens[:batch], prefix_tokens)
    return work


def _work_list(query: Tensor, key_cache: Tensor, metadata: AttentionMetadata, window: int | None) -> WorkList:
    """The step's, made by its first layer; layers with another window have one of their own."""
    _, heads, head_dim = query.shape
    kv_heads, kv_dtype = key_cache.shape[2], key_cache.dtype
    key = (TritonAttention, heads, kv_heads, head_dim, query.dtype, kv_dtype, window)
    work: WorkList | None = metadata.worked_out.get(key)
    if work is None:
        batch = metadata.num_decodes
        shape = (batch, heads, kv_heads, head_dim, query.dtype, query.device)
        work = WorkList(*shape, window=window, kv_dtype=kv_dtype)
        work.refresh(metadata.context_lens[:batch])
        metadata.worked_out[key] = work
    return work
