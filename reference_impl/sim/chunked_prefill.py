"""What a long prompt does to those who are decoding, whole and in chunks.

Owns: the setting, the published rows, and both beside each other. Knows nothing of how a prompt is cut
(`sched/scheduler.py`). Sixteen requests decode; then one long prompt comes. Computed whole, it holds every decode up
for as long as it takes. In chunks under one budget of tokens, each step carries all decodes and a piece of the prompt:
the longest gap between two tokens falls to that of one such step, and the prompt itself is done a little later.
Source: the README of a fork of nano-vllm with mixed batches: an RTX 4090, Qwen3-0.6B, 2,048 tokens a step. What is
assumed: the decodes have prompts of 128 tokens, and the long prompt comes when each has made some.
The idea: Agrawal et al. (Sarathi-Serve), OSDI 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reference_impl.sched.setup import Setup, build
from reference_impl.sim.arrivals import Arrival
from reference_impl.sim.cost import CostModel
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.metrics import Metrics
from reference_impl.sim.report import aligned
from reference_impl.sim.simulator import Settings, simulate

DECODES, DECODE_PROMPT, DECODE_OUTPUT = 16, 128, 1_024
BUDGET = 2_048
_COMES_AT_S = 0.2


@dataclass(frozen=True)
class Row:
    """One length of the long prompt: the longest gap between two tokens in ms, whole and in chunks, and how much later
    the prompt's own first token comes in chunks, as a share of its time whole."""

    prompt_tokens: int
    whole_ms: float
    chunked_ms: float
    later: float


PUBLISHED = (Row(4_096, 64, 40, 0.71), Row(8_192, 142, 41, 0.19), Row(16_384, 361, 66, 0.10))


def effect(prompt_tokens: int) -> Row:
    """The long prompt both ways. Raises: ValueError below one token. Cost: 16 k tokens, a tenth of a second."""
    whole, chunked = (_replay(prompt_tokens, scheduler) for scheduler in ("prefill-first", "continuous"))
    first_whole, first_chunked = (run.latencies["ttft_s"].maximum for run in (whole, chunked))
    gaps = [run.latencies["itl_s"].maximum * 1e3 for run in (whole, chunked)]
    return Row(prompt_tokens, gaps[0], gaps[1], first_chunked / first_whole - 1)


def _replay(prompt_tokens: int, scheduler: str) -> Metrics:
    cost = CostModel(DEVICES["rtx4090"], MODELS["qwen3-0.6b"])
    kv_tokens = cost.model.kv_tokens_on(cost.device)
    setup = Setup("paged", scheduler, kv_tokens, max_length=kv_tokens, max_tokens_per_step=BUDGET)
    return simulate(_requests(prompt_tokens), build(setup), cost, Settings(account_every=64))


def _requests(prompt_tokens: int) -> Iterator[Arrival]:
    for _ in range(DECODES):
        yield Arrival(0.0, DECODE_PROMPT, DECODE_OUTPUT, DECODE_OUTPUT)
    # One token is enough: only when it comes is asked.
    yield Arrival(_COMES_AT_S, prompt_tokens, 1, 1)


def report() -> str:
    """The published rows beside ours, and what differs."""
    rows = [("long prompt", "whole ms", "theirs", "chunks ms", "theirs", "prompt later", "theirs")]
    for theirs in PUBLISHED:
        ours = effect(theirs.prompt_tokens)
        rows.append(
            (
                f"{ours.prompt_tokens:,}",
                f"{ours.whole_ms:.0f}",
                f"{theirs.whole_ms:.0f}",
                f"{ours.chunked_ms:.0f}",
                f"{theirs.chunked_ms:.0f}",
                f"{ours.later:.0%}",
                f"{theirs.later:.0%}",
            )
        )
    return "\n".join([aligned(rows), _DIFFERENCES])


_DIFFERENCES = (
    "What agrees: whole, the stall grows faster than the prompt; in chunks it is that of one step. "
    "What differs: a chunk costs that engine more overhead than the model has, so that a short prompt loses less here "
    "by being cut. None of these figures was used to fit the model."
)
