"""What a served engine tells of itself, in Prometheus' text format and under the field's names.

Owns: the counters, the histograms and their buckets. Knows nothing of HTTP. Names and meanings are those of vLLM's v1
metrics, so that dashboards made for it work here; `engine:requests_refused` has no counterpart there. Times and tokens
come from what the engine says (`Observer` of `async_engine.py`); what only the scheduler knows is a `Snapshot`, taken
when somebody asks. A registry of its own: two servers in one process do not mix. Runs on one event loop.
Cost: O(1) a token, about a microsecond each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from reference_impl.engine.engine import Engine, StepReport
from reference_impl.engine.outputs import Piece

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LONG_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_FIRST_S = (0.005, 0.01, 0.025, *_LONG_S)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TOKENS = tuple(float(2**power) for power in range(0, 18))


@dataclass(frozen=True)
class Snapshot:
    """What the scheduler and its memory say at one moment; take it in the engine's thread."""

    running: int
    waiting: int
    waiting_by_reason: dict[str, int]
    kv_usage: float
    preemptions: int

    @classmethod
    def of(cls, engine: Engine) -> Snapshot:
        """Cost: that of `KVMemory.account`."""
        scheduler = engine.scheduler
        account = scheduler.memory.account()
        return cls(
            running=engine.num_running,
            waiting=engine.num_waiting,
            waiting_by_reason=scheduler.num_waiting_by_reason(),
            kv_usage=1 - (account.free + account.external) / account.capacity,
            preemptions=scheduler.counters.preemptions,
        )


@dataclass
class _Trip:
    """One request that is not answered yet.

    first_s, last_s, made: choice -> when its first and its newest token came, and how many.
    """

    arrival_s: float
    prompt_tokens: int
    first_s: dict[int, float] = field(default_factory=dict)
    last_s: dict[int, float] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)


class Metrics:
    """See the module. Every metric has the label `model_name`."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._trips: dict[int, _Trip] = {}
        self._preemptions_seen = 0
        self._reasons_seen: set[str] = set()

        self._running = self._gauge("num_requests_running", "Requests in memory that a step may hold.")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait to be admitted.")
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Share of the KV memory that requests keep, 0 to 1.")
        self._by_reason = Gauge(
            "vllm:num_requests_waiting_by_reason",
            "Requests that did not run in the last step, by why not.",
            ("model_name", "reason"),
            registry=self._registry,
        )
        self._preemptions = self._counter("num_preemptions", "Times a request lost its memory to another.")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that are computed.")
        self._cached_tokens = self._counter("prompt_tokens_cached", "Those found in the prefix cache.")
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens found there.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens made.")
        self._finished = self._labelled_counter("vllm:request_success", "Answers that ended.", "finished_reason")
        self._refused = self._labelled_counter(
            "engine:requests_refused", "Calls that could be read and were not taken.", "kind"
        )
        self._ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _FIRST_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Between two tokens of one answer.", _BETWEEN_S)
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of one answer.", _BETWEEN_S
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the end of an answer.", _LONG_S)
        self._prompts = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._made = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens computed in one step.", _TOKENS)

    def _gauge(self, name: str, text: str) -> Gauge:
        made = Gauge(f"vllm:{name}", text, ("model_name",), registry=self._registry)
        return made.labels(self._model_name)

    def _counter(self, name: str, text: str) -> Counter:
        made = Counter(f"vllm:{name}", text, ("model_name",), registry=self._registry)
        return made.labels(self._model_name)

    def _labelled_counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(name, text, ("model_name", label), registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(f"vllm:{name}", text, ("model_name",), buckets=tuple(buckets), registry=self._registry)
        return made.labels(self._model_name)

    # What the engine says ---------------------------------------------------------------------------------------

    def admitted(self, request: int, prompt_tokens: int, arrival_s: float) -> None:
        self._trips[request] = _Trip(arrival_s, prompt_tokens)
        self._prompts.observe(prompt_tokens)

    def refused(self, kind: str) -> None:
        """A call was not taken, before or by the engine."""
        self._refused.labels(self._model_name, kind).inc()

    def stepped(self, pieces: Sequence[Piece], report: StepReport, now_s: float) -> None:
        if report.requests:
            self._step_tokens.observe(report.prefill_tokens + report.decode_tokens)
        for piece in pieces:
            trip = self._trips.get(piece.request)
            if trip is None:
                continue
            if piece.tokens:
                self._count_tokens(trip, piece, now_s)
            if piece.finish is not None:
                self._count_end(trip, piece, now_s)
            if piece.usage is not None:
                self._queries.inc(piece.usage.looked_up_tokens)
                self._hits.inc(piece.usage.cached_tokens)
                if trip.first_s:
                    # A share of the prompts that are counted: of one that was never computed to its end, neither is.
                    self._cached_tokens.inc(piece.usage.cached_tokens)
                del self._trips[piece.request]

    def _count_tokens(self, trip: _Trip, piece: Piece, now_s: float) -> None:
        self._generation_tokens.inc(len(piece.tokens))
        if not trip.first_s:
            self._ttft.observe(now_s - trip.arrival_s)
            self._prompt_tokens.inc(trip.prompt_tokens)
        if piece.choice in trip.last_s:
            self._itl.observe(now_s - trip.last_s[piece.choice])
        trip.first_s.setdefault(piece.choice, now_s)
        trip.last_s[piece.choice] = now_s
        trip.made[piece.choice] = trip.made.get(piece.choice, 0) + len(piece.tokens)

    def _count_end(self, trip: _Trip, piece: Piece, now_s: float) -> None:
        assert piece.finish is not None
        self._finished.labels(self._model_name, piece.finish.value).inc()
        self._e2e.observe(now_s - trip.arrival_s)
        made = trip.made.get(piece.choice, 0)
        self._made.observe(made)
        if made > 1:
            # From its own first token: answers to one prompt may come one after the other.
            self._tpot.observe((trip.last_s[piece.choice] - trip.first_s[piece.choice]) / (made - 1))

    # What is asked ----------------------------------------------------------------------------------------------

    def render(self, now: Snapshot) -> bytes:
        """All metrics as text. Cost: O(metrics)."""
        self._running.set(now.running)
        self._waiting.set(now.waiting)
        self._kv_usage.set(now.kv_usage)
        # A reason that was there and is not any more must fall to 0, not disappear.
        self._reasons_seen |= now.waiting_by_reason.keys()
        for reason in self._reasons_seen:
            self._by_reason.labels(self._model_name, reason).set(now.waiting_by_reason.get(reason, 0))
        self._preemptions.inc(now.preemptions - self._preemptions_seen)
        self._preemptions_seen = now.preemptions
        return generate_latest(self._registry)

    def check_invariants(self) -> None:
        """AssertionError names the offender."""
        for request, trip in self._trips.items():
            assert trip.made.keys() == trip.first_s.keys() == trip.last_s.keys(), (
                f"request {request}: tokens without a time, or the reverse"
            )
