"""`engine bench serve`: latency and throughput while requests come at given rates.

Owns: the figures of a client's view. Knows nothing of how requests are added (`open_loop.py`) or of any part of the
engine. Requests come as a Poisson process, each rate with the same lengths, the same gaps in proportion, and prompts of
its own, so that no rate finds another's in the prefix cache. Times are those of `sim/metrics.py`:

    TTFT         from arrival to the end of the step that made its first token
    ITL          between the ends of the steps that made two neighbouring tokens of one request
    TPOT         (end to end - TTFT) / (tokens made - 1); of answers of two tokens and more
    end to end   from arrival to the end of the step that made its last token
    good         answered, with TTFT and TPOT within the bounds; the share is of all that came, refused ones included

Source: Zhong et al., DistServe, OSDI 2024, for goodput.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from reference_impl.bench.machine import computed_by, describe
from reference_impl.bench.open_loop import Clock, Coming, OpenLoop, Step, warm_up
from reference_impl.bench.random_model import SHAPES, random_model
from reference_impl.bench.record import short
from reference_impl.bench.serve_record import LATENCIES, check_record, header, line
from reference_impl.bench.workload_lengths import Lengths, asks, clipped
from reference_impl.engine.build import Built, build_engine
from reference_impl.engine.engine import Engine
from reference_impl.engine.heap import frozen_heap
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import LoadedModel, load_model
from reference_impl.sim.arrivals import Arrival, poisson
from reference_impl.sim.metrics import Targets

BOUNDS = Targets(ttft_s=0.45, tpot_s=0.04)
"""What MLPerf Inference asks of an interactive chat with Llama 2 70B."""
TEMPERATURE = 0.6
_QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


@dataclass(frozen=True)
class Load:
    """What comes: the first `requests` of a workload, at each of `rates` requests a second."""

    rates: tuple[float, ...]
    requests: int
    workload: str = "azure_conv"
    seed: int = 0
    bounds: Targets = BOUNDS

    def __post_init__(self) -> None:
        """Raises: ValueError without a rate, or on one that is not above 0."""
        if not self.rates:
            raise ValueError("rates must name at least one number of requests a second")
        for rate in self.rates:
            if not 0 < rate < float("inf"):
                raise ValueError(f"rates must be above 0 requests a second, got {rate}")


def load_or_draw(model: str, dtype: str, device: str) -> tuple[LoadedModel, str]:
    """The model of this name, and "random" if it is a shape or "loaded" if it came from somewhere. Errors as theirs."""
    if model in SHAPES:
        return random_model(model, dtype, device), "random"
    return load_model(model, dtype=dtype, device=device), "loaded"


@dataclass
class Seen:
    """One rate, while it lasts: of each request that lives its arrival, first and last token and how many there are."""

    bounds: Targets
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    tpot_s: array[float] = field(default_factory=lambda: array("d"))
    itl_s: array[float] = field(default_factory=lambda: array("d"))
    e2e_s: array[float] = field(default_factory=lambda: array("d"))
    steps: int = 0
    ended_s: float = 0.0
    tokens: int = 0
    good: int = 0
    queue_s: float = 0.0
    """Requests that wait, times the seconds that they do."""
    queue_most: int = 0
    _first_s: dict[int, float] = field(default_factory=dict)
    _last_s: dict[int, float] = field(default_factory=dict)
    _made: dict[int, int] = field(default_factory=dict)

    def take(self, step: Step, waiting: int, arrivals: Mapping[int, float]) -> None:
        """One more step; `waiting`: who was left in the queue. Cost: O(pieces)."""
        self.steps += 1
        self.queue_s += waiting * step.seconds
        self.queue_most = max(self.queue_most, waiting)
        self.ended_s = now_s = step.ended_s
        for piece in step.pieces:
            request = piece.request
            for _ in piece.tokens:
                if request in self._last_s:
                    self.itl_s.append(now_s - self._last_s[request])
                else:
                    self._first_s[request] = now_s
                self._last_s[request] = now_s
                self._made[request] = self._made.get(request, 0) + 1
            if piece.finish is not None:
                self._finish(request, arrivals[request])

    def _finish(self, request: int, arrival_s: float) -> None:
        first_s, last_s, made = self._first_s.pop(request), self._last_s.pop(request), self._made.pop(request)
        ttft_s, tpot_s = first_s - arrival_s, (last_s - first_s) / max(1, made - 1)
        self.tokens += made
        self.ttft_s.append(ttft_s)
        self.e2e_s.append(last_s - arrival_s)
        if made > 1:
            self.tpot_s.append(tpot_s)
        self.good += self.bounds.met_by(ttft_s, tpot_s)

    def check_invariants(self) -> None:
        """AssertionError if a request is half known."""
        assert self._first_s.keys() == self._last_s.keys() == self._made.keys(), "a request is known by half"
        assert len(self.ttft_s) == len(self.e2e_s) >= max(self.good, len(self.tpot_s)), "answers are not counted alike"


def serve_rate(
    engine: Engine,
    coming: Sequence[Coming],
    rate_per_s: float,
    bounds: Targets,
    *,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Serve `coming` to the end: a row of the record."""
    seen, before = Seen(bounds), engine.scheduler.counters.preemptions
    loop = OpenLoop(engine, coming, clock=clock, sleep=sleep)
    for step in loop.steps():
        seen.take(step, engine.num_waiting, loop.arrivals)
    completed, seconds = len(seen.e2e_s), seen.ended_s

    def rate(count: float) -> float:
        return short(count / seconds) if seconds else 0.0

    return {
        "rate_per_s": float(rate_per_s),
        "requests": len(coming),
        "completed": completed,
        "refused": dict(loop.refused),
        "seconds": short(seconds),
        "steps": seen.steps,
        "requests_per_s": rate(completed),
        "output_tokens_per_s": rate(seen.tokens),
        "good_share": short(seen.good / len(coming)),
        "good_per_s": rate(seen.good),
        "queue_mean": rate(seen.queue_s),
        "queue_most": seen.queue_most,
        "preemptions": engine.scheduler.counters.preemptions - before,
        **{name: described(getattr(seen, name)) for name in LATENCIES},
    }


def described(values: Sequence[float]) -> dict[str, float] | None:
    """Quantiles, mean and maximum; None of nothing."""
    if not len(values):
        return None
    shares = np.quantile(np.asarray(values), list(_QUANTILES.values()), method="inverted_cdf").tolist()
    found = dict(zip(_QUANTILES, shares, strict=True)) | {"mean": float(np.mean(values)), "max": max(values)}
    return {name: short(value) for name, value in found.items()}


def measure(settings: EngineSettings, load: Load, commit: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The record of all rates, one after the other on one engine. Raises: ValueError on what does not go together.

    Cost: for each rate requests / rate seconds, and longer where the engine does not keep up.
    """
    loaded, weights = load_or_draw(settings.model, settings.dtype, settings.device)
    longest = settings.max_context_tokens or loaded.config.max_context_tokens
    lengths = clipped(load.workload, load.requests, longest)
    built = build_engine(settings, loaded=loaded)
    say(f"{loaded.name} ({weights} weights, {settings.dtype}), {built.profile.kv_tokens:,} tokens of KV")
    say(f"{len(lengths.pairs)} requests of {load.workload}: {lengths.output_tokens:,} tokens to make")
    warm_up(built.engine, lengths.pairs)
    say(header())
    rows = []
    with frozen_heap():
        for place, rate in enumerate(load.rates):
            rows.append(serve_rate(built.engine, _coming(loaded, lengths, rate, load.seed, place), rate, load.bounds))
            say(line(rows[-1]))
    record = {
        "suite": "serve",
        "date": date.today().isoformat(),
        "commit": commit,
        "clock": "perf_counter",
        "machine": describe(loaded.transformer.device),
        "model": {"name": loaded.name, "weights": weights, "dtype": settings.dtype},
        "engine": _engine(settings, built),
        "workload": _workload(lengths, load),
        "bounds": {"ttft_s": load.bounds.ttft_s, "tpot_s": load.bounds.tpot_s},
        "rates": rows,
    }
    check_record(record)
    return record


def _coming(loaded: LoadedModel, lengths: Lengths, rate: float, seed: int, place: int) -> list[Coming]:
    """The same gaps at every rate, in proportion, and prompts that no rate shares with another."""
    made = asks(lengths.pairs, loaded.config.vocab_size, seed + place, temperature=TEMPERATURE)
    times = poisson((Arrival(0.0, *pair, pair[1]) for pair in lengths.pairs), rate, seed)
    return [Coming(arrival.arrival_s, ask) for arrival, ask in zip(times, made, strict=True)]


def _engine(settings: EngineSettings, built: Built) -> dict[str, Any]:
    return {
        **computed_by(built.engine),
        "block_allocator": settings.block_allocator,
        # As `build_engine` chooses where nothing is asked for.
        "prefix_cache": settings.prefix_cache or ("hash" if settings.block_allocator == "paged" else "none"),
        "block_size": settings.block_size,
        "kv_tokens": built.profile.kv_tokens,
        "kv_bytes": built.profile.kv_bytes,
        "max_running": settings.max_running,
        "max_tokens_per_step": settings.max_tokens_per_step,
        "longest_tokens": built.profile.max_context_tokens,
        "max_waiting": settings.max_waiting or 0,
    }


def _workload(lengths: Lengths, load: Load) -> dict[str, Any]:
    return {
        "name": lengths.workload,
        "is_real": lengths.is_real,
        "requests": len(lengths.pairs),
        "cut": lengths.cut,
        "prompt_tokens": lengths.prompt_tokens,
        "output_tokens": lengths.output_tokens,
        "seed": load.seed,
        "temperature": TEMPERATURE,
    }
