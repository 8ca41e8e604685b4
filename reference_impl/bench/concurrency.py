"""How many requests one budget of KV bytes holds at once: paged, beside the longest length reserved for each.

Owns: the setting and the count. Knows nothing of how memory is kept. The same engine serves both, with the built-in
model: how many fit is a question of memory, and the model's size only sets the scale of the bytes.
All requests are there from the beginning, so that memory is the only limit; steps count as long as somebody waits.
Source: Kwon et al., SOSP 2023, section 6.2 and figure 13 (30.42 requests at once with paging, 7.00 with the longest
length reserved, for OPT-13B on ShareGPT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from labkit.workloads import workload
from reference_impl.engine.build import build_engine
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import load_model
from reference_impl.model.sampling import SamplingParams

KV_TOKENS, MAX_LENGTH, MAX_PROMPT = 16_384, 2_048, 500
"""Room for eight requests of the longest length. The prompts at hand are longer than the paper's, hence the bound."""
ALLOCATORS = ("contiguous", "paged")


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


def conversations(requests: int) -> list[tuple[int, int]]:
    """(prompt, output) tokens of the first ShareGPT requests that fit. Raises: ValueError if there are too few."""
    source = workload("sharegpt_8k")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    fitting = [
        (prompt, new) for prompt, new in pairs if prompt <= MAX_PROMPT and new >= 1 and prompt + new <= MAX_LENGTH
    ]
    if not 1 <= requests <= len(fitting):
        raise ValueError(f"requests must be 1 to {len(fitting)}, got {requests}")
    return fitting[:requests]


def hold(allocator: str, lengths: Sequence[tuple[int, int]], kv_tokens: int = KV_TOKENS) -> Concurrency:
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
    engine, draw = built.engine, torch.Generator().manual_seed(0)
    for prompt, new in lengths:
        ids = torch.randint(0, 256, (prompt,), generator=draw).tolist()
        engine.add(ids, SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True))
    running: list[int] = []
    while engine.has_work:
        engine.step()
        if engine.num_waiting:
            running.append(engine.last_step.requests)
    if not running:
        raise ValueError(
            f"{len(lengths)} requests all fit at once under {allocator}: more are needed to fill the memory"
        )
    return Concurrency(
        allocator=allocator,
        requests=len(lengths),
        kv_bytes=built.profile.kv_bytes,
        steps=len(running),
        mean_running=sum(running) / len(running),
        peak_running=max(running),
        preemptions=engine.scheduler.counters.preemptions,
    )
