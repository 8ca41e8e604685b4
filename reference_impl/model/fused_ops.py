"""A layer's small operations on a GPU, one kernel each: four a layer beside its products and its attention.

Owns: which kernel does what. Knows nothing of their arithmetic (`fused.py`, `fused_heads.py`) or of layers.
"""

from __future__ import annotations

from torch import Tensor

from reference_impl.model.fused import gated, rms_norm, turns
from reference_impl.model.fused_heads import turn_heads
from reference_impl.model.ops import Heads, RMSNorm, Slots, Unnormed
from reference_impl.model.rope import Rotary, Turn


class FusedOps:
    """The `Ops` of `ops.py`. A `Turn` of it: cos and sin [tokens, head_dim / 2], float32 whatever the model's dtype."""

    # Every program of a token reads its whole row for the norm. Longer ones were not tried.
    longest_before_heads = longest_before_gated = 2_048

    def turn(self, rotary: Rotary, positions: Tensor) -> Turn:
        """As in the contract."""
        return Turn(*turns(positions, rotary.frequencies, rotary.amplitude))

    def norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """As in the contract."""
        return rms_norm(x, norm.weight, norm.eps)

    def heads(self, qkv: Tensor, heads: Heads, turn: Turn, slots: Slots, unnormed: Unnormed | None = None) -> Tensor:
        """As in the contract; overwrites qkv and gives a view of it. Stores itself only where storing is copying."""
        num_heads, num_turned = heads.num_heads, heads.num_heads + heads.num_kv_heads
        by_copy = slots.by_copy
        turn_heads(qkv, heads, turn, slots if by_copy else None, unnormed)
        split = qkv.view(-1, num_turned + heads.num_kv_heads, heads.head_dim)
        if not by_copy:
            slots.store(split[:, num_heads:num_turned], split[:, num_turned:])
        return split[:, :num_heads]

    def gated(self, gate_up: Tensor, unnormed: Unnormed | None = None) -> Tensor:
        """As in the contract."""
        return gated(gate_up, unnormed)
