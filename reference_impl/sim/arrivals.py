"""Requests on their way to the scheduler, one after another.

Owns: what a simulated client asks for, when it comes, and how prompts of a trace are spelled. Knows nothing of memory
or time spent. Everything here is a generator: a million requests take no more room than one.
Prompts with prefix hashes are spelled only while a request lives: the 512 tokens of a block are its hash, 512 times, so
that prompts share exactly the blocks that the trace says they share. What a request makes gets an id of its own, so
answers are never found again; in the trace they come back inside later prompts under the hashes given there.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from labkit.workloads import HASHED_TOKENS, Workload

_FIRST_SAMPLED_ID = 2**30
"""Sampled ids lie above every hash of a trace, which counts its blocks from 0."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when it comes (seconds), how long its prompt and its answer are, and the most it may make."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    max_new_tokens: int
    prefix_hashes: Sequence[int] | None = None
    priority: int = 0
    tenant: str = ""


@dataclass(frozen=True)
class Limits:
    """What the clients of a workload may ask for: `max_length` tokens in all, `max_new_tokens` of them new."""

    max_length: int
    max_new_tokens: int


def limits_of(workload: Workload, requests: int | None = None) -> Limits:
    """The least limits that no request of the workload breaks."""
    prompts, outputs = workload.prompt_tokens[:requests], workload.output_tokens[:requests]
    return Limits(int((prompts + outputs).max()), max(1, int(outputs.max())))


def recorded(workload: Workload, limits: Limits, requests: int | None = None) -> Iterator[Arrival]:
    """The first `requests` of a workload, at their recorded times.

    A request above the limits keeps its lengths: it is for the scheduler to refuse.
    """
    count = len(workload) if requests is None else min(requests, len(workload))
    hashes = workload.prefix_hashes
    for place in range(count):
        prompt, output = int(workload.prompt_tokens[place]), int(workload.output_tokens[place])
        room = min(limits.max_new_tokens, limits.max_length - prompt)
        yield Arrival(
            float(workload.arrival_s[place]),
            prompt,
            output,
            max(room, output),
            None if hashes is None else hashes[place].tolist(),
        )


def faster(arrivals: Iterable[Arrival], factor: float) -> Iterator[Arrival]:
    """The same requests at `factor` times the rate. Raises: ValueError unless factor > 0 and finite."""
    if not 0 < factor < math.inf:
        raise ValueError(f"the rate factor must be above 0, got {factor}")
    for arrival in arrivals:
        yield replace(arrival, arrival_s=arrival.arrival_s / factor)


def poisson(arrivals: Iterable[Arrival], rate_per_s: float, seed: int) -> Iterator[Arrival]:
    """The same requests, with gaps drawn from an exponential distribution. Raises: ValueError unless rate > 0."""
    if not 0 < rate_per_s < math.inf:
        raise ValueError(f"the rate must be above 0 requests a second, got {rate_per_s}")
    rng = np.random.default_rng(seed)
    clock_s = 0.0
    for arrival in arrivals:
        clock_s += float(rng.exponential(1 / rate_per_s))
        yield replace(arrival, arrival_s=clock_s)


def synthetic(
    requests: int, prompt: tuple[int, int], output: tuple[int, int], rate_per_s: float, seed: int
) -> Iterator[Arrival]:
    """Uniform lengths from (least, most), Poisson arrivals. Raises: ValueError on a range below 1 or the wrong way."""
    for name, (least, most) in (("prompt", prompt), ("output", output)):
        if not 1 <= least <= most:
            raise ValueError(f"{name} tokens must range from at least 1 upwards, got {least} to {most}")
    rng = np.random.default_rng(seed)

    def lengths() -> Iterator[Arrival]:
        for first in range(0, requests, _DRAWN_AT_ONCE):
            count = min(_DRAWN_AT_ONCE, requests - first)
            prompts = rng.integers(prompt[0], prompt[1] + 1, count).tolist()
            outputs = rng.integers(output[0], output[1] + 1, count).tolist()
            for length, new in zip(prompts, outputs, strict=True):
                yield Arrival(0.0, length, new, output[1])

    return poisson(lengths(), rate_per_s, seed + 1)


_DRAWN_AT_ONCE = 4_096


def spelled(arrival: Arrival) -> array[int] | None:
    """The ids of the prompt's tokens; None where the trace has no hashes. Cost: O(prompt tokens), as one copy."""
    if arrival.prefix_hashes is None:
        return None
    tokens = array("i")
    for block in arrival.prefix_hashes:
        tokens.extend(array("i", (block,)) * HASHED_TOKENS)
    if len(tokens) < arrival.prompt_tokens:
        raise ValueError(
            f"{len(arrival.prefix_hashes)} prefix hashes spell {len(tokens)} tokens, "
            f"the prompt has {arrival.prompt_tokens}"
        )
    del tokens[arrival.prompt_tokens :]
    return tokens


def sampled_id(request: int) -> int:
    """The id of every token that this request makes; no two of a billion requests in a row share one."""
    return _FIRST_SAMPLED_ID + request % _FIRST_SAMPLED_ID
