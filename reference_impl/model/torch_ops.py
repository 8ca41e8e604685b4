"""A layer's small operations in torch: the fast way on a CPU, a right one on any device.

Owns: their arithmetic. Knows nothing of layers. Each is several passes over memory, so a pass that can be spared is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from reference_impl.model.ops import Heads, RMSNorm, Slots, Unnormed
from reference_impl.model.rope import Rotary, Turn, rotate


class TorchOps:
    """The `Ops` of `ops.py`. A `Turn` of it is that of `Rotary.at`."""

    # It can, and gains nothing: a pass over memory is a pass over memory.
    longest_before_heads = longest_before_gated = 0

    def turn(self, rotary: Rotary, positions: Tensor) -> Turn:
        """As in the contract."""
        return rotary.at(positions)

    def norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """As in the contract."""
        if x.dtype != torch.float32 or x.device.type != "cpu":
            # One kernel on a GPU, and sums in float32 whatever the dtype.
            return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
        # On a CPU torch goes over the memory for each operation: six times as long for 512 tokens.
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * length.square_().div_(x.shape[-1]).add_(norm.eps).rsqrt_()).mul_(norm.weight)

    def heads(self, qkv: Tensor, heads: Heads, turn: Turn, slots: Slots, unnormed: Unnormed | None = None) -> Tensor:
        """As in the contract."""
        if unnormed is not None:
            qkv = (qkv * unnormed.factor()).to(qkv.dtype)
        num_heads, num_turned = heads.num_heads, heads.num_heads + heads.num_kv_heads
        split = qkv.view(-1, num_turned + heads.num_kv_heads, heads.head_dim)
        query_key, value = split[:, :num_turned], split[:, num_turned:]
        if heads.norms is not None:
            query_norm, key_norm = heads.norms
            normed = (self.norm(query_key[:, :num_heads], query_norm), self.norm(query_key[:, num_heads:], key_norm))
            query_key = torch.cat(normed, dim=1)
        turned = rotate(query_key, turn)
        slots.store(turned[:, num_heads:], value)
        return turned[:, :num_heads]

    def gated(self, gate_up: Tensor, unnormed: Unnormed | None = None) -> Tensor:
        """As in the contract."""
        if unnormed is not None:
            gate_up = (gate_up * unnormed.factor()).to(gate_up.dtype)
        gate, up = gate_up.chunk(2, dim=1)
        return functional.silu(gate).mul_(up)
