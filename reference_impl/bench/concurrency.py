"""How many requests one budget of KV bytes holds at once: paged, beside the longest length reserved for each.

Owns: the setting and the count. Knows nothing of how memory is kept. The same engine serves both, with the built-in
model: how many fit is a question of memory, and the model's size only sets the scale of the bytes (`budget.py` asks
what it means in tokens a second).
All requests are there from the beginning, so that memory is the only limit; steps count as long as somebody waits.
Source: Kwon et al., SOSP 2023, section 6.2 and figure 13 (30.42 requests at once with paging, 7.00 with the longest
length reserved, for OPT-13B on ShareGPT).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from reference_impl.bench.open_loop import Clock, OpenLoop, at_once
from reference_impl.bench.workload_lengths import Pair, asks, fitting
from reference_impl.engine.build import build_engine
from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Ask
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import load_model

KV_TOKENS, MAX_LENGTH, MAX_PROMPT = 16_384, 2_048, 500
"""Room for eight requests of the longest length. The prompts at hand are longer than the paper's, hence the bound."""
ALLOCATORS = ("contiguous", "paged")
_LOOK_EVERY = 8
"""Steps between two looks at the memory, each of which costs as much as a small step plans."""


@dataclass(frozen=True)
class Concurrency:
    """One way to keep KV memory. mean and peak of the requests that run, over the steps in which one had to wait."""

    allocator: str
    requests: int
    kv_bytes: int
    steps: int
    mean_running: float
    peak_running: int
    preemptions: int


@dataclass
class Crowd:
    """What was seen of a run. seconds, steps and tokens: of all of it.

    waited_s, running, made: of each step after which somebody still waited, its seconds, its requests and the tokens
    that it made. held: share of the memory that held tokens, now and then in such steps.
    """

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    refused: int = 0
    waited_s: list[float] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    held: list[float] = field(default_factory=list)

    @property
    def mean_running(self) -> float:
        """Over time: a step counts for as long as it took."""
        seconds = sum(self.waited_s)
        return sum(s * n for s, n in zip(self.waited_s, self.running, strict=True)) / seconds if seconds else 0.0


def conversations(requests: int) -> list[Pair]:
    """(prompt, output) tokens of the first ShareGPT requests that fit. Raises: ValueError if there are too few."""
    return list(fitting("sharegpt_8k", requests, MAX_PROMPT, MAX_LENGTH).pairs)


def crowd(engine: Engine, requests: Sequence[Ask], what: str, clock: Clock = time.perf_counter) -> Crowd:
    """Serve `requests`, all there at the start. Only steps are timed, not what is looked at between them.

    Raises: ValueError, naming `what` was to be filled, if nobody ever had to wait.
    """
    seen = Crowd()
    loop = OpenLoop(engine, at_once(requests), clock=clock)
    for step in loop.steps():
        made = sum(len(piece.tokens) for piece in step.pieces)
        seen.seconds += step.seconds
        seen.steps += 1
        seen.tokens += made
        if engine.num_waiting:
            if len(seen.running) % _LOOK_EVERY == 0:
                account = engine.scheduler.memory.account()
                seen.held.append(account.held / account.capacity)
            seen.waited_s.append(step.seconds)
            seen.running.append(engine.last_step.requests)
            seen.made.append(made)
    if not seen.running:
        raise ValueError(f"{len(requests)} requests all fit at once under {what}: more are needed to fill the memory")
    seen.refused = loop.refused.total()
    return seen


def hold(allocator: str, lengths: Sequence[Pair], kv_tokens: int = KV_TOKENS) -> Concurrency:
    """Serve (prompt, output) requests and count who runs. Raises: ValueError if they never fill the memory.

    Cost: a few milliseconds a step, thousands of steps where few requests run at once.
    """
    loaded = load_model("tiny")
    kv_bytes = kv_tokens * loaded.config.kv_bytes_per_token(4)
    built = build_engine(
        EngineSettings(
            model="tiny",
            block_allocator=allocator,
            prefix_cache="none",
            kv_memory_bytes=kv_bytes,
            max_context_tokens=MAX_LENGTH,
            max_running=256,
            max_tokens_per_step=2_048,
        ),
        loaded=loaded,
    )
    seen = crowd(built.engine, asks(lengths, 256, seed=0), allocator)
    return Concurrency(
        allocator=allocator,
        requests=len(lengths),
        kv_bytes=built.profile.kv_bytes,
        steps=len(seen.running),
        mean_running=fmean(seen.running),
        peak_running=max(seen.running),
        preemptions=built.engine.scheduler.counters.preemptions,
    )
