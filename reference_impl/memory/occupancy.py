"""How much of the KV memory holds tokens, under each policy: the memory table of the PagedAttention paper, in kind.

Owns: the queue, the clock and the mean over time. Knows nothing of how a policy keeps its memory.
Method: requests wait in one queue, in the order given, and never leave it empty while anything is measured, so the
memory is always under demand. A step admits from the head of the queue until the head is refused, takes the account,
then gives every request one token; a request that has all its tokens leaves. Steps are of equal length and prefill
takes none of them. Where a token is refused, the request admitted last is preempted: its memory is freed and it goes
back to the head of the queue, to be admitted again with all its tokens as a prompt (recompute).
Free memory is split at the size that the waiting request was refused: what is too short for it counts as external.
Source of the published figures: Kwon et al., SOSP 2023, figure 2: a real engine under Poisson arrivals at a given rate,
OPT-13B with 12 GiB for KV, ShareGPT, sequences of at most 2,048 tokens. Here there is no clock of a GPU, no arrival
rate and no watermark.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reference_impl.memory.accounting import Account
from reference_impl.memory.kv_policy import KVPolicy, Refusal
from reference_impl.memory.policies import POLICIES, Sizes

PUBLISHED_HELD = {"reserve_max": 0.204, "pow2": 0.268, "oracle": 0.382, "paged": 0.963}
"""Share of KV memory that held tokens in the paper's experiment."""


@dataclass(frozen=True)
class Occupancy:
    """What one policy made of one queue. `total` is the sum of the accounts of `steps` moments."""

    policy: str
    total: Account
    steps: int
    request_steps: int
    served: int
    turned_away: int
    preemptions: int
    copied_tokens: int

    @property
    def held(self) -> float:
        """Mean share of the memory that held tokens."""
        return self.total.shares()["held"]

    @property
    def mean_running(self) -> float:
        """Requests in memory at once, mean over the steps."""
        return self.request_steps / self.steps


@dataclass
class _Waiting:
    """A request outside memory: tokens to admit it with, and tokens it still makes."""

    request: int
    prompt: int
    new: int


class _Player:
    """One queue, one policy, the requests that run in order of admission."""

    def __init__(self, policy: KVPolicy, requests: Iterable[tuple[int, int]], max_length: int) -> None:
        self.policy = policy
        self.max_length = max_length
        self.queue = deque(_Waiting(request, prompt, new) for request, (prompt, new) in enumerate(requests))
        self.running: dict[int, _Waiting] = {}
        self.served = self.turned_away = self.preemptions = 0

    def admit(self) -> Refusal | None:
        """Admit from the head of the queue; the refusal of the head, or None when the queue is empty."""
        while self.queue:
            head = self.queue[0]
            refusal = self.policy.admit(head.request, head.prompt, self.max_length - head.prompt, head.new)
            if refusal is None:
                self.running[head.request] = self.queue.popleft()
            elif refusal.reason.is_final:
                self.queue.popleft()
                self.turned_away += 1
            else:
                assert self.running, f"request {head.request} is refused by an empty memory: {refusal}"
                return refusal
        return None

    def step(self) -> None:
        """One token for every request that runs and is not preempted on the way."""
        for request in list(self.running):
            if (live := self.running.get(request)) is None:
                continue
            self.policy.commit(request, live.prompt)
            while request in self.running and isinstance(self.policy.append(request), Refusal):
                self._preempt(next(reversed(self.running)))
            if request not in self.running:
                continue
            live.prompt += 1
            live.new -= 1
            if live.new == 0:
                self.policy.finish(request)
                del self.running[request]
                self.served += 1

    def _preempt(self, request: int) -> None:
        self.policy.finish(request)
        self.queue.appendleft(self.running.pop(request))
        self.preemptions += 1


def occupancy(name: str, sizes: Sizes, requests: Sequence[tuple[int, int]], warm_up: int = 0) -> Occupancy:
    """Play `requests`, as (prompt, output) tokens, under the policy `name`; the first `warm_up` steps are not counted.

    Raises: ValueError on an unknown policy, a request below 1 token on either side or above `sizes.max_length`, or if
    the queue ran dry before a step was counted. Cost: O(tokens made).
    """
    if name not in POLICIES:
        raise ValueError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    for place, (prompt, new) in enumerate(requests):
        if prompt < 1 or new < 1 or prompt + new > sizes.max_length:
            raise ValueError(
                f"request {place}: {prompt} prompt and {new} output tokens; needs 1 of each, {sizes.max_length} in all"
            )
    player = _Player(POLICIES[name](sizes), requests, sizes.max_length)
    total, step, request_steps = Account(), 0, 0
    while (refusal := player.admit()) is not None:
        if step >= warm_up:
            total += player.policy.account(refusal.needed)
            request_steps += len(player.running)
        player.step()
        step += 1
    if step <= warm_up:
        raise ValueError(f"the queue of {len(requests)} requests was empty after {step} steps, nothing was measured")
    # Those in memory when the queue ran dry are counted as served: nothing can stop them any more.
    served = player.served + len(player.running)
    return Occupancy(
        policy=name,
        total=total,
        steps=step - warm_up,
        request_steps=request_steps,
        served=served,
        turned_away=player.turned_away,
        preemptions=player.preemptions,
        copied_tokens=player.policy.copied_tokens,
    )


def memory_table(
    sizes: Sizes, requests: Sequence[tuple[int, int]], policies: Sequence[str] = tuple(PUBLISHED_HELD), warm_up: int = 0
) -> list[Occupancy]:
    """One row for each policy on the same queue and the same memory."""
    return [occupancy(name, sizes, requests, warm_up) for name in policies]
