"""The surface that every scheduler of the engine has, and the limits and counters that belong to it.

Owns: the Protocol `EngineScheduler`, which an engine or a simulator drives, `Limits` and `Counters`. Knows nothing of
how any scheduler decides.
The caller's loop is: `add` and `abort` whenever they come, then `schedule`, run the plan, `finish_step`, and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from reference_impl.memory.kv_memory import KVMemory
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.sched.plan import Plan
from reference_impl.sched.request import Request

Forks = Mapping[int, Sequence[tuple[Request, int]]]
"""Parent -> its children, each with the id of the first token that it made."""

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
    the queue. forks: requests that began with their parent's KV; `added` counts these and those that had to wait.
    recomputed_tokens: thrown away by preemption and not found in a prefix cache on the way back.
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
    forks: int = 0
    preemptions: int = 0
    swaps_out: int = 0
    swaps_in: int = 0
    given_up_swaps: int = 0
    recomputed_tokens: int = 0
    reused_tokens: int = 0


@runtime_checkable
class EngineScheduler(Protocol):
    """Continuous batching and its rivals, behind one surface.

    can_fork: whether `finish_step` takes `forked`. Where it does, n answers to one prompt are one request until the
    prompt is computed; where it does not (a scheduler of lab 6 knows no fork), the caller adds n requests at once.
    """

    memory: KVMemory
    limits: Limits
    counters: Counters
    can_fork: bool

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

    def finish_step(
        self, finished: Collection[int] = ..., sampled: Mapping[int, int] = ..., forked: Forks = ...
    ) -> None:
        """The step is done: each request whose tokens are all computed made one more; those in `finished` ended.

        sampled: request -> id of the token it made; needed for requests with `token_ids` that go on, taken by no other.
        forked: requests that made their first token -> new requests with the same prompt, salt and max_new_tokens, each
        with a first token of its own, which `token_ids` does not hold yet. They go on from there like any other; a
        parent that ended or was aborted has its children all the same. A child shares its parent's KV where the memory
        can and `max_running` allows; else it waits, with its token, and the prompt is computed again for it.
        Raises: ValueError, with nothing changed, if a request in `finished` made no token in this step, one that made
        its last is not in `finished`, an id is missing, too many or out of range (TypeError: no integer), or a child is
        not as said here; KeyError if `finished` or `forked` names an unknown one.
        """

    def check_invariants(self) -> None:
        """I9 and the books of the scheduler, and I1 to I8 of its memory. AssertionError names the offender."""
