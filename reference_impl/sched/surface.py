"""The surface that every scheduler of the engine has, and the limits and counters that belong to it.

Owns: the Protocol `EngineScheduler`, which an engine or a simulator drives, `Limits` and `Counters`. Knows nothing of
how any scheduler decides.
The caller's loop is: `add` and `abort` whenever they come, then `schedule`, run the plan, `finish_step`, and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from reference_impl.memory.kv_memory import KVMemory
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.sched.plan import Plan
from reference_impl.sched.request import Request

UNLIMITED = 1 << 60
"""More tokens than a step could ever have."""


@dataclass(frozen=True)
class Limits:
    """What one step may hold, and what one request may be.

    max_tokens_per_step: None means that only memory and `max_running` limit a step. max_request_tokens: prompt and
    output together; None where only memory limits a request.
    """

    max_tokens_per_step: int | None = 2048
    max_running: int = 256
    max_request_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_running is None:
            raise ValueError("max_running must be at least 1, got None")

    @property
    def budget(self) -> int:
        """Tokens of a step, as a number in every case."""
        return UNLIMITED if self.max_tokens_per_step is None else self.max_tokens_per_step


@dataclass
class Counters:
    """What a scheduler did since it was made.

    refused: reason -> requests refused at the door. admitted: times a request started to run, first or again, out of
    the queue. recomputed_tokens: thrown away by preemption and not found in a prefix cache on the way back.
    reused_tokens: found there, by first comers and by those who came back. given_up_swaps: requests on the host for
    which there was never room, computed again instead.
    """

    refused: Counter[Reason] = field(default_factory=Counter)
    added: int = 0
    admitted: int = 0
    finished: int = 0
    aborted: int = 0
    steps: int = 0
    scheduled_tokens: int = 0
    made_tokens: int = 0
    preemptions: int = 0
    swaps_out: int = 0
    swaps_in: int = 0
    given_up_swaps: int = 0
    recomputed_tokens: int = 0
    reused_tokens: int = 0


@runtime_checkable
class EngineScheduler(Protocol):
    """Continuous batching and its rivals, behind one surface."""

    memory: KVMemory
    limits: Limits
    counters: Counters

    @property
    def num_running(self) -> int:
        """Requests in memory that a step may hold."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted, preempted ones too; not those on the host."""

    def num_waiting_by_reason(self) -> dict[str, int]:
        """Why requests did not run in the last step, in words -> how many."""

    def add(self, request: Request) -> Refusal | None:
        """Let `request` wait; a refusal if it can never run, and nothing is kept of it.

        Raises: ValueError if a live request has its id (one that was aborted lives until its step is done), or if it is
        not new.
        """

    def abort(self, request: int) -> None:
        """End a request wherever it is; it makes no further token. KeyError if it is unknown or has ended."""

    def schedule(self) -> Plan:
        """The next step; a plan without tokens only if nothing is left to do.

        Raises: RuntimeError while a step is under way, or if the memory breaks its promise to serve a request alone.
        """

    def finish_step(self, finished: Collection[int] = ..., sampled: Mapping[int, int] = ...) -> None:
        """The step is done: each request whose tokens are all computed made one more; those in `finished` ended.

        sampled: request -> id of the token it made; needed for requests with `token_ids` that go on, taken by no other.
        Raises: ValueError, with nothing changed, if a request in `finished` made no token in this step, one that made
        its last is not in `finished`, or an id is missing, too many or out of range (TypeError: no integer); KeyError
        if `finished` names an unknown one.
        """

    def check_invariants(self) -> None:
        """I9 and the books of the scheduler, and I1 to I8 of its memory. AssertionError names the offender."""
