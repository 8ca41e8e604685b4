"""A decoder small enough to run thousands of times and sharp enough to see every mistake of a batch.

Positions are learned and absolute: with rotary ones a whole row could be shifted and nothing would show. A key that the
bias forbids is never read, neither its score nor its value, so NaN in a pad stays there if and only if the bias keeps
every real query away from it. Arithmetic is in float64, so that two orders of a sum agree to far more digits than a
mistake moves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VOCABULARY, MOST_POSITIONS = 13, 64
CLOSE = {"rtol": 0.0, "atol": 1e-9}
"""A wrong token, position or key moves a logit by 1e-3 or more."""


class TinyTransformer:
    """Two layers, two heads, random weights of a fixed seed."""

    def __init__(self, layers: int = 2, hidden: int = 8, heads: int = 2) -> None:
        rng = torch.Generator().manual_seed(3)

        def weights(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64) / math.sqrt(hidden)

        self.heads, self.head_dim = heads, hidden // heads
        self.tokens = weights(VOCABULARY, hidden) * 3
        self.positions = weights(MOST_POSITIONS, hidden) * 3
        self.layers = [
            {"qkv": weights(hidden, 3 * hidden), "out": weights(hidden, hidden), "mlp": weights(hidden, hidden)}
            for _ in range(layers)
        ]
        self.head = weights(hidden, VOCABULARY)

    def embed(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """(B, T) ids and positions to (B, T, D)."""
        return self.tokens[input_ids] + self.positions[position_ids]

    def logits(self, embedded: Tensor, bias: Tensor) -> Tensor:
        """(B, T, D) and an additive bias (B, 1, T, T) to (B, T, vocabulary)."""
        x = embedded
        for layer in self.layers:
            x = x + self._attention(x, bias, layer) @ layer["out"]
            x = x + torch.tanh(x @ layer["mlp"])
        return x @ self.head

    def __call__(self, input_ids: Tensor, position_ids: Tensor, bias: Tensor) -> Tensor:
        return self.logits(self.embed(input_ids, position_ids), bias)

    def alone(self, sequence: list[int]) -> Tensor:
        """(tokens, vocabulary): one sequence with no batch, built here and not by the code under test."""
        size = len(sequence)
        causal = torch.full((size, size), -torch.inf).triu(diagonal=1)[None, None]
        return self(torch.tensor([sequence], dtype=torch.int64), torch.arange(size)[None], causal)[0]

    def _attention(self, x: Tensor, bias: Tensor, layer: dict[str, Tensor]) -> Tensor:
        batch, width, hidden = x.shape
        # (3, B, H, T, d)
        q, k, v = (x @ layer["qkv"]).view(batch, width, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        scores = torch.where(bias == -torch.inf, bias.double(), scores + bias)
        share = scores.softmax(dim=-1)[..., None]  # (B, H, query, key, 1)
        read = torch.where(share == 0, 0.0, share * v[:, :, None])
        return read.sum(dim=3).transpose(1, 2).reshape(batch, width, hidden)
