"""What a batch costs, and what its requests needed of that: slots, FLOPs and bytes, three ledgers.

Owns: the arithmetic of a prefill, padded or packed, and of a static batch from the prompt to the last answer. Knows
nothing of time: bytes and FLOPs become seconds only on a device.
A static batch is a rectangle twice over. Prompts are padded to the longest, then every row decodes until the longest
answer is done, and rows that finished earlier keep their place. The last token of an answer is returned and never read
back, so it is never run and never written to the cache: a row of `p` prompt and `o` output tokens has `p + o - 1` slots
in all three ledgers. Left out on both sides of every comparison: embedding, output projection, norms, activations; each
is small beside what is counted, and per token like the linear layers. Attention is causal: a row of n tokens has
n(n+1)/2 pairs, which is what a fused kernel computes; one that forms the square and masks it computes up to twice that.
Invariant: in every ledger spent = needed + wasted, none of them negative.
Source: Kwon et al., SOSP 2023, section 3.1 (what is wasted); the FLOP count is the usual 2 per multiply and add.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import SupportsIndex

from reference_impl.padding.lengths import Lengths, checked_lengths, checked_size


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Llama-like decoder that its cost depends on.

    Raises: TypeError on one that is no integer, ValueError on one below 1; both name it.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            size = checked_size(field.name, getattr(self, field.name))
            # Frozen for everyone else. A NumPy integer would wrap around in a count of FLOPs.
            object.__setattr__(self, field.name, size)

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
    """Spent and needed: cache slots, FLOPs, and bytes of weights and cache that are read.

    A slot takes `ModelShape.kv_bytes_per_token` bytes of cache. `Account()` is nothing, so accounts can be summed.
    Raises: ValueError if a ledger needed more than it spent, or less than nothing.
    """

    slots: int = 0
    slots_needed: int = 0
    flops: int = 0
    flops_needed: int = 0
    bytes_read: int = 0
    bytes_needed: int = 0

    def __post_init__(self) -> None:
        ledgers = {
            "slots": (self.slots, self.slots_needed),
            "FLOPs": (self.flops, self.flops_needed),
            "bytes": (self.bytes_read, self.bytes_needed),
        }
        for name, (spent, needed) in ledgers.items():
            if not 0 <= needed <= spent:
                raise ValueError(f"{name}: {needed} needed of {spent} spent")

    @property
    def slots_wasted(self) -> int:
        """Slots that never held a needed token."""
        return self.slots - self.slots_needed

    @property
    def flops_wasted(self) -> int:
        """FLOPs that no answer needed."""
        return self.flops - self.flops_needed

    @property
    def bytes_wasted(self) -> int:
        """Bytes that were read and no answer needed."""
        return self.bytes_read - self.bytes_needed

    @property
    def slots_lost(self) -> float:
        """Share of the slots that never held a needed token; 0 of no slots."""
        return _lost(self.slots_needed, self.slots)

    @property
    def flops_lost(self) -> float:
        """Share of the FLOPs that no answer needed; 0 of no FLOPs."""
        return _lost(self.flops_needed, self.flops)

    @property
    def bytes_lost(self) -> float:
        """Share of the bytes read that no answer needed; 0 of no bytes."""
        return _lost(self.bytes_needed, self.bytes_read)

    def __add__(self, other: Account) -> Account:
        return Account(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


def padded_prefill(lengths: Lengths, shape: ModelShape, width: SupportsIndex | None = None) -> Account:
    """The account of one padded prefill: a row per length, `width` tokens wide (the longest if None).

    A wider rectangle is one rounded up to a multiple, or padded to the boundary of its bucket. Bytes: the weights once,
    needed as often as they are read, and the keys and values of each slot once, the least that attention can do.
    Raises: ValueError on no lengths, a length below 0, or a width below the longest. Cost: O(rows).
    """
    needed = _rows(lengths)
    longest = max(needed)
    columns = longest if width is None else operator.index(width)
    if columns < longest:
        raise ValueError(f"width must be at least the longest length, {longest}, got {columns}")
    return _prefill([columns] * len(needed), needed, shape)


def packed_prefill(lengths: Lengths, shape: ModelShape, width: SupportsIndex | None = None) -> Account:
    """The account of one packed prefill: the lengths end to end in a row of `width` tokens (their sum if None).

    Tokens attend inside their own sequence, as kernels for variable lengths compute it; what is left of the width runs
    as one more sequence, of pads. Bytes as in `padded_prefill`.
    Raises: ValueError on no lengths, a length below 0, or a width below their sum. Cost: O(rows).
    """
    needed = _rows(lengths)
    total = sum(needed)
    tail = 0 if width is None else operator.index(width) - total
    if tail < 0:
        raise ValueError(f"width must be at least the sum of the lengths, {total}, got {width}")
    return _prefill([*needed, tail], needed, shape)


def static_batch(prompts: Lengths, outputs: Lengths, shape: ModelShape) -> Account:
    """The account of one batch whose rows have these prompt and output lengths, in tokens.

    The weights are read once a step whoever is alive, so they are needed as often as they are read. Slots and FLOPs
    cover the prefill and decoding, bytes decoding only. Raises: ValueError on an empty batch, unequal counts, a prompt
    or output below 1. Cost: O(rows).
    """
    prompts, outputs = checked_lengths(prompts, "prompt"), checked_lengths(outputs, "output")
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


def _prefill(run: Sequence[int], needed: Sequence[int], shape: ModelShape) -> Account:
    """One prefill that runs sequences of these lengths, where those lengths were asked for."""
    weights = shape.linear_weights * shape.dtype_bytes
    return Account(
        slots=sum(run),
        slots_needed=sum(needed),
        flops=sum(_row_flops(tokens, 1, shape) for tokens in run),
        flops_needed=sum(_row_flops(tokens, 1, shape) for tokens in needed),
        bytes_read=weights + shape.kv_bytes_per_token * sum(run),
        bytes_needed=weights + shape.kv_bytes_per_token * sum(needed),
    )


def _rows(lengths: Lengths) -> list[int]:
    checked = checked_lengths(lengths)
    if not checked:
        raise ValueError("no lengths: a prefill has at least one row")
    return checked


def _lost(needed: int, spent: int) -> float:
    return 1 - needed / spent if spent else 0.0


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
