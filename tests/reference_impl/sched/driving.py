"""A scheduler driven step by step, and books of its own that check every plan it makes.

Owns: what each request must have by the plans alone, and the rules that any scheduler's plan obeys. Knows nothing of
how a plan is made: it reads `Plan`, never the scheduler's insides.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable

from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.sched import EngineScheduler, Plan, Request, State


class CountedBlocks:
    """KV memory that only counts blocks, and gives whoever asks what is free: no promise, no watermark, no contents."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.capacity = num_blocks * block_size
        self.free_blocks = num_blocks
        self.slots: dict[int, int] = {}

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def never_fits(self, demand: Demand) -> Refusal | None:
        needed = demand.num_tokens + demand.max_new_tokens - 1
        if needed > self.capacity:
            return Refusal(Reason.NEVER_FITS, needed, self.capacity, self.capacity)
        return None

    def admit(self, demand: Demand, num_tokens: int) -> Grant | Refusal:
        if demand.request in self.slots:
            raise ValueError(f"request {demand.request} is in memory already")
        self.slots[demand.request] = 0
        answer = self.grow(demand.request, min(num_tokens, demand.num_tokens))
        if isinstance(answer, Refusal):
            del self.slots[demand.request]
        return answer

    def grow(self, request: int, num_tokens: int) -> Grant | Refusal:
        more = max(0, self._blocks(num_tokens) - self._blocks(self.slots[request]))
        if more > self.free_blocks:
            free = self.free_blocks * self.block_size
            return Refusal(Reason.NO_ROOM, more * self.block_size, free, free)
        self.free_blocks -= more
        self.slots[request] = max(self.slots[request], num_tokens)
        return Grant()

    def commit(self, request: int, num_tokens: int) -> None:
        if num_tokens > self.slots[request]:
            raise ValueError(f"request {request} has {self.slots[request]} slots, not {num_tokens}")

    def free(self, request: int) -> None:
        self.free_blocks += self._blocks(self.slots.pop(request))

    def account(self, wanted: int = 1) -> object:
        raise NotImplementedError("no test asks")

    def check_invariants(self) -> None:
        held = sum(map(self._blocks, self.slots.values()))
        assert (held + self.free_blocks) * self.block_size == self.capacity


class Driver:
    """`scheduler` and what its requests must have; `sizes` of a request are (prompt, tokens it really makes)."""

    def __init__(self, scheduler: EngineScheduler, *, check_every: int = 1) -> None:
        self.scheduler = scheduler
        self.check_every = check_every
        self.requests: dict[int, Request] = {}
        self.length: dict[int, int] = {}
        """Request -> tokens it makes before it ends."""
        self.made: dict[int, int] = {}
        self.computed: dict[int, int] = {}
        """Request -> tokens whose KV is in memory, or on the host, by the plans."""
        self.on_host: set[int] = set()
        self.ended: dict[int, int] = {}
        """Request -> tokens it had made when it ended by itself."""
        self.families: dict[int, tuple[Request, list[tuple[Request, int]]]] = {}
        """Request that is to fork with its first token -> itself, and its children with what each makes."""
        self.origin: dict[int, int] = {}
        """Fork -> whose prompt it has."""
        self.plan: Plan | None = None
        self.steps = 0

    def add(self, request: Request, makes: int, children: Iterable[tuple[Request, int]] = ()) -> Refusal | None:
        """`children`: what `request` forks into once its prompt is computed, where the scheduler can."""
        refusal = self.scheduler.add(request)
        if refusal is None:
            self._know(request, makes, made=0)
            if children:
                self.families[request.request] = (request, list(children))
        return refusal

    def _know(self, request: Request, makes: int, made: int) -> None:
        self.requests[request.request] = request
        self.length[request.request] = makes
        self.made[request.request] = made

    def abort(self, request: int) -> None:
        self.scheduler.abort(request)
        del self.requests[request]
        self.computed.pop(request, None)
        self.on_host.discard(request)
        if self.plan is None or request not in self.plan.scheduled:
            self.families.pop(request, None)
        self.check()

    def schedule(self) -> Plan:
        plan = self.scheduler.schedule()
        self._follow(plan)
        self.plan = plan if plan.scheduled else None
        self.check()
        return plan

    def finish(self) -> set[int]:
        """End the step; the requests that have made what they make end with it."""
        assert self.plan is not None
        finished, sampled = set(), {}
        for identity, tokens in self.plan.scheduled.items():
            if (request := self.requests.get(identity)) is None:
                continue
            self.computed[identity] += tokens
            if self.computed[identity] < request.prompt_tokens + self.made[identity]:
                continue
            self.made[identity] += 1
            if self.made[identity] == self.length[identity]:
                finished.add(identity)
            elif request.token_ids is not None:
                sampled[identity] = (identity * 31 + self.made[identity]) % 3
        forked = self._forks()
        self.scheduler.finish_step(finished, sampled, forked)
        for identity, family in forked.items():
            makes = dict(self.families.pop(identity)[1])
            for child, _ in family:
                self.origin[child.request] = identity
                self._know(child, makes[child], made=1)
                if child.state is State.RUNNING:
                    self.computed[child.request] = child.prompt_tokens
        for identity in finished:
            request = self.requests.pop(identity)
            del self.computed[identity]
            assert request.state is State.FINISHED
            assert request.num_new == self.made[identity]
            self.ended[identity] = self.made[identity]
        self.plan = None
        self.steps += 1
        self.check()
        return finished

    def _forks(self) -> dict[int, list[tuple[Request, int]]]:
        """The families whose parent makes its first token in this step; a child of one token is over already."""
        forked = {}
        for identity, (parent, children) in list(self.families.items()):
            tokens = self.plan.scheduled.get(identity) if self.plan is not None else None
            if tokens is None or self.plan.computed[identity] + tokens < parent.prompt_tokens:
                continue
            if family := [(child, child.request % 3) for child, makes in children if makes > 1]:
                forked[identity] = family
            else:
                del self.families[identity]
        return forked

    def step(self) -> Plan:
        plan = self.schedule()
        if plan.scheduled:
            self.finish()
        return plan

    def run(self, most_steps: int = 100_000) -> None:
        """Until nothing is left."""
        for _ in range(most_steps):
            if not self.step().scheduled:
                break
        assert not self.requests, f"after {most_steps} steps {len(self.requests)} requests are not done"

    def check(self) -> None:
        if self.steps % self.check_every == 0:
            self.scheduler.check_invariants()
        for identity, request in self.requests.items():
            assert request.num_computed == self.computed.get(identity, 0), f"request {identity}"
            assert request.num_new == self.made[identity], f"request {identity}"

    def _follow(self, plan: Plan) -> None:
        """Every rule of a plan, and what it does to the books."""
        for identity in [*plan.preempted, *plan.swapped_out]:
            assert identity in self.computed, f"request {identity} is preempted and was not in memory"
        for identity in plan.swapped_out:
            assert identity not in plan.preempted, f"request {identity} went to the host and lost its KV"
            self.on_host.add(identity)
        for identity in plan.preempted:
            del self.computed[identity]
            self.on_host.discard(identity)
        for identity in plan.swapped_in:
            assert identity in self.on_host, f"request {identity} comes back and was not away"
            self.on_host.remove(identity)
        if plan.preempted or plan.swapped_out:
            newcomers = {*plan.admitted, *plan.swapped_in}
            assert not newcomers or newcomers >= plan.scheduled.keys(), "newcomers beside those short of memory"
        for identity in plan.admitted:
            assert identity not in self.computed, f"request {identity} is admitted and was in memory"
            self.computed[identity] = plan.reused.get(identity, 0)
        limits = self.scheduler.limits
        assert sum(plan.scheduled.values()) <= limits.budget
        assert len(self.computed.keys() - self.on_host) <= limits.max_running
        assert plan.computed.keys() == plan.scheduled.keys()
        for identity, tokens in plan.scheduled.items():
            assert identity in self.requests, f"request {identity} is scheduled and over"
            assert identity not in self.on_host, f"request {identity} is scheduled and on the host"
            known = self.requests[identity].prompt_tokens + self.made[identity]
            assert plan.computed[identity] == self.computed[identity], f"request {identity}"
            assert 1 <= tokens <= known - self.computed[identity], f"request {identity}"
        assert plan.scheduled or not self.requests, "a plan without tokens, and work is left"


def run(
    scheduler: EngineScheduler,
    sizes: Iterable[tuple[int, int]],
    *,
    arrange: Callable[[Request], None] | None = None,
    most_steps: int = 100_000,
) -> Driver:
    """All requests at once, each as (prompt, output); `arrange` may set what else a request has."""
    driver = Driver(scheduler)
    for identity, (prompt, output) in enumerate(sizes):
        request = Request(identity, prompt, output)
        if arrange is not None:
            arrange(request)
        refusal = driver.add(request, output)
        assert refusal is None, f"request {identity}: {refusal}"
    driver.run(most_steps)
    return driver


def random_sizes(seed: int, count: int, longest_prompt: int, longest_output: int) -> list[tuple[int, int]]:
    chance = random.Random(seed)
    return [(chance.randint(1, longest_prompt), chance.randint(1, longest_output)) for _ in range(count)]


def ids(seed: int, count: int, kinds: int = 2) -> array[int]:
    """Token ids of few kinds, so that prompts share beginnings."""
    chance = random.Random(seed)
    return array("i", (chance.randrange(kinds) for _ in range(count)))
