"""What a model asks of attention, whoever computes it.

Owns: the Protocol `Attention`. Knows nothing of models or of how anything is computed: `torch_attention.py` computes in
torch on any device, `lab4.py` puts anybody's lab 4 kernel behind it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from reference_impl.attention.fp8 import KVScales
from reference_impl.attention.metadata import AttentionMetadata

LayerCache = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, KVScales]
"""A layer's keys and values, [num_blocks, block_size, kv_heads, head_dim] each, and the scales of 8-bit ones."""


@runtime_checkable
class Attention(Protocol):
    """Attention over paged keys and values, for one layer at a time.

    key_cache, value_cache: [num_blocks, block_size, kv_heads, head_dim], any strides but a contiguous last dimension.
    scales: given if, and only if, the caches are of `fp8.FP8`; one that knows no such caches is not asked about any.
    """

    def store_kv(
        self,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slot_mapping: Tensor,
        *,
        scales: KVScales | None = None,
    ) -> None:
        """Write each token's key and value [tokens, kv_heads, head_dim] into its slot; slot -1 writes nowhere."""

    def attend(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        metadata: AttentionMetadata,
        scale: float,
        *,
        window: int | None = None,
        scales: KVScales | None = None,
    ) -> Tensor:
        """Each query token [tokens, heads, head_dim] over its sequence up to itself; what a pad gets is of no use.

        The step's own keys and values are stored before. `window`: only the last `window` tokens, itself included.
        """
