"""What the clients of a benchmark ask for: lengths from a trace, made to fit a model, and prompts of such lengths.

Owns: which requests of a trace are taken, and what their prompts hold. Knows nothing of arrivals, engines or clocks.
Contents are random, so that no two prompts share anything unless they were given one system prompt; that an answer is
as long as in the trace is a matter of `max_tokens`, as no model that is measured here ends by itself.
A trace that is not on this machine is replaced by its seeded sample, and the record says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labkit.workloads import workload
from reference_impl.engine.generate import Ask
from reference_impl.model.sampling import SamplingParams

Pair = tuple[int, int]
"""Tokens of a prompt, tokens of its answer."""


@dataclass(frozen=True)
class Lengths:
    """The requests of a benchmark. is_real: recorded, not sampled. cut: how many were longer in the trace."""

    workload: str
    is_real: bool
    pairs: tuple[Pair, ...]
    cut: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(prompt for prompt, _ in self.pairs)

    @property
    def output_tokens(self) -> int:
        """Of all answers."""
        return sum(new for _, new in self.pairs)


def fitting(name: str, requests: int, longest_prompt: int, longest: int) -> Lengths:
    """The first requests of a trace with prompts up to `longest_prompt`, and `longest` tokens with their answers.

    Raises: ValueError if there are too few, or on an unknown name.
    """
    trace, pairs = _read(name)
    found = [
        (prompt, new) for prompt, new in pairs if prompt <= longest_prompt and new >= 1 and prompt + new <= longest
    ]
    return Lengths(name, trace, tuple(_first(requests, found)))


def clipped(name: str, requests: int, longest: int) -> Lengths:
    """The first requests of a trace, cut to `longest` tokens: the answer to half of that, the prompt to what is left.

    Raises: ValueError if there are too few, on an unknown name, or if `longest` is below 2.
    """
    if longest < 2:
        raise ValueError(f"a prompt and an answer take at least 2 tokens, the longest request may have {longest}")
    trace, pairs = _read(name)
    cut: list[Pair] = []
    for prompt, new in _first(requests, pairs):
        shorter = min(max(new, 1), longest // 2)
        cut.append((min(prompt, longest - shorter), shorter))
    changed = sum(before != after for before, after in zip(pairs, cut, strict=False))
    return Lengths(name, trace, tuple(cut), changed)


def _read(name: str) -> tuple[bool, list[Pair]]:
    source = workload(name)
    return source.is_real, list(zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True))


def _first(requests: int, pairs: list[Pair]) -> list[Pair]:
    if not 1 <= requests <= len(pairs):
        raise ValueError(f"requests must be 1 to {len(pairs)}, got {requests}")
    return pairs[:requests]


@dataclass(frozen=True)
class SystemPrompts:
    """`count` texts of `tokens` tokens; each request begins with one of them, with at most half of its own prompt."""

    count: int
    tokens: int

    def shared(self, prompt: int) -> int:
        """Of so many tokens of a prompt, how many come from a system prompt."""
        return min(self.tokens, prompt // 2)


def asks(
    pairs: Sequence[Pair], vocab_size: int, seed: int, *, temperature: float = 0.0, system: SystemPrompts | None = None
) -> list[Ask]:
    """A request for each pair, with random tokens. Other seeds give other prompts, which share nothing with these."""
    dice = np.random.default_rng(seed)
    texts = dice.integers(0, vocab_size, (system.count, system.tokens)).tolist() if system is not None else []
    made = []
    for place, (prompt, new) in enumerate(pairs):
        ids = dice.integers(0, vocab_size, prompt).tolist()
        if system is not None:
            shared = system.shared(prompt)
            ids[:shared] = texts[place % system.count][:shared]
        # Seeded, because else every request would ask the system for a number.
        params = SamplingParams(max_tokens=new, temperature=temperature, seed=place, ignore_eos=True)
        made.append(Ask(ids, params))
    return made
