"""The loop between clients that do not wait for one another and an engine: what has come is added, then a step is run.

Owns: when a request is added, and when each step began and ended. Knows nothing of what is made of these times
(`serve.py`, `concurrency.py`). Clients are an open loop: a request comes at its time whether or not the engine keeps
up, and its latency counts from then, not from when the loop came round to it.
There is no server between: a step of the engine is what is measured, not its transport.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from reference_impl.bench.workload_lengths import Pair, asks
from reference_impl.engine.engine import Engine, RequestRefused
from reference_impl.engine.generate import Ask, generate
from reference_impl.engine.outputs import Piece

Clock = Callable[[], float]
_WARM_UP_TOKENS = 8
_WARM_UP_SEED = 2**31
"""Far from the seeds of what is measured, so that nothing of it is found in a prefix cache."""


@dataclass(frozen=True)
class Coming:
    """A request that comes `arrival_s` seconds after the start."""

    arrival_s: float
    ask: Ask


@dataclass(frozen=True)
class Step:
    """One step of the engine, in seconds after the start, and what it added to the answers."""

    started_s: float
    ended_s: float
    pieces: Sequence[Piece]

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s


class OpenLoop:
    """`requests`, in order of arrival, for an idle `engine`.

    arrivals: the engine's name for a request -> when it came. refused: kind of refusal -> how many.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Iterable[Coming],
        *,
        clock: Clock = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises: ValueError if a request comes before the one in front of it."""
        self.arrivals: dict[int, float] = {}
        self.refused: Counter[str] = Counter()
        self._coming = deque(requests)
        times = [request.arrival_s for request in self._coming]
        if times != sorted(times):
            raise ValueError("requests must be given in order of arrival")
        self._engine = engine
        self._clock = clock
        self._sleep = sleep

    def steps(self) -> Iterator[Step]:
        """Run the engine until everybody is answered. Once only: what came is gone."""
        engine, clock = self._engine, self._clock
        start_s = clock()
        while self._coming or engine.has_work:
            self._add(clock() - start_s)
            if engine.has_work:
                started_s = clock() - start_s
                pieces = engine.step()
                yield Step(started_s, clock() - start_s, pieces)
            elif self._coming:
                self._sleep(max(0.0, self._coming[0].arrival_s - (clock() - start_s)))

    def _add(self, now_s: float) -> None:
        while self._coming and self._coming[0].arrival_s <= now_s:
            request = self._coming.popleft()
            try:
                name = self._engine.add(request.ask.prompt, request.ask.params, salt=request.ask.salt)
            except RequestRefused as refusal:
                self.refused[refusal.kind] += 1
            else:
                self.arrivals[name] = request.arrival_s

    def check_invariants(self) -> None:
        """AssertionError if what is still to come is out of order."""
        times = [request.arrival_s for request in self._coming]
        assert times == sorted(times), "requests are to come in another order than they arrive"


def at_once(requests: Iterable[Ask]) -> list[Coming]:
    """All of them at the start."""
    return [Coming(0.0, ask) for ask in requests]


def warm_up(engine: Engine, pairs: Sequence[Pair], requests: int = 64) -> None:
    """Serve the first few prompts for some tokens, so that what is compiled or captured once is not timed."""
    short = [(prompt, min(new, _WARM_UP_TOKENS)) for prompt, new in pairs[:requests]]
    generate(engine, asks(short, engine.loaded.config.vocab_size, _WARM_UP_SEED))
