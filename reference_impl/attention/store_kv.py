"""Reshape and cache: each token's key and value go into the slot that the block table gave them.

Owns: one Triton kernel. Knows nothing of sequences, block tables or of who may write where. A program takes some rows,
one (token, KV head) each, so that no head dimension and no number of heads wastes more than the last program.
A cache of 8-bit floats gets each number over its head's scale (`fp8.py`).
Cost: reads and writes every byte of key and value once; one launch.
Source: Kwon et al., SOSP 2023, section 5.1 ("fused reshape and block write").
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_impl.attention.arguments import WIDE
from reference_impl.attention.casts import INTERPRETED, narrowed
from reference_impl.attention.fp8 import FP8, check_scales
from reference_impl.attention.sizes import cdiv, next_power_of_2

_ELEMENTS = 4096
"""What a program copies of the keys, and as much of the values: 32 numbers a thread."""


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
    """Write token t's key and value to slot `slot_mapping[t] = block * block_size + offset`; slot -1 writes nowhere.

    key, value: [tokens, kv_heads, head_dim]; caches: [num_blocks, block_size, kv_heads, head_dim]; slot_mapping:
    [tokens], int64 or int32. The last dimension is contiguous, the others have any stride; the caches may be views of
    one tensor. All are of one type, or the caches of `fp8.FP8`, which then need scales as in `fp8.KVScales`.
    Slots are below num_blocks * block_size and no two are the same: that is the caller's promise, as looking would make
    the host wait for the GPU. Raises: ValueError, with nothing written, on shapes or types that do not go together.
    """
    _check(key, value, key_cache, value_cache, slot_mapping)
    check_scales(key_cache, k_scale, v_scale)
    tokens, kv_heads, head_dim = key.shape
    if not tokens:
        return
    dims = next_power_of_2(head_dim)
    rows = max(1, _ELEMENTS // dims)
    _store_kv[(cdiv(tokens * kv_heads, rows),)](
        key,
        value,
        key_cache,
        value_cache,
        slot_mapping,
        k_scale,
        v_scale,
        tokens * kv_heads,
        kv_heads,
        *key.stride()[:2],
        *value.stride()[:2],
        *key_cache.stride()[:3],
        *value_cache.stride()[:3],
        slot_mapping.stride(0),
        0 if k_scale is None else k_scale.stride(0),
        0 if v_scale is None else v_scale.stride(0),
        BLOCK_SIZE=key_cache.shape[1],
        HEAD_DIM=head_dim,
        DIMS=dims,
        ROWS=rows,
        INTERPRETED=INTERPRETED,
    )


# Slots: as lengths in paged_prefill.py.
@triton.jit(do_not_specialize=["num_rows"], do_not_specialize_on_alignment=["slot_mapping"])
def _store_kv(
    key,
    value,
    key_cache,
    value_cache,
    slot_mapping,
    k_scale,
    v_scale,
    num_rows,
    kv_heads,
    key_token,
    key_head,
    value_token,
    value_head,
    key_cache_block,
    key_cache_token,
    key_cache_head,
    value_cache_block,
    value_cache_token,
    value_cache_head,
    slot_stride,
    k_scale_head,
    v_scale_head,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    # 64 bits from here on: one layer's cache may have more than 2**31 elements, and so may a prompt's keys.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // kv_heads, row % kv_heads
    slot = tl.load(slot_mapping + token * slot_stride, mask=row < num_rows, other=-1).to(tl.int64)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    dim = tl.arange(0, DIMS)
    # A slot of -1 must not reach the address: -1 // BLOCK_SIZE is 0 or -1, and both are somewhere.
    kept = (slot >= 0)[:, None] & (dim < HEAD_DIM)[None, :]
    from_key = token * key_token + head * key_head
    from_value = token * value_token + head * value_head
    to_key = block * key_cache_block + offset * key_cache_token + head * key_cache_head
    to_value = block * value_cache_block + offset * value_cache_token + head * value_cache_head
    moved_key = tl.load(key + from_key[:, None] + dim[None, :], mask=kept)
    moved_value = tl.load(value + from_value[:, None] + dim[None, :], mask=kept)
    if k_scale is not None:
        key_by = tl.load(k_scale + head * k_scale_head)
        value_by = tl.load(v_scale + head * v_scale_head)
        moved_key = narrowed(moved_key.to(tl.float32), key_by[:, None], INTERPRETED)
        moved_value = narrowed(moved_value.to(tl.float32), value_by[:, None], INTERPRETED)
    tl.store(key_cache + to_key[:, None] + dim[None, :], moved_key, mask=kept)
    tl.store(value_cache + to_value[:, None] + dim[None, :], moved_value, mask=kept)


def _check(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    if key.dim() != 3 or key.shape != value.shape:
        raise ValueError(
            f"key has shape {tuple(key.shape)}, value {tuple(value.shape)}: need [tokens, heads, head_dim]"
        )
    if key_cache.dim() != 4 or key_cache.shape != value_cache.shape or key_cache.shape[2:] != key.shape[1:]:
        shapes = f"{tuple(key_cache.shape)} and {tuple(value_cache.shape)}"
        raise ValueError(f"caches of shapes {shapes} do not go with keys of shape {tuple(key.shape)}")
    if slot_mapping.shape != key.shape[:1] or slot_mapping.dtype not in (torch.int32, torch.int64):
        found = f"{tuple(slot_mapping.shape)} of {slot_mapping.dtype}"
        raise ValueError(f"slot_mapping is {found}: need one int64 or int32 for each of {key.shape[0]} tokens")
    goes_in = key_cache.dtype == key.dtype or (key_cache.dtype == FP8 and key.dtype in WIDE)
    if not goes_in or key.dtype != value.dtype or key_cache.dtype != value_cache.dtype:
        caches = f"caches of {key_cache.dtype} and {value_cache.dtype}"
        raise ValueError(f"keys of {key.dtype} and values of {value.dtype} do not go into {caches}: need one type")
    for name, tensor in (("key", key), ("value", value), ("key_cache", key_cache), ("value_cache", value_cache)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"the last dimension of {name} has stride {tensor.stride(-1)}: need 1")
