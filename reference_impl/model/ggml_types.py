"""Packed numbers of GGUF files, unpacked into float32.

Owns: the ggml types that are read, and the arithmetic of the plain ones. Knows nothing of files or names.
A quantised type packs blocks of 32 or 256 numbers: q for each number in a few bits, a scale d and perhaps a minimum m
for the block; the number is d * q + m. F32, F16, BF16, Q4_0, Q4_1 and Q8_0 are unpacked here, all blocks of a tensor at
once; the K types, whose scales are packed too, by the `gguf` package, which is imported only for them.

Cost: O(numbers); SmolLM2's 134.5 million take about a second on 2 cores.
Source: the structures `block_q4_0`, `block_q4_1` and `block_q8_0` of the ggml project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference_impl.model.errors import ModelError

_BLOCK = 32


def unpack(raw: Tensor, ggml_type: int, shape: tuple[int, ...]) -> Tensor:
    """Float32 of `shape` from a tensor's bytes [bytes] uint8; the type must be one of GGML_TYPES.

    Raises: ModelError if the type needs the `gguf` package and it is not installed.
    """
    kind = GGML_TYPES[ggml_type]
    blocks = raw.view(-1, kind.block_bytes)
    numbers = _by_package(raw, ggml_type) if kind.unpack is None else kind.unpack(blocks)
    return numbers.reshape(shape)


def _q4_0(blocks: Tensor) -> Tensor:
    """d, then 16 bytes: number i in the low half of byte i, number i + 16 in the high half; 8 stands for 0."""
    return (_nibbles(blocks[:, 2:]) - 8) * _halves(blocks[:, :2])


def _q4_1(blocks: Tensor) -> Tensor:
    """d, m, then 16 bytes as Q4_0 has them."""
    scales = _halves(blocks[:, :4])
    return _nibbles(blocks[:, 4:]).mul_(scales[:, :1]).add_(scales[:, 1:])


def _q8_0(blocks: Tensor) -> Tensor:
    """d, then 32 signed bytes."""
    return blocks[:, 2:].view(torch.int8).float().mul_(_halves(blocks[:, :2]))


def _nibbles(packed: Tensor) -> Tensor:
    """[blocks, 16] uint8 -> [blocks, 32] float32, low halves first."""
    numbers = torch.empty(packed.shape[0], _BLOCK)
    numbers[:, : _BLOCK // 2] = packed & 15
    numbers[:, _BLOCK // 2 :] = packed >> 4
    return numbers


def _halves(packed: Tensor) -> Tensor:
    """[blocks, 2 n] uint8 -> [blocks, n] float32: n numbers in float16."""
    return packed.contiguous().view(torch.float16).float()


def _as(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.view(dtype).float()


def _by_package(raw: Tensor, ggml_type: int) -> Tensor:
    name = GGML_TYPES[ggml_type].name
    try:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise ModelError(f"tensors of type {name} need the package gguf: pip install gguf") from None
    return torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType(ggml_type)))


@dataclass(frozen=True)
class GGMLType:
    """block_numbers numbers in block_bytes bytes. unpack: [blocks, block_bytes] uint8 to float32; None: the package."""

    name: str
    block_numbers: int
    block_bytes: int
    unpack: Callable[[Tensor], Tensor] | None = None


GGML_TYPES: dict[int, GGMLType] = {
    0: GGMLType("F32", 1, 4, _as(torch.float32)),
    1: GGMLType("F16", 1, 2, _as(torch.float16)),
    2: GGMLType("Q4_0", 32, 18, _q4_0),
    3: GGMLType("Q4_1", 32, 20, _q4_1),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34, _q8_0),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    30: GGMLType("BF16", 1, 2, _as(torch.bfloat16)),
}
"""ggml's number of a type -> how it is packed."""
