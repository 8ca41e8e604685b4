"""Lab 6's contract, both ways round: our scheduler behind it, and any scheduler of it behind the engine's surface.

Owns: `Scheduler`, the reference that a student's is held against, and `ContractScheduler`, which drives any object of
the contract and checks every plan by books of its own. Knows nothing of how a step is filled (`scheduler.py`), and
nothing of how a student's scheduler arrives at a plan: the first plan that breaks a rule is a `PlanError` that names
the request and the rule. So a student's scheduler runs in the simulator and the engine where the reference does.
The contract itself is `labkit.contracts.Scheduler`. Cost of the checks: O(requests that run) a step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from operator import index
from typing import TYPE_CHECKING

from labkit import contracts
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Grant
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.plugin import ContractError, PluginError
from reference_impl.sched.lifecycle import NO_FORKS, NO_IDS, Lifecycle
from reference_impl.sched.plan import Plan
from reference_impl.sched.request import Request, State
from reference_impl.sched.scheduler import ContinuousBatching
from reference_impl.sched.step import Step
from reference_impl.sched.surface import Forks, Limits

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog


class Scheduler:
    """First come, first served; prompts in chunks; preemption by recomputation, the last that came first.

    A request is admitted when all its known tokens fit, less what earlier ones were promised.
    """

    def __init__(self, num_blocks: int, block_size: int, max_tokens_per_step: int, max_running: int) -> None:
        memory = KVManager(index(num_blocks), index(block_size))
        self._engine = ContinuousBatching(memory, Limits(index(max_tokens_per_step), index(max_running)))

    def add(self, request: int, prompt_tokens: int, max_new_tokens: int) -> None:
        refusal = self._engine.add(Request(index(request), index(prompt_tokens), index(max_new_tokens)))
        if isinstance(refusal, Refusal):
            raise ValueError(f"request {request} could never run: {refusal}")

    def abort(self, request: int) -> None:
        self._engine.abort(index(request))

    def schedule(self) -> contracts.StepPlan:
        plan = self._engine.schedule()
        return contracts.StepPlan(dict(plan.scheduled), tuple(plan.preempted), tuple(plan.admitted))

    def finish_step(self, finished: set[int]) -> None:
        self._engine.finish_step(finished)

    def check_invariants(self) -> None:
        """I1 to I9. AssertionError names the offender."""
        self._engine.check_invariants()


class PlanError(ContractError):
    """A plan, or an answer to `add`, breaks the contract. `request` is the one it is about, None if it is about all."""

    def __init__(self, rule: str, request: int | None = None) -> None:
        super().__init__(rule if request is None else f"request {request}: {rule}")
        self.rule = rule
        self.request = request


class ContractScheduler(Lifecycle):
    """Drives `scheduler`, which must be new and made with the same four numbers; nobody else calls it.

    Its memory mirrors the plans: blocks for what is computed and scheduled, none for a preempted request. `log`, which
    must be new, becomes the log of that memory.
    """

    def __init__(
        self,
        scheduler: contracts.Scheduler,
        num_blocks: int,
        block_size: int,
        max_tokens_per_step: int,
        max_running: int,
        *,
        max_request_tokens: int | None = None,
        log: EventLog | None = None,
    ) -> None:
        """max_request_tokens: as in `Limits`; the contract knows no such limit, so that requests above it are refused
        here. Raises: ValueError unless all numbers are at least 1.
        """
        memory = KVManager(num_blocks, block_size, full_fit=False, log=log)
        super().__init__(memory, Limits(index(max_tokens_per_step), max_running, max_request_tokens), log=log)
        self.can_fork = False
        self.scheduler = scheduler
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._without_blocks: set[int] = set()
        """Requests that run and have computed nothing yet."""

    def add(self, request: Request) -> Refusal | None:
        self._check_new(request)
        expected = self._refuse(request)
        if expected is not None and expected.reason is Reason.TOO_LONG:
            return super().add(request)
        try:
            self.scheduler.add(request.request, request.prompt_tokens, request.max_new_tokens)
        except PluginError:
            raise
        except ValueError as error:
            if expected is None:
                rule = f"add() refused it ({error}), but its {request.final_tokens} tokens fit in the blocks"
                raise PlanError(rule, request.request) from error
        else:
            if expected is not None:
                rule = f"add() took it, but its {request.final_tokens} tokens can never fit in the blocks"
                raise PlanError(rule, request.request)
        return super().add(request)

    def abort(self, request: int) -> None:
        super().abort(request)
        self.scheduler.abort(request)

    def schedule(self) -> Plan:
        step = self._open_step()
        scheduled, preempted, admitted = _as_plan(self.scheduler.schedule())
        running = self._check_changes(preempted, admitted)
        self._check_tokens(scheduled, running)
        self._check_blocks(scheduled, running)
        self._apply(step, scheduled, preempted, admitted)
        if len(self.queue):
            self._head_waits = "the scheduler did not admit it"
        return self._close_step(step)

    def finish_step(
        self, finished: Collection[int] = (), sampled: Mapping[int, int] = NO_IDS, forked: Forks = NO_FORKS
    ) -> None:
        if forked:
            raise ValueError(f"requests {sorted(forked)} cannot fork: the contract of lab 6 knows no fork (can_fork)")
        step = self._step
        super().finish_step(finished, sampled)
        if step is not None:
            self.scheduler.finish_step(set(finished) - step.aborted)

    def _check_changes(self, preempted: list[int], admitted: list[int]) -> dict[int, int]:
        """Each request that runs in this step -> its tokens that are computed."""
        running = {request.request: request.num_computed for request in self.running.in_order()}
        for identity in preempted:
            self._check_live(identity, "preempted")
            if identity not in running:
                raise PlanError("preempted, but it does not run", identity)
            del running[identity]
        for identity in admitted:
            self._check_live(identity, "admitted")
            if identity in running:
                raise PlanError("admitted, but it runs already", identity)
            running[identity] = 0
        if len(running) > self.limits.max_running:
            rule = f"{len(running)} requests run, {self.limits.max_running} may"
            raise PlanError(rule, admitted[-1] if admitted else None)
        return running

    def _check_live(self, identity: int, what: str) -> None:
        if identity not in self._requests:
            raise PlanError(f"{what}, but it is unknown or has ended", identity)

    def _check_tokens(self, scheduled: dict[int, int], running: dict[int, int]) -> None:
        for identity, tokens in scheduled.items():
            self._check_live(identity, "scheduled")
            if identity not in running:
                raise PlanError("scheduled, but it does not run in this step", identity)
            left = self._requests[identity].num_tokens - running[identity]
            if not 1 <= tokens <= left:
                raise PlanError(f"{tokens} tokens are scheduled, 1 to {left} are left to compute", identity)
        total, budget = sum(scheduled.values()), self.limits.budget
        if total > budget:
            raise PlanError(f"{total} tokens are scheduled, a step has {budget}", next(reversed(scheduled)))
        if self._requests and not scheduled:
            raise PlanError("nothing is scheduled, but it is not done", min(self._requests))

    def _check_blocks(self, scheduled: dict[int, int], running: dict[int, int]) -> None:
        held = 0
        for identity, computed in running.items():
            held += blocks_for(computed + scheduled.get(identity, 0), self.block_size)
            if held > self.num_blocks:
                raise PlanError(f"with its tokens the step needs more than the {self.num_blocks} blocks", identity)

    def _apply(self, step: Step, scheduled: dict[int, int], preempted: list[int], admitted: list[int]) -> None:
        for identity in preempted:
            live = self._requests[identity]
            if self._log is not None:
                self._log.preempted(identity, "the plan says so")
            self.running.leave(live)
            self._forget(live)
            self.counters.preemptions += 1
            live.num_preemptions += 1
            step.preempted.append(identity)
        for identity in admitted:
            live = self.queue.remove(identity)
            self._count_admission(live, reused=0)
            live.become(State.RUNNING)
            self.running.join(live)
            self._without_blocks.add(identity)
            self._tell_waits()
            step.admitted.append(identity)
        for identity, tokens in scheduled.items():
            self._give_blocks(self._requests[identity], tokens)
            step.schedule(self._requests[identity], tokens)

    def _give_blocks(self, request: Request, tokens: int) -> None:
        if request.request in self._without_blocks:
            self._without_blocks.remove(request.request)
            answer = self.memory.admit(request.demand(), tokens)
        else:
            answer = self.memory.grow(request.request, request.num_computed + tokens)
        assert isinstance(answer, Grant), (
            f"the blocks were counted, and yet request {request.request} got none: {answer}"
        )

    def _release(self, request: Request) -> None:
        if request.request in self._without_blocks:
            self._without_blocks.remove(request.request)
        else:
            super()._release(request)


def _as_plan(plan: contracts.StepPlan) -> tuple[dict[int, int], list[int], list[int]]:
    """The three parts of a plan, as plain integers. PlanError if they are not that, or a request is in one twice."""
    try:
        scheduled = {index(request): index(tokens) for request, tokens in plan.scheduled.items()}
        preempted = [index(request) for request in plan.preempted]
        admitted = [index(request) for request in plan.admitted]
    except (AttributeError, TypeError) as error:
        raise PlanError(f"schedule() returned {plan!r:.100}, which is not a StepPlan of integers: {error}") from error
    for what, requests in (("preempted", preempted), ("admitted", admitted)):
        for request in requests:
            if requests.count(request) > 1:
                raise PlanError(f"stands {requests.count(request)} times in {what}", request)
    return scheduled, preempted, admitted
