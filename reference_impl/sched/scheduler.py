"""Continuous batching: one token budget for prefills and decodes, preemption when memory runs out.

Owns: what the next step holds. Knows nothing of blocks: it asks `KVMemory`, which says no with a reason.
A step is filled in this order, each by the order of the queue:
1. the requests that run and have one token left (decodes), then those with more (prefills, cut to the budget). One that
   gets no slots preempts a victim, which may have been scheduled already, or be itself;
2. the requests on the host come back, until one finds no room;
3. the head of the queue is admitted, then the next, never past one that is refused, and not while any is on the host.
A step that preempted skips 2 and 3: what was freed is for those that run. What makes it always progress: the first
request that runs is never a victim while another runs (see `preemption.py`), one that runs alone has the whole memory,
and a request that not even that would serve was refused at the door.
Source: Yu et al. (Orca), OSDI 2022, section 3 (requests join and leave between steps); Agrawal et al. (Sarathi-Serve),
OSDI 2024, section 4 (decodes first, then chunks of prompts under one budget); Kwon et al., SOSP 2023, section 4.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference_impl.memory.kv_memory import Grant, KVMemory, SwappingMemory
from reference_impl.memory.kv_policy import Refusal
from reference_impl.memory.swap import Recovery
from reference_impl.sched.lifecycle import Lifecycle
from reference_impl.sched.plan import Plan
from reference_impl.sched.preemption import VICTIMS, RecoveryRule, Victim, Way
from reference_impl.sched.queues import WaitingQueue
from reference_impl.sched.request import Request, State
from reference_impl.sched.running import place_of
from reference_impl.sched.step import Step
from reference_impl.sched.surface import Limits

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog


class ContinuousBatching(Lifecycle):
    """See the module. Not chunked, a prompt is computed in one step, and refused if the budget is too small for it."""

    def __init__(
        self,
        memory: KVMemory,
        limits: Limits | None = None,
        queue: WaitingQueue | None = None,
        *,
        chunked: bool = True,
        recovery: Way | RecoveryRule = "recompute",
        victim: str | Victim = "last",
        log: EventLog | None = None,
    ) -> None:
        """Raises: ValueError on an unknown recovery or victim, or on swapping with a memory that cannot swap."""
        super().__init__(memory, limits, queue, log=log)
        self.chunked = chunked
        if not callable(recovery) and recovery not in (*Recovery, *(way.value for way in Recovery)):
            raise ValueError(f"recovery must be 'recompute', 'swap' or a rule, got {recovery!r}")
        self._recovery = recovery if callable(recovery) else Recovery(recovery)
        if self._recovery is not Recovery.RECOMPUTE and not isinstance(memory, SwappingMemory):
            raise ValueError(f"{type(memory).__name__} cannot swap, so recovery must be 'recompute'")
        if not callable(victim) and victim not in VICTIMS:
            raise ValueError(f"victim must be one of {', '.join(VICTIMS)} or a rule, got {victim!r}")
        self._victim = victim if callable(victim) else VICTIMS[victim]

    def _refuse(self, request: Request) -> Refusal | None:
        refusal = super()._refuse(request)
        return self._refuse_uncut(request) if refusal is None and not self.chunked else refusal

    def schedule(self) -> Plan:
        step = self._open_step()
        self._decode(step)
        self._prefill(step)
        self._take_in(step)
        return self._close_step(step)

    def _decode(self, step: Step) -> None:
        """The one token left of each decode. This loop is the hot path: it runs once a token of every answer."""
        grow, scheduled, computed, decodes = self.memory.grow, step.scheduled, step.computed, step.decodes
        for request in self.running.decodes.in_order():
            if step.budget <= 0:
                return
            if step.preempted_any and request.state is not State.RUNNING:
                continue
            tokens, identity = request.num_tokens, request.request
            answer = grow(identity, tokens)
            grant = self._make_room(step, request, tokens) if isinstance(answer, Refusal) else answer
            if grant is None:
                continue
            if grant.copies:
                step.copies[identity] = grant.copies
            request.num_scheduled = 1
            scheduled[identity] = 1
            computed[identity] = request.num_computed
            decodes.append(request)
            step.budget -= 1
            if tokens == request.final_tokens:
                step.due.add(identity)

    def _prefill(self, step: Step) -> None:
        """What the budget leaves for prompts that are under way."""
        for request in self.running.prefills.in_order():
            if step.budget <= 0:
                return
            if request.state is State.RUNNING:
                self._extend(step, request)

    def _extend(self, step: Step, request: Request) -> None:
        """Schedule as much of a running request as the budget allows; it may be preempted instead."""
        num_tokens = min(request.num_left, step.budget)
        grant = self._make_room(step, request, request.num_computed + num_tokens)
        if grant is not None:
            if grant.copies:
                step.copies[request.request] = grant.copies
            step.schedule(request, num_tokens)

    def _make_room(self, step: Step, request: Request, num_tokens: int) -> Grant | None:
        """Slots for the first `num_tokens` tokens of `request`, if need be a victim's; None if it was the victim."""
        while isinstance(grant := self.memory.grow(request.request, num_tokens), Refusal):
            running = self.running.in_order()
            victim = self._victim(running[1:] or running)
            why = f"request {request.request} needs room for {num_tokens} tokens"
            self._preempt(step, victim, why, alone=len(running) == 1)
            if victim is request:
                return None
        return grant

    def _preempt(self, step: Step, victim: Request, why: str, *, alone: bool) -> None:
        """Take the memory of `victim`. Alone it is computed again: to come back it would need the room it leaves."""
        if self._log is not None:
            self._log.preempted(victim.request, why)
        # Blocks that are to be copied first hold nothing yet that could be moved to the host. And a runner moves out
        # before it moves in: a place on the host that somebody leaves in this step is not to be written in it.
        movable = not alone and victim.request not in step.copies and not step.swapped_in
        step.leave(victim)
        step.preempted_any = True
        self.running.leave(victim)
        self.counters.preemptions += 1
        victim.num_preemptions += 1
        if not (movable and self._swap_out(step, victim)):
            step.preempted.append(victim.request)
            self._forget(victim)

    def _swap_out(self, step: Step, victim: Request) -> bool:
        """Whether `victim` went to the host: the rule may say no, or the host be full."""
        recovery = self._recovery(victim) if callable(self._recovery) else self._recovery
        if Recovery(recovery) is not Recovery.SWAP:
            return False
        assert isinstance(self.memory, SwappingMemory), "checked when the scheduler was made"
        blocks = self.memory.swap_out(victim.request)
        if isinstance(blocks, Refusal):
            return False
        step.swapped_out[victim.request] = blocks
        victim.become(State.SWAPPED)
        self._swapped[victim.request] = victim
        self.counters.swaps_out += 1
        return True

    def _take_in(self, step: Step) -> None:
        """Those on the host, then the queue, unless memory ran out in this very step."""
        if self._is_short(step):
            self._head_waits = "a request was preempted in this step"
            return
        self._bring_back(step)
        if self._swapped:
            self._head_waits = "requests on the host come first"
            return
        self._admit(step)

    def _is_short(self, step: Step) -> bool:
        """Whether what this step freed is for those that still run; if none does, the memory is there for all."""
        return step.preempted_any and len(self.running) > 0

    def _bring_back(self, step: Step) -> None:
        for request in sorted(self._swapped.values(), key=place_of):
            if step.budget <= 0 or len(self.running) >= self.limits.max_running:
                return
            assert isinstance(self.memory, SwappingMemory), "checked when the scheduler was made"
            blocks = self.memory.swap_in(request.request)
            if isinstance(blocks, Refusal):
                step.refused = blocks
                if len(self.running):
                    return
                self._give_up(step, request)
                continue
            del self._swapped[request.request]
            request.become(State.RUNNING)
            self.running.join(request)
            self.counters.swaps_in += 1
            step.swapped_in[request.request] = blocks
            self._resume(step, request)

    def _give_up(self, step: Step, request: Request) -> None:
        """Nobody will leave who could make room for a request on the host: it is computed again instead."""
        if self._log is not None:
            self._log.preempted(request.request, "nobody will leave who could make room for it on the device")
        self.counters.given_up_swaps += 1
        del self._swapped[request.request]
        step.leave(request)
        step.preempted.append(request.request)
        self._forget(request)

    def _resume(self, step: Step, request: Request) -> None:
        """Schedule a request that just came back, if there is room for more; nobody else is preempted for it."""
        num_tokens = min(request.num_left, step.budget)
        grant = self.memory.grow(request.request, request.num_computed + num_tokens)
        if isinstance(grant, Grant):
            if grant.copies:
                step.copies[request.request] = grant.copies
            step.schedule(request, num_tokens)
        elif len(self.running) == 1:
            self._preempt(
                step, request, f"alone, it has no room for {request.num_computed + num_tokens} tokens", alone=True
            )

    def _admit(self, step: Step) -> None:
        queue, budget_of_all = self.queue, self.limits.budget
        step.refused, self._head_waits = None, ""
        while len(queue):
            head = queue.peek()
            wanted = min(head.num_tokens, step.budget) if self.chunked else head.num_tokens
            if step.budget <= 0 or wanted > step.budget:
                self._head_waits = f"the step has its {budget_of_all} tokens"
                return
            if len(self.running) >= self.limits.max_running:
                self._head_waits = "as many run as may"
                return
            grant = self.memory.admit(head.demand(), wanted)
            if isinstance(grant, Refusal):
                step.refused = grant
                self._head_waits = grant.reason.value
                return
            self._start(step, queue.pop(), grant, wanted)

    def _start(self, step: Step, request: Request, grant: Grant, wanted: int) -> None:
        """`request` runs; what memory found of it already need not be computed."""
        reused = grant.num_reused
        self._count_admission(request, reused)
        request.num_computed = reused
        request.become(State.RUNNING)
        self.running.join(request)
        self._tell_waits()
        step.admitted.append(request.request)
        if reused:
            step.reused[request.request] = reused
        if grant.copies:
            step.copies[request.request] = grant.copies
        step.schedule(request, min(wanted, request.num_left))
