"""What a static, padded batch costs, and what its requests needed: slots, FLOPs and bytes, three ledgers.

Owns: the arithmetic. Knows nothing of time: bytes and FLOPs become seconds only on a device.
A static batch is a rectangle twice over. Prompts are padded to the longest, then every row decodes until the longest
answer is done, and rows that finished earlier keep their place. The last token of an answer is returned and never read
back, so it is never run and never written to the cache: a row of `p` prompt and `o` output tokens has `p + o - 1` slots
in all three ledgers. Left out on both sides of every comparison: embedding, output projection, norms, activations; each
is small beside what is counted, and per token like the linear layers.
Source: Kwon et al., SOSP 2023, section 3.1 (what is wasted); the FLOP count is the usual 2 per multiply and add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-like decoder that its cost depends on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers, in bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes

    @property
    def linear_weights(self) -> int:
        """Weights of all linear layers: query, output, key, value, and the three of the gated MLP."""
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def linear_flops(self, tokens: int) -> int:
        """FLOPs of the linear layers for `tokens` tokens."""
        return 2 * self.linear_weights * tokens

    def attention_flops(self, pairs: int) -> int:
        """FLOPs of scores and weighted sums for `pairs` (query, key) pairs in all layers."""
        return 4 * self.layers * self.heads * self.head_dim * pairs


@dataclass(frozen=True)
class Account:
    """Spent and needed: cache slots, FLOPs of prefill and decode together, and bytes read while decoding."""

    slots: int
    slots_needed: int
    flops: int
    flops_needed: int
    bytes_read: int
    bytes_needed: int

    @property
    def slots_lost(self) -> float:
        """Share of the slots that never held a needed token."""
        return 1 - self.slots_needed / self.slots

    @property
    def flops_lost(self) -> float:
        """Share of the FLOPs that no answer needed."""
        return 1 - self.flops_needed / self.flops

    @property
    def bytes_lost(self) -> float:
        """Share of the bytes read while decoding that no answer needed."""
        return 1 - self.bytes_needed / self.bytes_read

    def __add__(self, other: Account) -> Account:
        return Account(
            self.slots + other.slots,
            self.slots_needed + other.slots_needed,
            self.flops + other.flops,
            self.flops_needed + other.flops_needed,
            self.bytes_read + other.bytes_read,
            self.bytes_needed + other.bytes_needed,
        )


def static_batch(prompts: Sequence[int], outputs: Sequence[int], shape: ModelShape) -> Account:
    """The account of one batch whose rows have these prompt and output lengths, in tokens.

    The weights are read once a step whoever is alive, so they are needed as often as they are read. Bytes cover
    decoding only. Raises: ValueError on an empty batch, unequal counts, a prompt or output below 1. Cost: O(rows).
    """
    if not prompts or len(prompts) != len(outputs):
        raise ValueError(f"{len(prompts)} prompts and {len(outputs)} outputs: need as many of each, and at least one")
    if min(*prompts, *outputs) < 1:
        raise ValueError("every prompt and output must have at least 1 token")
    rows, width, longest = len(prompts), max(prompts), max(outputs)
    weights = (longest - 1) * shape.linear_weights * shape.dtype_bytes
    kv = shape.kv_bytes_per_token
    return Account(
        slots=rows * _row_slots(width, longest),
        slots_needed=sum(_row_slots(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)),
        flops=rows * _row_flops(width, longest, shape),
        flops_needed=sum(_row_flops(prompt, output, shape) for prompt, output in zip(prompts, outputs, strict=True)),
        bytes_read=weights + rows * kv * _keys_read(width, longest),
        bytes_needed=weights + kv * sum(_keys_read(p, o) for p, o in zip(prompts, outputs, strict=True)),
    )


def _row_slots(prompt: int, output: int) -> int:
    """Tokens of one row that pass through the model, each of which leaves its keys and values in a slot."""
    return prompt + output - 1


def _row_flops(prompt: int, output: int, shape: ModelShape) -> int:
    # The prefill gives the first output token; each further one is a step of one token.
    pairs = prompt * (prompt + 1) // 2 + _keys_read(prompt, output)
    return shape.linear_flops(_row_slots(prompt, output)) + shape.attention_flops(pairs)


def _keys_read(prompt: int, output: int) -> int:
    """Keys that the decode steps of one row look at: prompt + 1, prompt + 2, ..., prompt + output - 1."""
    steps = output - 1
    return steps * prompt + steps * (steps + 1) // 2
