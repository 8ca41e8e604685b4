"""Batches over a cache of 8-bit floats, made of those over a cache of the query's type.

Owns: the caches and their scales. Knows nothing of kernels. What was poison (NaN) stays poison: the format's NaN, or
its largest number, so that two runs show whether it was looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from reference_impl.attention.fp8 import FP8, KVScales, as_bytes, quantised
from tests.reference_impl.attention.cascade_problems import Problem as Cascade
from tests.reference_impl.attention.decode_problems import Problem as Decode
from tests.reference_impl.attention.prefill_problems import Problem as Prefill

NAN, LARGEST = 0x7F, 0x7E
P = TypeVar("P", Decode, Prefill, Cascade)


def scales_for(kv_heads: int, device: torch.device, seed: int = 0) -> KVScales:
    """Another one for each head, as large keys and values as numbers from a normal distribution need them."""
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.rand(2, kv_heads, generator=generator).add_(0.5).div_(64.0).to(device)
    return KVScales(k, v)


def in_8_bits(problem: P, scales: KVScales, poison: int = NAN) -> P:
    """The same batch with caches of FP8, of the strides that they had."""
    caches = torch.stack([problem.key_cache, problem.value_cache], 1)
    empty = caches.isnan()
    both = torch.stack([as_bytes(quantised(caches[:, half], by)) for half, by in enumerate(scales)], 1)
    both[empty] = poison
    return replace(problem, key_cache=both[:, 0].view(FP8), value_cache=both[:, 1].view(FP8))


def looked_at(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The same memory in types that can be compared."""
    return [as_bytes(tensor) if tensor.dtype == FP8 else tensor for tensor in tensors]


def keywords(scales: KVScales) -> dict[str, Any]:
    """As the kernels are told them."""
    return {"k_scale": scales.k, "v_scale": scales.v}
