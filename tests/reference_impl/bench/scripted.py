"""An engine and a clock that do what a test says: latencies can then be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from reference_impl.engine.engine import RequestRefused
from reference_impl.engine.outputs import FinishReason, Piece
from reference_impl.model.sampling import Sampled, SamplingParams

START_S = 128.0


class Time:
    """A clock that stands still until somebody sleeps or a step is run. Exact for seconds in 64ths."""

    def __init__(self) -> None:
        self.now_s = START_S
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class OneAtATime:
    """Every step takes `step_s` and makes one token for the oldest request; `most` may wait behind it."""

    def __init__(self, time: Time, most: int = 10, step_s: float = 1.0) -> None:
        self._time = time
        self._step_s = step_s
        self._most = most
        self._left: dict[int, int] = {}
        self.added: list[tuple[float, int]] = []
        self.scheduler: Any = SimpleNamespace(counters=SimpleNamespace(preemptions=7))

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    @property
    def num_waiting(self) -> int:
        return max(0, len(self._left) - 1)

    @property
    def last_step(self) -> Any:
        return SimpleNamespace(requests=1)

    def add(self, prompt: Sequence[int], params: SamplingParams, *, salt: str = "") -> int:
        if len(self._left) > self._most:
            raise RequestRefused("busy", "too many")
        self.added.append((self._time.now_s - START_S, len(prompt)))
        self._left[len(self.added)] = params.max_tokens
        return len(self.added)

    def step(self) -> list[Piece]:
        self._time.now_s += self._step_s
        self.scheduler.counters.preemptions += 1
        request = min(self._left)
        self._left[request] -= 1
        done = not self._left[request]
        if done:
            del self._left[request]
        return [Piece(request, 0, "x", (Sampled(1),), FinishReason.LENGTH if done else None)]
