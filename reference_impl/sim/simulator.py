"""A clock around a scheduler: requests arrive, steps take as long as the cost model says, tokens come out.

Owns: the clock, the clients and which request makes a token when. Knows nothing of memory: the scheduler and the memory
are those of the engine, and this loop calls them exactly as the engine does.
Time passes only in steps and in waiting for the next arrival. A request that arrives during a step is seen by the
scheduler at the step's end. Tokens of a step come out at its end. What the engine does between steps is part of the
cost model's launch term. A request that is refused at the door is counted under its reason and costs nothing.
Room: the requests that are alive; what is over is in histograms and a bounded series. Cost: one pass over the requests
of each plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from reference_impl.memory.accounting import Account
from reference_impl.memory.kv_memory import KVMemory, PlacedMemory
from reference_impl.memory.kv_policy import Refusal
from reference_impl.sched.plan import Plan
from reference_impl.sched.request import Request
from reference_impl.sched.surface import EngineScheduler
from reference_impl.sim.arrivals import Arrival, sampled_id, spelled
from reference_impl.sim.cost import CostModel
from reference_impl.sim.metrics import Metrics, Targets
from reference_impl.sim.work import StepWork, work_of

NOTHING_ASKED = "asks for no token"
ACCOUNT_EVERY = 16
"""Steps from one look at the memory to the next; a look stands for all of them, because it takes O(requests). Whoever
starts, stops or ends to run brings one of its own: a prompt's step may take longer than a hundred decodes, and who runs
is exact. What lies between two looks is the growth of those who run, by a token a step each.
"""

Progress = Callable[[int, float], None]
"""(requests over, clock in seconds), now and then."""
_PROGRESS_EVERY = 256


class SimulationError(Exception):
    """The scheduler broke its contract, so that time could not go on."""


class _Live:
    """A request in the system, with the moments that its metrics need."""

    __slots__ = ("arrival_s", "first_s", "last_s", "left", "output_tokens", "request", "sampled", "started_s")

    def __init__(self, request: Request, arrival_s: float, output_tokens: int) -> None:
        self.request = request
        self.arrival_s = arrival_s
        self.output_tokens = output_tokens
        self.left = output_tokens
        self.started_s = -1.0
        self.first_s = -1.0
        self.last_s = -1.0
        self.sampled = -1 if request.token_ids is None else sampled_id(request.request)


@dataclass(frozen=True)
class Settings:
    """How clients behave and what is measured.

    concurrency: so many clients that send their next request when the last one is answered, whatever the recorded
    times say; None sends at the recorded times. keep_contents: spell prompts that have prefix hashes.
    """

    concurrency: int | None = None
    targets: Targets = field(default_factory=Targets)
    account_every: int = ACCOUNT_EVERY
    keep_contents: bool = True

    def __post_init__(self) -> None:
        """Raises: ValueError on a count below 1."""
        for name, count in (("concurrency", self.concurrency), ("account_every", self.account_every)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")


def simulate(
    arrivals: Iterable[Arrival],
    scheduler: EngineScheduler,
    cost: CostModel,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
) -> Metrics:
    """Run until every request is answered or refused.

    Raises: ValueError on arrivals that go back in time; SimulationError if the scheduler has work and plans none.
    """
    run = _Run(arrivals, scheduler, cost, settings or Settings(), progress)
    while run.step():
        pass
    return run.metrics


class _Run:
    """The state of one simulation between two steps."""

    def __init__(
        self,
        arrivals: Iterable[Arrival],
        scheduler: EngineScheduler,
        cost: CostModel,
        settings: Settings,
        progress: Progress | None,
    ) -> None:
        self._arrivals = iter(arrivals)
        self._scheduler = scheduler
        self._memory: KVMemory = scheduler.memory
        self._cost = cost
        self._settings = settings
        # What is copied or swapped is counted in the memory's own blocks; a range has blocks of one token.
        self._block_tokens = self._memory.block_size if isinstance(self._memory, PlacedMemory) else 1
        self._progress = progress
        self.metrics = Metrics(settings.targets)
        self._live: dict[int, _Live] = {}
        self._next = next(self._arrivals, None)
        self._next_id = 0
        self._clock_s = 0.0 if settings.concurrency else (self._next.arrival_s if self._next else 0.0)
        self._sample: tuple[Account, int, int] = (self._memory.account(), 0, 0)
        self._sample_s = 0.0
        self._until_sample = 0

    def step(self) -> bool:
        """Let who is there arrive, then run one step or wait; False when nobody is left."""
        self._arrive()
        if not self._live:
            if self._next is None:
                self._finish()
                return False
            self._wait_until(self._next.arrival_s)
            return True
        plan = self._scheduler.schedule()
        started_s = self._clock_s
        seconds = self._cost.step_s(self._count(plan))
        self._note_memory(plan, seconds)
        self._clock_s = started_s + seconds
        self._admitted(plan, started_s)
        finished, sampled = self._tokens(plan, started_s, seconds)
        self._scheduler.finish_step(finished, sampled)
        self._leave(finished)
        return True

    # Arrivals -------------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        clients = self._settings.concurrency
        while (arrival := self._next) is not None:
            if (len(self._live) >= clients) if clients else (arrival.arrival_s > self._clock_s):
                return
            self._next = next(self._arrivals, None)
            if not clients and self._next is not None and self._next.arrival_s < arrival.arrival_s:
                raise ValueError(f"request {self._next_id + 1} arrives before the one in front of it")
            self._add(arrival, self._clock_s if clients else arrival.arrival_s)

    def _add(self, arrival: Arrival, arrival_s: float) -> None:
        number = self._next_id
        self._next_id += 1
        if arrival.output_tokens < 1:
            self._refuse(number, NOTHING_ASKED, arrival)
            return
        request = Request(
            number,
            arrival.prompt_tokens,
            arrival.max_new_tokens,
            token_ids=spelled(arrival) if self._settings.keep_contents else None,
            priority=arrival.priority,
            tenant=arrival.tenant,
            arrival_s=arrival_s,
            true_new_tokens=arrival.output_tokens,
        )
        refusal = self._scheduler.add(request)
        if refusal is not None:
            self._refuse(number, refusal.reason.value, arrival)
            return
        self._live[number] = _Live(request, arrival_s, arrival.output_tokens)
        self.metrics.prompt_tokens += arrival.prompt_tokens

    def _refuse(self, number: int, reason: str, arrival: Arrival) -> None:
        metrics = self.metrics
        if not metrics.refused:
            lengths = f"{arrival.prompt_tokens:,} prompt tokens and at most {arrival.max_new_tokens:,} new ones"
            metrics.first_refused = f"request {number}, {lengths}: {reason}"
        metrics.refused[reason] += 1

    def _wait_until(self, moment_s: float) -> None:
        self._take_sample(None, 0)
        self._sample_s = moment_s - self._clock_s
        self._clock_s = moment_s
        self._until_sample = 0

    # One step -------------------------------------------------------------------------------------------------

    def _count(self, plan: Plan) -> StepWork:
        """The plan's work, added to the total. Raises: SimulationError on a plan that leads nowhere."""
        work = work_of(plan, self._block_tokens)
        if not work.tokens and not work.swap_copies:
            name = type(self._scheduler).__name__
            refusal = "" if plan.refused is None else f" ({plan.refused})"
            raise SimulationError(f"{name} planned no token with {len(self._live)} requests to serve{refusal}")
        self.metrics.work += work
        return work

    def _note_memory(self, plan: Plan, seconds: float) -> None:
        metrics, running = self.metrics, self._scheduler.num_running
        metrics.busy_s += seconds
        metrics.most_running = max(metrics.most_running, running)
        changed = plan.admitted or plan.preempted or plan.swapped_out or plan.swapped_in
        if changed or self._until_sample == 0:
            self._take_sample(plan.refused, running)
            self._until_sample = self._settings.account_every
        self._until_sample -= 1
        self._sample_s += seconds

    def _take_sample(self, refusal: Refusal | None, running: int) -> None:
        """Write down the sample that held until now, and take a new one."""
        account, were_running, were_waiting = self._sample
        self.metrics.hold(account, were_running, were_waiting, self._sample_s)
        wanted = max(1, refusal.needed) if refusal is not None else 1
        self._sample = (self._memory.account(wanted), running, len(self._live) - running)
        self._sample_s = 0.0

    def _admitted(self, plan: Plan, started_s: float) -> None:
        for request in plan.admitted:
            live = self._live[request]
            if live.started_s < 0:
                live.started_s = started_s
                self.metrics.reused_tokens += plan.reused.get(request, 0)

    def _tokens(self, plan: Plan, started_s: float, seconds: float) -> tuple[set[int], dict[int, int]]:
        """Who makes a token in this step, and who is done with it; those who go on with contents get an id for it."""
        everyone, computed, now_s = self._live, plan.computed, self._clock_s
        gaps = self.metrics.latencies["itl_s"]
        finished: set[int] = set()
        sampled: dict[int, int] = {}
        steady = 0
        for request, new in plan.scheduled.items():
            live = everyone[request]
            if computed[request] + new != live.request.num_tokens:
                continue
            if live.last_s == started_s:
                steady += 1
            elif live.last_s >= 0:
                gaps.add(now_s - live.last_s)
            else:
                live.first_s = now_s
            live.last_s = now_s
            live.left -= 1
            if live.left == 0:
                finished.add(request)
            elif live.sampled >= 0:
                sampled[request] = live.sampled
        if steady:
            gaps.add(seconds, steady)
        return finished, sampled

    def _leave(self, finished: set[int]) -> None:
        if finished:
            self._until_sample = 0
        for number in finished:
            live = self._live.pop(number)
            arrival_s = live.arrival_s
            self.metrics.complete(
                live.started_s - arrival_s, live.first_s - arrival_s, live.last_s - arrival_s, live.output_tokens
            )
            if self._progress is not None and self.metrics.completed % _PROGRESS_EVERY == 0:
                self._progress(self.metrics.completed + self.metrics.refused.total(), self._clock_s)

    def _finish(self) -> None:
        self._take_sample(None, 0)
        counters, metrics = self._scheduler.counters, self.metrics
        metrics.preemptions = counters.preemptions
        metrics.swaps = counters.swaps_out
        metrics.recomputed_tokens = counters.recomputed_tokens
        if self._progress is not None:
            self._progress(self.metrics.completed + self.metrics.refused.total(), self._clock_s)
