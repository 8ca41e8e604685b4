"""Scales for keys and values in 8 bits: found once, from what the model makes of some tokens.

Owns: that one prompt, and what follows from the keys and values it gives. Knows nothing of caches or requests.

    largest   of each layer's keys and values, for each KV head, over a prompt of random tokens, in the model's type
    scale     the power of two that leaves ROOM times the largest within the format's 448

A power of two, because a float's precision is the same everywhere: no other scale would be more exact, and with it
nothing is rounded but once. Room, because other texts have larger keys: what is still larger becomes the largest. It
costs nothing but the bottom of the range, which reaches down from 448 by a factor of 28,672 before bits are lost.
The prompt is the same for every engine, so an engine gives the same tokens whatever was asked of it first. Scales
that a real corpus was measured for, as some checkpoints bring them, would be tighter; with a format of floats that
gains nothing until keys differ by a factor of some hundreds.
Cost: a step of `PROMPT_TOKENS` tokens when the engine is made, with torch's attention.
Source: the scales of 1 that vLLM takes without calibration, and its estimate from the first prompt, are the simpler
ways; with the first, keys above 448 are cut and values below 1/64 lose bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference_impl.attention.fp8 import LARGEST, KVScales
from reference_impl.attention.metadata import AttentionMetadata, BatchRow, build_metadata
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.device import on_device
from reference_impl.engine.memory_profile import shared_cache
from reference_impl.memory.block_table import blocks_for
from reference_impl.model.transformer import Transformer

PROMPT_TOKENS = 256
ROOM = 4.0
_BLOCK = 16


class _Watched:
    """Torch's attention, and the largest key and value of each head [kv_heads], layer after layer."""

    def __init__(self) -> None:
        self.largest: list[tuple[Tensor, Tensor]] = []
        self._ours = TorchAttention()

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
        self.largest.append((key.abs().amax((0, 2)), value.abs().amax((0, 2))))
        self._ours.store_kv(key, value, key_cache, value_cache, slot_mapping, scales=scales)

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
        return self._ours.attend(query, key_cache, value_cache, metadata, scale, window=window, scales=scales)


def find_scales(model: Transformer) -> list[KVScales]:
    """Scales of each layer, on the model's device. Raises: ValueError naming a layer that gives no finite numbers."""
    tokens = min(PROMPT_TOKENS, model.config.max_context_tokens)
    blocks, device = blocks_for(tokens, _BLOCK), model.device
    ids = torch.randint(model.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0)).to(device)
    metadata = build_metadata([BatchRow(range(blocks), tokens, tokens)], _BLOCK, device=device)
    watched, places = _Watched(), torch.arange(tokens, device=device)
    with on_device(device):
        model.forward(ids, places, shared_cache(model, blocks, _BLOCK), metadata, watched, places[-1:])
    found = []
    for layer, largest in enumerate(watched.largest):
        if not all(bool(most.isfinite().all()) for most in largest):
            raise ValueError(f"layer {layer} gives keys or values that are no numbers: there is no scale for them")
        found.append(KVScales(*(scale_for(most) for most in largest)))
    return found


def scale_for(largest: Tensor) -> Tensor:
    """The smallest powers of two, float32, with which ROOM times `largest` [heads] is within the format; 1 for 0."""
    mantissa, exponent = torch.frexp(largest.float().cpu() * (ROOM / LARGEST))
    # mantissa is below 1 and at least 1/2: 1/2 * 2^e is a power of two itself.
    power = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.ldexp(torch.ones(len(power)), torch.where(mantissa == 0.0, 0, power)).to(largest.device)
