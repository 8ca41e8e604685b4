"""A model made of random numbers, in milliseconds, from no file: for tests, and to try the engine without a download.

Owns: its sizes and its numbers. Knows nothing of training: what it says is noise, but the same noise every time.
The numbers are as large as keeps each layer's share comparable to the embedding's, so that logits depend on the whole
context, spread by some units, and hardly ever tie.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reference_impl.model.config import ModelConfig
from reference_impl.model.transformer import Transformer

_GAIN = 1.5


def tiny_config(**changes: Any) -> ModelConfig:
    """The tiny model's configuration, with `changes` of any field of `ModelConfig`. 258 tokens: bytes, BOS and EOS."""
    sizes: dict[str, Any] = {
        "architecture": "llama",
        "vocab_size": 258,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_context_tokens": 2_048,
    }
    return ModelConfig(**{**sizes, **changes})


class RandomCheckpoint:
    """A `Checkpoint` of any configuration. The same seed gives the same numbers, whatever else the model has."""

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        self.config = config
        self.seed = seed
        self._shapes = {name: tuple(weight.shape) for name, weight in Transformer(config, device="meta").weights()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def where(self, name: str) -> str:
        return f"random weights, seed {self.seed}: tensor {name!r}"

    def read(self, name: str) -> Tensor:
        shape = self._shapes[name]
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        numbers = torch.randn(shape, generator=generator)
        if "norm" in name:
            return 1.0 + 0.1 * numbers
        if "embed_tokens" in name or len(shape) == 1:
            return numbers
        # What comes in has variance 1, a sum of so many terms gets it back.
        return numbers.mul_(_GAIN * shape[1] ** -0.5)
