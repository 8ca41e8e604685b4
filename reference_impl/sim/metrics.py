"""What clients and operators see of a run: latencies, throughput, goodput, memory over time.

Owns: the definitions, and the counters while a run lasts. Knows nothing of how a step is planned or priced.

    queue time           from arrival to the first step that computes for the request
    TTFT                 from arrival to the end of the step that made its first token
    ITL                  between the ends of the steps that made two neighbouring tokens of one request
    TPOT                 (end to end - TTFT) / (tokens made - 1); none for one token, which meets any target
    end to end           from arrival to the end of the step that made its last token
    normalised latency   end to end / tokens made (Kwon et al., SOSP 2023, section 6.1)
    goodput              requests a second whose TTFT and TPOT both meet their targets (Zhong et al., OSDI 2024)

Distributions are histograms (`histogram.py`): means and maxima are exact, quantiles within 1 %.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from reference_impl.memory.accounting import Account
from reference_impl.sim.histogram import Histogram
from reference_impl.sim.series import Series
from reference_impl.sim.work import StepWork

LATENCIES = ("queue_s", "ttft_s", "tpot_s", "itl_s", "e2e_s", "normalised_s")
SHARES = ("held", "reserved", "internal", "tail", "external", "free")
"""Columns of `Account`."""
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Targets:
    """Latencies in seconds that a request must not exceed to count as good; None asks nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        """Raises: ValueError on a target that is not above 0."""
        for name, target in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s)):
            if target is not None and not target > 0:
                raise ValueError(f"the target {name} must be above 0, got {target}")

    def met_by(self, ttft_s: float, tpot_s: float) -> bool:
        """Whether neither is above its target."""
        return (self.ttft_s is None or ttft_s <= self.ttft_s) and (self.tpot_s is None or tpot_s <= self.tpot_s)


@dataclass
class Metrics:
    """Everything counted in one run; the simulator adds to it, `summary()` reads it."""

    targets: Targets = field(default_factory=Targets)
    latencies: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in LATENCIES})
    memory: Series = field(default_factory=lambda: Series((*SHARES, "running", "waiting")))
    refused: Counter[str] = field(default_factory=Counter)
    first_refused: str = ""
    """The first request that was refused at the door, and why."""
    work: StepWork = field(default_factory=lambda: StepWork(steps=0))
    busy_s: float = 0.0
    completed: int = 0
    good: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    reused_tokens: int = 0
    preemptions: int = 0
    swaps: int = 0
    recomputed_tokens: int = 0
    most_running: int = 0

    def hold(self, account: Account, running: int, waiting: int, seconds: float) -> None:
        """For `seconds` memory is used as `account` says."""
        total = account.capacity
        shares = [
            account.held / total,
            account.reserved / total,
            account.internal / total,
            account.tail / total,
            account.external / total,
            account.free / total,
        ]
        self.memory.hold((*shares, running, waiting), seconds)

    def complete(self, queue_s: float, ttft_s: float, e2e_s: float, tokens: int) -> None:
        """One request is done, `tokens` made."""
        tpot_s = (e2e_s - ttft_s) / (tokens - 1) if tokens > 1 else 0.0
        latencies = self.latencies
        latencies["queue_s"].add(queue_s)
        latencies["ttft_s"].add(ttft_s)
        if tokens > 1:
            latencies["tpot_s"].add(max(tpot_s, 0.0))
        latencies["e2e_s"].add(e2e_s)
        latencies["normalised_s"].add(e2e_s / tokens)
        self.completed += 1
        self.output_tokens += tokens
        if self.targets.met_by(ttft_s, tpot_s):
            self.good += 1

    @property
    def duration_s(self) -> float:
        """From the first arrival to the end of the last step."""
        return self.memory.duration_s

    @property
    def kv_use(self) -> float:
        """Share of the KV memory, in the mean over time, that some request has been given, used or not."""
        means = self.memory.means()
        return sum(means[column] for column in ("held", "reserved", "internal", "tail"))

    def summary(self) -> dict[str, object]:
        """All figures as plain data; a distribution of nothing is None."""
        seconds = self.duration_s
        return {
            "duration_s": seconds,
            "busy_s": self.busy_s,
            "steps": self.work.steps,
            "completed": self.completed,
            "refused": dict(self.refused),
            "first_refused": self.first_refused,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "requests_per_s": _rate(self.completed, seconds),
            "output_tokens_per_s": _rate(self.output_tokens, seconds),
            "goodput_per_s": _rate(self.good, seconds),
            "good_share": self.good / self.completed if self.completed else 0.0,
            "hit_rate": self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0,
            "preemptions": self.preemptions,
            "swaps": self.swaps,
            "recomputed_tokens": self.recomputed_tokens,
            "most_running": self.most_running,
            "latency": {name: described(histogram) for name, histogram in self.latencies.items()},
            "kv_use": self.kv_use,
            "mean_over_time": self.memory.means(),
        }


def described(histogram: Histogram) -> dict[str, float] | None:
    """Mean, quantiles and maximum of a distribution; None if nothing was counted."""
    if not histogram.count:
        return None
    quantiles = {name: histogram.quantile(share) for name, share in QUANTILES.items()}
    return {"mean": histogram.mean, **quantiles, "max": histogram.maximum}


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0
