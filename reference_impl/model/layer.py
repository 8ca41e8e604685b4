"""One decoder layer: attention over paged memory, then the MLP, each added to what came in.

Owns: the order of a layer's operations, and its weights. Knows nothing of other layers, of who computes attention or of
how what lies between the products is computed (`ops.py`).

    hidden -> norm -> q, k, v -> (norm of heads) -> turn -> store k, v -> attend -> o -> + hidden
    hidden -> norm -> gate, up -> silu(gate) * up -> down -> + hidden

A norm is a weight for each input, which can be in the matrix behind it, and a factor for each token, which can come
behind the product. Where that costs whoever takes the product less than a launch before it, `pack` makes it so, and
nothing is computed before the product.

Source: Touvron et al., LLaMA, 2023, section 2.2; Shazeer, 2020, for the gated MLP; Ainslie et al., 2023, for grouped
queries; Yang et al., Qwen3, 2025, section 2, for the norm of queries and keys;
Graef et al., FlashNorm, 2024, for norms behind products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reference_impl.attention.backend import Attention
from reference_impl.attention.fp8 import KVScales
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.model.config import ModelConfig
from reference_impl.model.linear import Linear
from reference_impl.model.ops import Heads, Ops, RMSNorm, Slots, Unnormed
from reference_impl.model.rope import Turn


class Layer:
    """The layer number `index` of a model, counted from 0."""

    def __init__(self, config: ModelConfig, index: int, ops: Ops, *, dtype: torch.dtype, device: torch.device) -> None:
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size

        def linear(inputs: int, bias: bool, **rows: int) -> Linear:
            return Linear(inputs, rows, bias=bias, dtype=dtype, device=device)

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, config.rms_norm_eps, dtype=dtype, device=device)

        self.ops = ops
        self.scale = size**-0.5
        self.window = config.window(index)
        self.qkv = linear(
            hidden, config.attention_bias, q_proj=heads * size, k_proj=kv_heads * size, v_proj=kv_heads * size
        )
        self.output = linear(heads * size, config.output_bias, o_proj=hidden)
        self.gate_up = linear(hidden, config.mlp_bias, gate_proj=inner, up_proj=inner)
        self.down = linear(inner, config.mlp_bias, down_proj=hidden)
        self.attention_norm, self.mlp_norm = norm(hidden), norm(hidden)
        self.heads = Heads(heads, kv_heads, size, (norm(size), norm(size)) if config.qk_norm else None)

    def forward(
        self,
        hidden: Tensor,
        turn: Turn,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        attention: Attention,
        scales: KVScales | None = None,
    ) -> None:
        """Change `hidden` [tokens, hidden_size] in place; the tokens' keys and values are in the caches afterwards.

        scales: of caches of 8-bit floats.
        """
        ops, slots = self.ops, Slots(attention, key_cache, value_cache, metadata.slot_mapping, scales)
        # [tokens, heads, head_dim]
        qkv, unnormed = self._product(self.qkv, hidden, self.attention_norm)
        query = ops.heads(qkv, self.heads, turn, slots, unnormed)
        narrow = {} if scales is None else {"scales": scales}
        seen = attention.attend(query, key_cache, value_cache, metadata, self.scale, window=self.window, **narrow)
        self.output.add_to(hidden, seen.flatten(1))  # [tokens, heads * head_dim]
        # [tokens, intermediate_size], made of twice as much
        gate_up, unnormed = self._product(self.gate_up, hidden, self.mlp_norm)
        self.down.add_to(hidden, ops.gated(gate_up, unnormed))

    def _product(self, linear: Linear, hidden: Tensor, norm: RMSNorm) -> tuple[Tensor, Unnormed | None]:
        """Of normed rows; or of the rows themselves, and what is then left to do."""
        if linear.is_folded:
            return linear(hidden), Unnormed(hidden, norm.eps)
        return linear(self.ops.norm(hidden, norm)), None

    def pack(self) -> None:
        """After the last weight was filled: norms go behind their products where that is faster, and `Linear.pack`."""
        self._fold(self.attention_norm, self.qkv, self.ops.longest_before_heads)
        self._fold(self.mlp_norm, self.gate_up, self.ops.longest_before_gated)
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            linear.pack()

    def _fold(self, norm: RMSNorm, linear: Linear, longest: int) -> None:
        weight = norm.weight
        # A bias is added to what was normed. Sums over numbers that were not may be too large for float16.
        fits = weight.shape[0] <= longest and linear.bias is None and weight.dtype != torch.float16
        if fits and not linear.is_folded:
            linear.fold(weight)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Published name within the layer -> the memory to fill."""
        for place, linear in (("self_attn", self.qkv), ("self_attn", self.output)):
            yield from ((f"{place}.{name}", view) for name, view in linear.weights())
        for linear in (self.gate_up, self.down):
            yield from ((f"mlp.{name}", view) for name, view in linear.weights())
        yield "input_layernorm.weight", self.attention_norm.weight
        yield "post_attention_layernorm.weight", self.mlp_norm.weight
        for name, norm in zip(("q_norm", "k_norm"), self.heads.norms or (), strict=False):
            yield f"self_attn.{name}.weight", norm.weight
