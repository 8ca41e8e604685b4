"""One request: three counters, and the table of what may happen to it.

Owns: the counters and the states. Knows nothing of blocks, of queues or of why a state changes.

    num_tokens      tokens that exist: the prompt and what was made so far
    num_computed    tokens whose KV is in memory
    num_scheduled   tokens of the step that is under way

A prefix hit, a chunk of a prompt, a decode step and the way back after a preemption are all the same thing: fewer
computed than there are. There is no "prefill" flag that could be wrong. Invariant I9: computed + scheduled <= tokens.

    WAITING --admit--> RUNNING --finish--> FINISHED        (a fork is admitted without waiting)
       ^                |    |
       +--preempt-------+    +--swap out--> SWAPPED --swap in--> RUNNING
    any but FINISHED --abort--> FINISHED
"""

from __future__ import annotations

from array import array
from enum import Enum

from reference_impl.memory.kv_memory import Demand


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    SWAPPED = "swapped"
    FINISHED = "finished"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.FINISHED}),
    State.RUNNING: frozenset({State.WAITING, State.SWAPPED, State.FINISHED}),
    State.SWAPPED: frozenset({State.RUNNING, State.WAITING, State.FINISHED}),
    State.FINISHED: frozenset(),
}
"""State -> the states that may follow it. A swapped request waits again when its place on the host is given up."""


class Request:
    """What a client asked for, and how far it is.

    `token_ids` are the ids of the tokens where contents matter (prefix cache, a real model), else None and only counts
    are kept. `true_new_tokens` is what a simulator knows and a server does not.
    """

    __slots__ = (
        "arrival_s",
        "final_tokens",
        "max_new_tokens",
        "num_computed",
        "num_lost",
        "num_preemptions",
        "num_recomputed",
        "num_scheduled",
        "num_tokens",
        "place",
        "priority",
        "prompt_tokens",
        "request",
        "salt",
        "state",
        "tenant",
        "token_ids",
        "true_new_tokens",
    )

    def __init__(
        self,
        request: int,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        token_ids: array[int] | None = None,
        salt: str = "",
        priority: int = 0,
        tenant: str = "",
        arrival_s: float = 0.0,
        true_new_tokens: int | None = None,
    ) -> None:
        """Lower `priority` goes first. Raises: ValueError, naming the argument, on values that make no sense."""
        if prompt_tokens < 1:
            raise ValueError(f"prompt_tokens must be at least 1, got {prompt_tokens}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if token_ids is not None and len(token_ids) != prompt_tokens:
            raise ValueError(f"prompt_tokens is {prompt_tokens}, token_ids holds {len(token_ids)}")
        if true_new_tokens is not None and not 1 <= true_new_tokens <= max_new_tokens:
            raise ValueError(f"true_new_tokens must be 1 to max_new_tokens={max_new_tokens}, got {true_new_tokens}")
        self.request = request
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.token_ids = token_ids
        self.salt = salt
        self.priority = priority
        self.tenant = tenant
        self.arrival_s = arrival_s
        self.true_new_tokens = true_new_tokens
        self.state = State.WAITING
        self.num_tokens = prompt_tokens
        self.num_computed = 0
        self.num_scheduled = 0
        self.num_preemptions = 0
        self.num_lost = 0
        """Tokens that were computed when the request was preempted last, until it runs again."""
        self.num_recomputed = 0
        """Tokens whose KV was thrown away and had to be computed once more."""
        self.final_tokens = prompt_tokens + max_new_tokens - 1
        """Tokens that it can ever compute: the last one it makes is returned and never computed."""
        self.place: tuple[int, int] | None = None
        """Where it stands in the queue, lowest first: given when it is pushed first, and its own ever after."""

    @property
    def num_new(self) -> int:
        """Tokens made so far."""
        return self.num_tokens - self.prompt_tokens

    @property
    def num_left(self) -> int:
        """Tokens that exist and are neither computed nor scheduled."""
        return self.num_tokens - self.num_computed - self.num_scheduled

    def demand(self) -> Demand:
        """What KV memory is told of this request now."""
        made = self.num_new
        return Demand(
            request=self.request,
            num_tokens=self.num_tokens,
            max_new_tokens=self.max_new_tokens - made,
            true_new_tokens=None if self.true_new_tokens is None else self.true_new_tokens - made,
            token_ids=self.token_ids,
            salt=self.salt,
        )

    def become(self, state: State) -> None:
        """Change state. Raises: ValueError on a change that the table does not have."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"request {self.request} is {self.state.value} and cannot become {state.value}")
        self.state = state

    def check_invariants(self) -> None:
        """I9 for one request. AssertionError names it."""
        done = self.num_computed + self.num_scheduled
        assert self.num_computed >= 0, f"I9: request {self.request} has computed {self.num_computed} tokens"
        assert done <= self.num_tokens, f"I9: request {self.request} computes {done} of {self.num_tokens} tokens"
        assert self.num_new <= self.max_new_tokens, f"I9: request {self.request} made {self.num_new} tokens"
        if self.state in (State.WAITING, State.FINISHED):
            assert self.num_scheduled == 0, f"I9: request {self.request} is {self.state.value} and scheduled"
