"""What a layer does between its matrix products, whoever does it.

Owns: the Protocol `Ops`, and what its operations are given. Knows nothing of layers or of how anything is computed:
`torch_ops.py` computes in torch on any device, `fused_ops.py` in one kernel each on a GPU, where a step of a few
hundred tokens costs as many microseconds as it starts kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reference_impl.attention.backend import Attention
from reference_impl.attention.fp8 import KVScales
from reference_impl.model.rope import Rotary, Turn


class RMSNorm:
    """The weight and the epsilon of a norm over numbers of `size`. Source: Zhang and Sennrich, NeurIPS 2019."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(size, dtype=dtype, device=device)
        self.eps = eps


@dataclass(frozen=True)
class Heads:
    """How a product's row falls into heads: num_heads queries, num_kv_heads keys, as many values, head_dim each.

    norms: of each query and of each key, before they are turned; None: there are none.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    norms: tuple[RMSNorm, RMSNorm] | None = None


@dataclass(frozen=True)
class Slots:
    """Where a layer's new keys and values go: a slot for each token, -1 for none, and the attention that stores.

    scales: of caches of 8-bit floats; None for caches of the model's type.
    """

    attention: Attention
    key_cache: Tensor
    value_cache: Tensor
    slot_mapping: Tensor
    scales: KVScales | None = None

    @property
    def by_copy(self) -> bool:
        """Whether storing is copying, or with scales what `fp8.quantised` says, so that whoever has the numbers at hand
        may write them without asking.

        An attention says so by an attribute `stores_by_copy` that is true. One that counts, rescales or rearranges
        what it stores, and anybody's lab 4, says nothing and is asked.
        """
        return bool(getattr(self.attention, "stores_by_copy", False))

    def store(self, key: Tensor, value: Tensor) -> None:
        """Keys and values [tokens, kv_heads, head_dim] into the slots."""
        scales = {} if self.scales is None else {"scales": self.scales}
        self.attention.store_kv(key, value, self.key_cache, self.value_cache, self.slot_mapping, **scales)


@dataclass(frozen=True)
class Unnormed:
    """The rows [tokens, size] of which a product was made without their norm, whose weight is in the product's matrix.

    The product is what it should be once each of its rows is multiplied by `factor`: a norm's other half is one number
    a token, and a product is linear. Source: Graef et al., FlashNorm, 2024.
    """

    rows: Tensor
    eps: float

    def factor(self) -> Tensor:
        """1 / sqrt(mean(x^2) + eps) of each row, [tokens, 1] float32."""
        return torch.rsqrt(self.rows.float().square().mean(-1, keepdim=True) + self.eps)


class Ops(Protocol):
    """The operations. None waits for the device.

    longest_before_heads, longest_before_gated: up to so many numbers a row, it is faster to leave a norm to `heads` or
    `gated`, behind the product, than to call `norm` before it; 0: never.
    """

    longest_before_heads: int
    longest_before_gated: int

    def turn(self, rotary: Rotary, positions: Tensor) -> Turn:
        """What `heads` of the same object needs to turn tokens at `positions` [tokens], int32 or int64."""

    def norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last of [tokens, size]; a new tensor."""

    def heads(self, qkv: Tensor, heads: Heads, turn: Turn, slots: Slots, unnormed: Unnormed | None = None) -> Tensor:
        """The queries [tokens, num_heads, head_dim], normed and turned; keys and values are stored on the way.

        qkv: [tokens, (num_heads + 2 * num_kv_heads) * head_dim], which may be overwritten and hold the answer; made of
        `unnormed` rows if these are given.
        """

    def gated(self, gate_up: Tensor, unnormed: Unnormed | None = None) -> Tensor:
        """silu(gate) * up, [tokens, inner], of gate and up side by side in [tokens, 2 * inner], made of `unnormed` rows
        if these are given.
        """


def ops_for(device: torch.device) -> Ops:
    """The fastest for `device`: fused kernels on a GPU where Triton is installed, torch elsewhere."""
    if device.type == "cuda":
        try:
            from reference_impl.model.fused_ops import FusedOps

            return FusedOps()
        except ImportError:
            # A build of torch without Triton: slower, and the same answers.
            pass
    from reference_impl.model.torch_ops import TorchOps

    return TorchOps()
