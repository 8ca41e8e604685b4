"""What every scheduler does alike: requests come, are aborted, make tokens and end.

Owns: the live requests, which of them run, the step under way, the counters. Knows nothing of which requests a step
should hold: `schedule` is a subclass's. A request that is part of the step under way keeps its memory until the step is
done, also when it is aborted meanwhile, because the step still writes to its blocks. At the end of a step come first
what was computed, then forks, then the ends: a parent that ends with the step is still there to be forked.
Errors are found before anything changes. Cost: O(1) a scheduled request and step, besides what memory and queue take;
with a log also O(n log n) for n requests that wait, whenever one comes or goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import TYPE_CHECKING

from reference_impl.memory.kv_memory import ForkingMemory, KVMemory
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.sched.forks import check_forks, check_token
from reference_impl.sched.plan import Plan
from reference_impl.sched.queues import FirstCome, WaitingQueue
from reference_impl.sched.request import Request, State
from reference_impl.sched.running import Running, place_of
from reference_impl.sched.step import Step
from reference_impl.sched.surface import Counters, Forks, Limits

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog

NO_IDS: Mapping[int, int] = MappingProxyType({})
NO_FORKS: Forks = MappingProxyType({})
BEHIND = "behind the first in the queue"
ON_HOST = "on the host"
ABORTED = "it was aborted"
COMPLETE = "its answer is complete"


class Lifecycle(ABC):
    """A scheduler without `schedule`. The memory is called by nobody else, the queue is new."""

    def __init__(
        self,
        memory: KVMemory,
        limits: Limits | None = None,
        queue: WaitingQueue | None = None,
        *,
        log: EventLog | None = None,
    ) -> None:
        """`queue` is first come, first served unless given.

        log: that of the memory, to be told what memory cannot know: who waits, and why a request loses its blocks.
        Raises: ValueError if requests wait in `queue`, or if `log` is not that of `memory`.
        """
        self.can_fork = True
        self.memory = memory
        self.limits = Limits() if limits is None else limits
        self.queue: WaitingQueue = FirstCome() if queue is None else queue
        if len(self.queue):
            raise ValueError(f"the queue must be empty, {len(self.queue)} requests wait in it")
        if log is not None and not log.is_of(memory):
            raise ValueError("log is not that of the memory, which has to be made with it")
        self.counters = Counters()
        self.running = Running()
        self._requests: dict[int, Request] = {}
        self._swapped: dict[int, Request] = {}
        self._with_ids: set[int] = set()
        self._step: Step | None = None
        self._head_waits = ""
        self._log = log

    @abstractmethod
    def schedule(self) -> Plan:
        """See `surface.EngineScheduler`."""

    @property
    def num_running(self) -> int:
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        return len(self.queue)

    def num_waiting_by_reason(self) -> dict[str, int]:
        reasons = {}
        if len(self.queue):
            reasons[self._head_waits or "since the last step"] = 1
        if len(self.queue) > 1:
            reasons[BEHIND] = len(self.queue) - 1
        if self._swapped:
            reasons[ON_HOST] = len(self._swapped)
        return reasons

    def add(self, request: Request) -> Refusal | None:
        self._check_new(request)
        refusal = self._refuse(request)
        if refusal is not None:
            self.counters.refused[refusal.reason] += 1
            return refusal
        self.counters.added += 1
        self._requests[request.request] = request
        if request.token_ids is not None:
            self._with_ids.add(request.request)
        self.queue.push(request)
        self._tell_waits()
        return None

    def _check_new(self, request: Request) -> None:
        if request.request in self._requests:
            raise ValueError(f"request {request.request} is here already")
        if request.state is not State.WAITING or request.place is not None:
            raise ValueError(f"request {request.request} is not new, it was in a queue before")

    def _refuse(self, request: Request) -> Refusal | None:
        """Why `request` can never run, here; None if it can."""
        longest, limit = request.final_tokens + 1, self.limits.max_request_tokens
        if limit is not None and longest > limit:
            return Refusal(Reason.TOO_LONG, longest, limit, limit)
        return self.memory.never_fits(request.demand())

    def _refuse_uncut(self, request: Request) -> Refusal | None:
        """For schedulers that compute prompts in one step: after a preemption all that was made is prompt as well."""
        budget = self.limits.budget
        if request.final_tokens > budget:
            return Refusal(Reason.ABOVE_BUDGET, request.final_tokens, budget, budget)
        return None

    def abort(self, request: int) -> None:
        self._leave(request, ABORTED)
        self.counters.aborted += 1

    def retire(self, request: int) -> None:
        """End a request whose answer was found complete after its step was finished, in which it was said to go on.

        It is one of those who finished. If the step under way computes something for it, nothing comes of that.
        Raises: KeyError if it is unknown or has ended.
        """
        self._leave(request, COMPLETE)
        self.counters.finished += 1

    def _leave(self, request: int, why: str) -> None:
        live, step = self._requests.get(request), self._step
        if live is None or (step is not None and request in step.aborted):
            raise KeyError(f"no request {request}")
        if live.state is State.WAITING:
            self.queue.remove(request)
            self._end(live, why)
            self._tell_waits()
        elif step is not None and request in step:
            step.aborted.add(request)
            if why is COMPLETE:
                step.retired.add(request)
        else:
            self._end(live, why)

    def _open_step(self) -> Step:
        if self._step is not None:
            raise RuntimeError("the last step is not done: call finish_step first")
        return Step(self.limits.budget)

    def _close_step(self, step: Step) -> Plan:
        """The plan of `step`, which is under way from now on, unless there is nothing in it."""
        if step.scheduled:
            self._step = step
            self.counters.steps += 1
            self.counters.scheduled_tokens += self.limits.budget - step.budget
        elif self._requests:
            # Without this the caller would ask for steps for ever.
            raise RuntimeError(f"nothing can be scheduled, of {len(self._requests)} requests: {step.refused}")
        return step.plan()

    def finish_step(
        self, finished: Collection[int] = (), sampled: Mapping[int, int] = NO_IDS, forked: Forks = NO_FORKS
    ) -> None:
        ended = finished if isinstance(finished, AbstractSet) else frozenset(finished)
        step = self._step
        if step is None:
            if named := {*ended, *sampled, *forked}:
                raise ValueError(f"no step is under way, in which {named} could have made a token")
            return
        self._check_finish(step, ended, sampled)
        if forked:
            check_forks(forked, step, self._requests)
        self._step = None
        if step.aborted:
            step.drop_aborted()
        made = self._count_computed(step)
        if self._with_ids:
            for request in made:
                if request.token_ids is not None and request.request in sampled:
                    request.token_ids.append(sampled[request.request])
        if forked:
            made = [*made, *self._fork(step, forked)]
        self.counters.made_tokens += len(made)
        self.queue.served(made)
        for identity in ended - step.aborted:
            self.counters.finished += 1
            self._end(self._requests[identity], COMPLETE)
        for identity in step.aborted:
            self._end(self._requests[identity], COMPLETE if identity in step.retired else ABORTED)

    def _check_finish(self, step: Step, ended: AbstractSet[int], sampled: Mapping[int, int]) -> None:
        for identity in ended:
            if (request := self._requests.get(identity)) is None:
                raise KeyError(f"no request {identity}")
            if identity not in step.scheduled or request.num_left:
                raise ValueError(f"request {identity} made no token in this step, so it cannot end with it")
        if not step.due <= ended and (late := step.due - ended - step.aborted):
            raise ValueError(f"requests {sorted(late)} made the last of their tokens and must be in finished")
        if sampled:
            self._check_sampled(step, sampled)
        # Sets first: of hundreds that make a token hardly one is left to be looked at.
        for identity in (self._with_ids & step.scheduled.keys()) - sampled.keys() - ended - step.aborted:
            if not self._requests[identity].num_left:
                raise ValueError(f"request {identity} goes on, and sampled has no id of the token that it made")

    def _check_sampled(self, step: Step, sampled: Mapping[int, int]) -> None:
        if extra := sampled.keys() - step.scheduled.keys():
            raise ValueError(f"requests {sorted(extra)} are in sampled and were not scheduled")
        for identity, token in sampled.items():
            if self._requests[identity].num_left and identity not in step.aborted:
                raise ValueError(f"request {identity} is in sampled and made no token in this step")
            check_token("sampled for", identity, token)

    def _count_computed(self, step: Step) -> list[Request]:
        """Book what the step computed; the requests that made a token."""
        commit = self.memory.commit
        made = step.decodes
        for request in made:
            tokens = request.num_tokens
            request.num_scheduled = 0
            request.num_computed = tokens
            request.num_tokens = tokens + 1
            commit(request.request, tokens)
        if not step.prefills:
            return made
        made = list(made)
        for request in step.prefills:
            request.num_computed += request.num_scheduled
            request.num_scheduled = 0
            commit(request.request, request.num_computed)
            if request.num_computed == request.num_tokens:
                request.num_tokens += 1
                made.append(request)
            if request.num_left == 1:
                self.running.prefills.leave(request)
                self.running.decodes.join(request)
        return made

    def _fork(self, step: Step, forked: Forks) -> list[Request]:
        """Take in the children, which passed every check; each made its first token in this step."""
        children = []
        for identity, family in forked.items():
            parent = self._requests[identity]
            if identity in step.aborted:
                # The step computed its prompt all the same, and its children have it from nobody else.
                self.memory.commit(identity, parent.prompt_tokens)
            for child, token in family:
                self._begin(parent, child, token)
                children.append(child)
        self._tell_waits()
        return children

    def _begin(self, parent: Request, child: Request, token: int) -> None:
        """`child` runs on its parent's KV or, where that cannot be, waits like one that was preempted after a token."""
        self.counters.added += 1
        self._requests[child.request] = child
        child.num_tokens += 1
        if child.token_ids is not None:
            child.token_ids.append(token)
            self._with_ids.add(child.request)
        # The queue gives it its place, whether it waits or not.
        self.queue.push(child)
        if self._shares(parent, child):
            self.queue.remove(child.request)
            self.counters.forks += 1
            child.num_computed = parent.prompt_tokens
            child.become(State.RUNNING)
            self.running.join(child)

    def _shares(self, parent: Request, child: Request) -> bool:
        """Whether memory let `child` start with the blocks of `parent`. Cost: O(the parent's blocks)."""
        if len(self.running) >= self.limits.max_running or not isinstance(self.memory, ForkingMemory):
            return False
        return self.memory.fork(parent.request, child.demand()) is None

    def _end(self, request: Request, why: str) -> None:
        """The request is over, and so is its hold on memory: this is the only place where one that ends is freed."""
        if self._log is not None:
            self._log.finished(request.request, why)
        if request.state is State.RUNNING:
            self.running.leave(request)
            self._release(request)
        elif request.state is State.SWAPPED:
            del self._swapped[request.request]
            self._release(request)
        request.num_scheduled = 0
        request.become(State.FINISHED)
        del self._requests[request.request]
        self._with_ids.discard(request.request)

    def _release(self, request: Request) -> None:
        """Free what memory keeps of `request`, on the device or on the host."""
        self.memory.free(request.request)

    def _forget(self, request: Request) -> None:
        """Free what `request` has computed, and let it wait where it waited before."""
        request.num_lost = request.num_computed
        request.num_computed = 0
        request.become(State.WAITING)
        self.queue.push(request)
        self._tell_waits()
        self._release(request)

    def _tell_waits(self) -> None:
        """The log learns who waits: the head of the queue, and behind it the others by their place."""
        if self._log is None:
            return
        waiting = [request for request in self._requests.values() if request.state is State.WAITING]
        if waiting:
            # A queue that is fair between tenants does not take requests in the order of their places.
            head = self.queue.peek()
            waiting.sort(key=lambda request: (request is not head, place_of(request)))
        self._log.waits(request.request for request in waiting)

    def _count_admission(self, request: Request, reused: int) -> None:
        """What it has to compute again is what it lost, less what memory found of it."""
        again = max(0, request.num_lost - reused)
        request.num_recomputed += again
        request.num_lost = 0
        self.counters.recomputed_tokens += again
        self.counters.reused_tokens += reused
        self.counters.admitted += 1

    def check_invariants(self) -> None:
        self.memory.check_invariants()
        self.queue.check_invariants()
        self.running.check_invariants()
        states = {State.RUNNING: self.num_running, State.SWAPPED: len(self._swapped), State.WAITING: self.num_waiting}
        for state, number in states.items():
            here = sum(request.state is state for request in self._requests.values())
            assert here == number, f"I9: {here} requests are {state.value}, the books have {number}"
        scheduled = {} if self._step is None else self._step.scheduled
        for identity, request in self._requests.items():
            request.check_invariants()
            assert request.num_scheduled == scheduled.get(identity, 0), f"I9: request {identity} and the step disagree"
        tokens = sum(scheduled.values())
        assert tokens <= self.limits.budget, f"I9: {tokens} tokens are scheduled, {self.limits.budget} may be"
        assert self.num_running <= self.limits.max_running, f"I9: {self.num_running} requests run"
