"""How many requests a second each way of keeping KV sustains: the PagedAttention paper's main comparison, replayed.

Owns: the setting, the search for the highest rate, and the published ratios beside ours. Knows nothing of how memory is
kept (`memory/policies.py`, `memory/kv_manager.py`). One scheduler serves all rows (Orca's: whole prompts join the
running decodes), so that memory alone differs; but for padded rows, which come in batches that run until their last row
is done, as in FasterTransformer. A rate is sustained if the mean normalised latency, end to end over
tokens made, stays within a target; at a rate that is not, the queue grows for as long as requests come.
What is published of the setting: OPT-13B on an A100 of 40 GB with 12 GiB of KV, ShareGPT, sequences of at most 2,048
tokens, Poisson arrivals. What is assumed: the target, and prompts of at most 500 tokens, because those at hand are
longer than the paper's.
Source: Kwon et al., SOSP 2023, section 6.2 and figure 12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from labkit.workloads import workload
from reference_impl.sched.setup import Setup, build
from reference_impl.sim.arrivals import Arrival, poisson
from reference_impl.sim.cost import CostModel
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.report import aligned
from reference_impl.sim.simulator import Settings, simulate

KV_TOKENS, MAX_LENGTH, MAX_PROMPT = 15_728, 2_048, 500
TARGET_S = 0.25
"""Seconds a token: where the paper's curves leave the flat part."""
PRECISION = 0.03
"""A search ends when the highest sustained and the lowest failed rate are this close, as a share."""
PUBLISHED_GAIN: dict[str, str] = {
    "paged": "1",
    "oracle": "1.7 to 2.7",
    "pow2": "",
    "contiguous": "2.7 to 8",
    "padded": "up to 22",
}
"""Allocator -> how many times its rate paging sustained, over three model sizes."""

Sustains = Callable[[float], bool]


@dataclass(frozen=True)
class Row:
    """One allocator: the highest rate found, requests a second."""

    allocator: str
    rate_per_s: float


def highest(sustains: Sustains, first_per_s: float = 0.25, precision: float = PRECISION) -> float:
    """The highest rate that is sustained, within `precision`, by doubling and then halving the gap.

    Taken for granted: a rate below a sustained one is sustained. Raises: ValueError if none from `first_per_s` / 1,024
    to 1,024 times it is the limit: then nothing is sustained, or too few requests came to overload anything.
    Cost: about 10 trials.
    """
    low = first_per_s
    while not sustains(low):
        low /= 2
        if low < first_per_s / 1_024:
            raise ValueError(f"not even {low:g} requests a second are sustained")
    high = 2 * low
    while sustains(high):
        low, high = high, 2 * high
        if high > first_per_s * 1_024:
            raise ValueError(f"even {low:g} requests a second are sustained: too few requests to tell")
    while high - low > precision * low:
        middle = (low + high) / 2
        low, high = (middle, high) if sustains(middle) else (low, middle)
    return low


def comparison(
    requests: int = 1_000,
    target_s: float = TARGET_S,
    seed: int = 0,
    allocators: tuple[str, ...] = tuple(PUBLISHED_GAIN),
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """One row for each allocator, on the first `requests` short conversations. Raises: ValueError if there are none.

    Cost: `requests` times some ten trials a row; about half a minute a row at 1,000.
    """
    if not target_s > 0:
        raise ValueError(f"the target must be above 0 seconds a token, got {target_s}")
    lengths = conversations(requests)
    rows = []
    for allocator in allocators:
        rows.append(Row(allocator, highest(partial(sustains, allocator, lengths, target_s, seed))))
        if progress is not None:
            progress(f"{allocator}: {rows[-1].rate_per_s:.2f} requests a second")
    return rows


def conversations(requests: int) -> list[tuple[int, int]]:
    """(prompt, output) tokens of the first ShareGPT requests that the setting allows."""
    source = workload("sharegpt_8k")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    fitting = [
        (prompt, new) for prompt, new in pairs if prompt <= MAX_PROMPT and new >= 1 and prompt + new <= MAX_LENGTH
    ]
    if requests < 1 or not fitting:
        raise ValueError(f"requests must be at least 1, got {requests}, of {len(fitting)} that fit")
    return fitting[:requests]


def sustains(allocator: str, lengths: list[tuple[int, int]], target_s: float, seed: int, rate_per_s: float) -> bool:
    """Whether (prompt, output) requests at this rate are answered within the target. Cost: one simulation."""
    setup = Setup(allocator, "orca", KV_TOKENS, MAX_LENGTH)
    cost = CostModel(DEVICES["a100-40g"], MODELS["opt-13b"])
    arrivals = (Arrival(0.0, prompt, new, MAX_LENGTH - prompt) for prompt, new in lengths)
    metrics = simulate(poisson(arrivals, rate_per_s, seed), build(setup), cost, Settings(account_every=256))
    return metrics.latencies["normalised_s"].mean <= target_s


def report(rows: list[Row]) -> str:
    """The rows with paging's gain over each, the published one beside it."""
    (paged,) = (row.rate_per_s for row in rows if row.allocator == "paged")
    lines = [
        (row.allocator, f"{row.rate_per_s:.2f}", f"{paged / row.rate_per_s:.2f}", PUBLISHED_GAIN[row.allocator] or "-")
        for row in rows
    ]
    return aligned([("allocator", "requests/s", "paged gains", "published"), *lines])
