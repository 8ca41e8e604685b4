"""One decoder layer: attention over paged memory, then the MLP, each added to what came in.

Owns: the layer's arithmetic and its weights. Knows nothing of other layers or of who computes attention.

    hidden -> norm -> q, k, v -> (norm of heads) -> turn -> store k, v -> attend -> o -> + hidden
    hidden -> norm -> gate, up -> silu(gate) * up -> down -> + hidden

Source: Touvron et al., LLaMA, 2023, section 2.2; Shazeer, 2020, for the gated MLP; Ainslie et al., 2023, for grouped
queries; Yang et al., Qwen3, 2025, section 2, for the norm of queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from reference_impl.attention.backend import Attention
from reference_impl.attention.metadata import AttentionMetadata
from reference_impl.model.config import ModelConfig
from reference_impl.model.linear import Linear
from reference_impl.model.rope import Turn, rotate


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension. Source: Zhang and Sennrich, NeurIPS 2019."""

    def __init__(self, size: int, eps: float, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(size, dtype=dtype, device=device)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu":
            # One kernel on a GPU, and sums in float32 whatever the dtype.
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # On a CPU torch goes over the memory for each operation: six times as long for 512 tokens.
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self.weight)


class Layer:
    """The layer number `index` of a model, counted from 0."""

    def __init__(self, config: ModelConfig, index: int, *, dtype: torch.dtype, device: torch.device) -> None:
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        hidden, inner = config.hidden_size, config.intermediate_size

        def linear(inputs: int, bias: bool, **rows: int) -> Linear:
            return Linear(inputs, rows, bias=bias, dtype=dtype, device=device)

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, config.rms_norm_eps, dtype=dtype, device=device)

        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, size
        self.window = config.window(index)
        self.qkv = linear(
            hidden, config.attention_bias, q_proj=heads * size, k_proj=kv_heads * size, v_proj=kv_heads * size
        )
        self.output = linear(heads * size, config.output_bias, o_proj=hidden)
        self.gate_up = linear(hidden, config.mlp_bias, gate_proj=inner, up_proj=inner)
        self.down = linear(inner, config.mlp_bias, down_proj=hidden)
        self.attention_norm, self.mlp_norm = norm(hidden), norm(hidden)
        self.head_norms = (norm(size), norm(size)) if config.qk_norm else None

    def forward(
        self,
        hidden: Tensor,
        turn: Turn,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        attention: Attention,
    ) -> None:
        """Change `hidden` [tokens, hidden_size] in place; the tokens' keys and values are in the caches afterwards."""
        query, key, value = self._heads(self.attention_norm(hidden), turn)
        attention.store_kv(key, value, key_cache, value_cache, metadata.slot_mapping)
        scale = self.head_dim**-0.5
        seen = attention.attend(query, key_cache, value_cache, metadata, scale, window=self.window)
        self.output.add_to(hidden, seen.flatten(1))  # [tokens, heads * head_dim]
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, dim=1)  # [tokens, intermediate_size] each
        self.down.add_to(hidden, functional.silu(gate).mul_(up))

    def _heads(self, normed: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim]; query and key are turned."""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        qkv = self.qkv(normed).view(-1, heads + 2 * kv_heads, self.head_dim)
        query_key, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if self.head_norms is not None:
            query_norm, key_norm = self.head_norms
            query_key = torch.cat((query_norm(query_key[:, :heads]), key_norm(query_key[:, heads:])), dim=1)
        turned = rotate(query_key, turn)
        return turned[:, :heads], turned[:, heads:], value

    def pack(self) -> None:
        """See `Linear.pack`."""
        for linear in (self.qkv, self.output, self.gate_up, self.down):
            linear.pack()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Published name within the layer -> the memory to fill."""
        for place, linear in (("self_attn", self.qkv), ("self_attn", self.output)):
            yield from ((f"{place}.{name}", view) for name, view in linear.weights())
        for linear in (self.gate_up, self.down):
            yield from ((f"mlp.{name}", view) for name, view in linear.weights())
        yield "input_layernorm.weight", self.attention_norm.weight
        yield "post_attention_layernorm.weight", self.mlp_norm.weight
        for name, norm in zip(("q_norm", "k_norm"), self.head_norms or (), strict=False):
            yield f"self_attn.{name}.weight", norm.weight
