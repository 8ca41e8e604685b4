"""Keys and values in 8 bits: what a number becomes in the cache, and what it stands for.

Owns: the format, float8_e4m3fn (4 bits of exponent, 3 of mantissa, no infinity), its scales, and the arithmetic of both
ways in torch. Knows nothing of kernels (`fp8_kernel.py`) or of how a scale is chosen (`engine/kv_scales.py`).

    stored = value / scale, at most 448 either way, rounded to the nearest, to even in the middle
    meant  = stored * scale

A layer has one scale for the keys and one for the values of each KV head. Scores are linear in keys, and answers in
values, so nobody multiplies what is read: a key's scale goes into the softmax scale, a value's into the answer.
Normal numbers keep 3 bits behind the leading one, so each is off by 1/17 of itself at most; below scale / 64 steps
are scale / 512 wide.
Source: Micikevicius et al., FP8 Formats for Deep Learning, 2022, section 3 (E4M3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The format has no infinity: what is larger becomes this. NaN stays NaN."""


class KVScales(NamedTuple):
    """A layer's scales, above 0: of keys and of values, each [kv_heads] float32 on the device of the cache.

    One number for all heads is `torch.tensor([number]).expand(kv_heads)`.
    """

    k: Tensor
    v: Tensor


def quantised(numbers: Tensor, scale: Tensor) -> Tensor:
    """numbers [..., kv_heads, head_dim] of any type as the cache keeps them, with scale [kv_heads] float32."""
    # Clamped first: versions of torch differ in what becomes of a number above the largest.
    return (numbers.float() / scale.unsqueeze(-1)).clamp(-LARGEST, LARGEST).to(FP8)


def dequantised(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What stored [..., kv_heads, head_dim] stands for, computed at `dtype`."""
    return stored.to(dtype) * scale.to(dtype).unsqueeze(-1)


def as_bytes(cache: Tensor) -> Tensor:
    """The same memory as bytes: most of torch's operations by index do not know 8-bit floats."""
    return cache.view(torch.uint8)


def check_scales(key_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None) -> None:
    """Raises: ValueError unless a cache of FP8 [., ., kv_heads, .] has both scales, and any other has neither.

    Whether a scale is above 0 is looked at on a CPU alone: elsewhere the host would wait for the device.
    """
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if key_cache.dtype != FP8:
            if scale is not None:
                raise ValueError(f"{name} is for a cache of {FP8}, this one is of {key_cache.dtype}: give none")
            continue
        if scale is None:
            raise ValueError(f"a cache of {FP8} needs {name}, one float32 for each of {key_cache.shape[2]} KV heads")
        if scale.shape != key_cache.shape[2:3] or scale.dtype != torch.float32 or scale.device != key_cache.device:
            found = f"{tuple(scale.shape)} of {scale.dtype} on {scale.device}"
            need = f"({key_cache.shape[2]},) of torch.float32 on {key_cache.device}"
            raise ValueError(f"{name} is {found}: need {need}")
        if scale.device.type == "cpu" and not bool((scale > 0).all()):
            raise ValueError(f"{name} must be above 0 for every head, got {scale.tolist()}")
