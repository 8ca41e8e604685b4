"""Rotary position embedding: where a token stands, as a turn of its queries and keys.

Owns: the frequencies, the ways of stretching them to longer contexts, and the turn. Knows nothing of layers or caches:
keys are turned before they are stored, so a block can be shared only by sequences that have it at the same positions,
which a shared prefix does.

A head of size D has D/2 planes; plane i is spanned by components i and i + D/2. At position p it is turned by the angle
p * frequency[i]. The score of a query and a key then depends on how far apart they stand and not on where.
Cosines and sines are computed once a step for the batch's positions and shared by all layers: some 30 microseconds for
32 tokens, no table of the longest context, and no longest position.
Source: Su et al., RoFormer, 2021, section 3.2.2 (in the half-and-half order of Llama's published weights).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Scaling(Protocol):
    """A way to reach further than the model was first trained for."""

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        """The frequencies to use, from those without scaling, [head_dim / 2] float32."""

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by."""


@dataclass(frozen=True)
class LinearScaling:
    """All positions closer together: every frequency divided by `factor`. Source: Chen et al., 2023, section 2.3."""

    factor: float
    amplitude: float = 1.0

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow planes divided by `factor`, fast ones kept, those between blended.

    A plane is slow if it turns less than `low_freq_factor` times in the original context, fast if it turns more than
    `high_freq_factor` times. Source: the Llama 3.1 release; Dubey et al., 2024, section 3.4.2 on long contexts.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_tokens: int
    amplitude: float = 1.0

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        turns = self.original_context_tokens * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.factor, frequencies, kept.clamp(0, 1))


@dataclass(frozen=True)
class YarnScaling:
    """As `Llama3Scaling`, but the blend goes by the plane's number instead of its turns, and all scores get sharper.

    Source: Peng et al., YaRN, 2023, sections 3.2 and 3.4.
    """

    factor: float
    original_context_tokens: int
    beta_fast: float
    beta_slow: float
    amplitude: float

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        planes = frequencies.shape[0]
        first = max(math.floor(self._plane_with(self.beta_fast, planes, theta)), 0)
        last = min(math.ceil(self._plane_with(self.beta_slow, planes, theta)), 2 * planes - 1)
        divided = (torch.arange(planes, dtype=torch.float32) - first) / max(last - first, 0.001)
        return torch.lerp(frequencies, frequencies / self.factor, divided.clamp(0, 1))

    def _plane_with(self, turns: float, planes: int, theta: float) -> float:
        """Which plane makes so many turns in the original context; a fraction, perhaps none of the planes there are."""
        return planes * math.log(self.original_context_tokens / (turns * 2 * math.pi)) / math.log(theta)


@dataclass(frozen=True)
class DivisorScaling:
    """Each frequency divided by a number of its own: how GGUF files write what `Llama3Scaling` computes."""

    divisors: tuple[float, ...]
    amplitude: float = 1.0

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / torch.tensor(self.divisors)


@dataclass(frozen=True)
class Rope:
    """theta: the base of the frequencies; plane i of D/2 has theta ** (-2i / D)."""

    theta: float = 10_000.0
    scaling: Scaling | None = None

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians a position, [head_dim / 2] float32."""
        base = 1.0 / (self.theta ** (torch.arange(0, head_dim, 2).float() / head_dim))
        return base if self.scaling is None else self.scaling.scale(base, self.theta)


@dataclass(frozen=True)
class Turn:
    """Where a batch's tokens stand: cosines and sines of the angles, in the shapes that whoever turns wants."""

    cos: Tensor
    sin: Tensor


class Rotary:
    """A model's frequencies on its device."""

    def __init__(self, rope: Rope, head_dim: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self.frequencies = rope.frequencies(head_dim).to(device)
        self.amplitude = 1.0 if rope.scaling is None else rope.scaling.amplitude
        self.dtype = dtype

    def at(self, positions: Tensor) -> Turn:
        """The turns at `positions` [tokens], for `rotate`: cos [tokens, 1, head_dim], each value twice, and sin
        [tokens, 1, head_dim / 2]. Angles in float32 whatever the model's dtype: bfloat16 counts to 256.
        """
        angles = positions.float().unsqueeze(1) * self.frequencies
        cos = (angles.cos() * self.amplitude).to(self.dtype)
        sin = (angles.sin() * self.amplitude).to(self.dtype)
        return Turn(torch.cat((cos, cos), dim=1).unsqueeze(1), sin.unsqueeze(1))


def rotate(heads: Tensor, turn: Turn) -> Tensor:
    """Every head [tokens, heads, head_dim] turned by its token's position; a new tensor."""
    half = heads.shape[-1] // 2
    turned = heads * turn.cos
    # In place on the product, because each further pass over memory costs as much as the arithmetic.
    turned[..., :half].addcmul_(heads[..., half:], turn.sin, value=-1)
    turned[..., half:].addcmul_(heads[..., :half], turn.sin)
    return turned
