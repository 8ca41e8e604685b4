"""What the kernels over paged keys and values are given: refused before anything is written, by name.

Owns: the checks that decode and prefill share. Knows nothing of kernels. Only shapes, types and strides are looked at,
which the host has; to look at numbers would make it wait for the GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impl.attention.fp8 import FP8, check_scales

WIDE = (torch.float32, torch.float16, torch.bfloat16)
"""What kernels compute with."""


def check_paged(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    out: Tensor,
    *,
    first: str,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Raises: ValueError unless query, out [`first`, heads, head_dim] and the caches go together.

    All are of one type, or the caches are of `fp8.FP8` and have scales.
    """
    if query.dim() != 3 or out.shape != query.shape:
        shapes = f"query has shape {tuple(query.shape)}, out {tuple(out.shape)}"
        raise ValueError(f"{shapes}: need [{first}, heads, head_dim]")
    if key_cache.dim() != 4 or key_cache.shape != value_cache.shape or key_cache.shape[3] != query.shape[2]:
        shapes = f"{tuple(key_cache.shape)} and {tuple(value_cache.shape)}"
        raise ValueError(f"caches of shapes {shapes} do not go with a query of shape {tuple(query.shape)}")
    if not key_cache.shape[2] or query.shape[1] % key_cache.shape[2]:
        raise ValueError(f"{query.shape[1]} query heads are no multiple of {key_cache.shape[2]} KV heads")
    types = {tensor.dtype for tensor in (query, key_cache, value_cache, out)}
    narrow = query.dtype == out.dtype and key_cache.dtype == value_cache.dtype == FP8
    if (len(types) > 1 and not narrow) or query.dtype not in WIDE:
        names = ", ".join(sorted(map(str, types)))
        raise ValueError(f"query, caches and out are of {names}: need one of float32, float16 and bfloat16 for all")
    for name, tensor in (("query", query), ("key_cache", key_cache), ("value_cache", value_cache), ("out", out)):
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"the last dimension of {name} has stride {tensor.stride(-1)}: need 1")
    check_scales(key_cache, k_scale, v_scale)


def check_indices(count: int, what: str, **tensors: tuple[Tensor, int]) -> None:
    """Raises: ValueError unless each tensor, given with its number of dimensions, is `count` int32, as `what` needs."""
    for name, (found, ndim) in tensors.items():
        if found.dim() != ndim or found.shape[0] != count or found.dtype != torch.int32:
            raise ValueError(f"{name} is {tuple(found.shape)} of {found.dtype}: need int32 for {what}")
