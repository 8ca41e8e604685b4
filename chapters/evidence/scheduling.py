"""Evidence for "Continuous batching": the engine's two schedulers on the same requests, and what waits for what.

Owns: which replays the chapter may show of the engine. Knows nothing of how they are shown, nor of the chapter's model.
Schedulers, memories and prices are the engine's. The loop is that of `reference_impl.sim.simulator`, with one row a
request kept, so that a test can hold the two against each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from labkit.event_log import Event
from labkit.workloads import workload
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.sched import (
    ContinuousBatching,
    EngineScheduler,
    FairShare,
    FirstCome,
    Limits,
    Request,
    ShortestFirst,
    StaticBatching,
    WaitingQueue,
)
from reference_impl.sched.lifecycle import BEHIND
from reference_impl.sched.setup import Setup
from reference_impl.sched.setup import build as made
from reference_impl.sim.arrivals import Arrival, faster, poisson
from reference_impl.sim.cost import CostModel
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.work import StepWork, work_of

COST = CostModel(DEVICES["h100-sxm"], MODELS["llama-3.1-8b"])
LONGEST = 16_384
SETUP = Setup("paged", "continuous", COST.model.kv_tokens_on(COST.device), LONGEST)
REQUESTS, SEED = 1_500, 0
RATES = {"static": (1, 2, 3, 4, 6), "continuous": (2, 4, 8, 12, 16, 20, 22, 24, 28)}
"""Requests a second."""
OVERLOAD, BUSY, RECORDED_PER_S = 28, 24, 20
COUNTS = (750, 1_500, 3_000)
TTFT_S, TPOT_S = 1.0, 0.05
"""What a request must keep to be good."""
SCARCE = (("tokens", 2_048, 256), ("slots", 8_192, 64), ("blocks", 8_192, 1_024))
"""What is meant to be scarce, tokens a step, slots."""
PEOPLE, PEOPLE_PER_S, JOB, JOB_S = 300, 4, 1_000, 10.0
"""Requests of two tenants: people, and a job that sends all of its own at one moment."""

ANSWERS, SLOTS = (2, 9, 3, 1, 4, 2, 7, 2, 3, 5), 4
"""Answers of requests with prompts of one token, and how many may run."""
STORY_BLOCKS, STORY_SIZE, STORY_BUDGET, STORY_SLOTS = 9, 4, 8, 3
STORY = ((0, 6, 5), (0, 9, 5), (0, 3, 2), (0, 2, 3), (4, 21, 2), (4, 3, 2))
"""(step before which it comes, prompt, answer)."""


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    coming = conversations(REQUESTS)
    return {
        "source": workload("azure_conv").description,
        "small": {"answers": list(ANSWERS), "slots": SLOTS, "ends": small()},
        "story": story(),
        "machine": {
            "device": COST.device.name,
            "model": COST.model.name,
            "kv_tokens": SETUP.kv_tokens,
            "budget": SETUP.max_tokens_per_step,
            "slots": SETUP.max_running,
            "step_s": {str(rows): decode_s(rows, coming) for rows in (1, 16, 64, 256)},
        },
        "targets": {"ttft_s": TTFT_S, "tpot_s": TPOT_S},
        "mean_tokens": _mean([row.prompt_tokens + row.output_tokens / 2 for row in coming]),
        "load": {name: [at_rate(REQUESTS, rate, name) for rate in rates] for name, rates in RATES.items()},
        "recorded": recorded(coming, RECORDED_PER_S),
        "requests": REQUESTS,
        "growth": [{"requests": n, **at_rate(n, OVERLOAD, "continuous")} for n in COUNTS],
        "scarce": [scarcity(*row) for row in SCARCE],
        "orders": orders(coming),
        "tenants": tenants(),
    }


@dataclass
class Served:
    """A request of a replay; seconds on the replay's clock. `step`: the step in which it made its last token."""

    prompt_tokens: int
    output_tokens: int
    tenant: str
    arrival_s: float
    first_s: float = -1.0
    last_s: float = -1.0
    step: int = 0

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """0 for an answer of one token."""
        return (self.last_s - self.first_s) / max(1, self.output_tokens - 1)


@dataclass
class Replay:
    """All that came, the clock at the end, seconds in which the head waited by reason, and rows that made nothing."""

    served: list[Served]
    end_s: float
    waited_s: dict[str, float]
    rows: int
    made: int

    @property
    def seconds(self) -> float:
        """From the first arrival to the last token."""
        return self.end_s - min(row.arrival_s for row in self.served)


def replay(arrivals: Iterable[Arrival], scheduler: EngineScheduler, cost: CostModel = COST) -> Replay:
    """As `simulate`, with a row for each request. `rows`: places computed for decodes and prompts, `made`: tokens."""
    coming = list(arrivals)
    served = [Served(a.prompt_tokens, a.output_tokens, a.tenant, a.arrival_s) for a in coming]
    clock_s = coming[0].arrival_s
    here = steps = rows = made_tokens = 0
    live: dict[int, tuple[Request, int]] = {}
    waited_s: dict[str, float] = defaultdict(float)
    while here < len(coming) or live:
        if not live:
            clock_s = max(clock_s, coming[here].arrival_s)
        while here < len(coming) and coming[here].arrival_s <= clock_s:
            live[here] = (_request(here, coming[here]), coming[here].output_tokens)
            assert scheduler.add(live[here][0]) is None, "every request of the replay can be served"
            here += 1
        plan = scheduler.schedule()
        work = work_of(plan, SETUP.block_size)
        seconds = cost.step_s(work)
        for reason in scheduler.num_waiting_by_reason():
            if reason != BEHIND:
                waited_s[reason] += seconds
        clock_s, steps, rows = clock_s + seconds, steps + 1, rows + work.rows
        finished = set()
        for number, new in plan.scheduled.items():
            request, left = live[number]
            if plan.computed[number] + new != request.num_tokens:
                continue
            made_tokens += 1
            row = served[number]
            row.first_s = clock_s if row.first_s < 0 else row.first_s
            row.last_s, row.step, live[number] = clock_s, steps, (request, left - 1)
            if left == 1:
                finished.add(number)
        scheduler.finish_step(finished)
        for number in finished:
            del live[number]
    scheduler.check_invariants()
    return Replay(served, clock_s, waited_s, rows, made_tokens)


def _request(number: int, arrival: Arrival) -> Request:
    return Request(
        number,
        arrival.prompt_tokens,
        arrival.max_new_tokens,
        tenant=arrival.tenant,
        arrival_s=arrival.arrival_s,
        true_new_tokens=arrival.output_tokens,
    )


def conversations(count: int) -> list[Arrival]:
    """The first requests of the workload that make a token and fit, at their recorded times."""
    source = workload("azure_conv")
    rows = zip(source.arrival_s.tolist(), source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    fitting = [Arrival(at, p, new, new) for at, p, new in rows if new >= 1 and p + new <= LONGEST]
    return fitting[:count]


@cache
def at_moments(count: int, rate_per_s: float, setup: Setup) -> Replay:
    """The first `count` requests at Poisson moments of this rate. Several tables ask for some of these."""
    return replay(poisson(conversations(count), rate_per_s, SEED), made(setup))


def at_rate(count: int, rate_per_s: float, scheduler: str) -> dict[str, Any]:
    """The first `count` requests at this rate: latencies, what was good, and rows that made a token."""
    done = at_moments(count, rate_per_s, replace(SETUP, scheduler=scheduler))
    good = sum(row.ttft_s <= TTFT_S and row.tpot_s <= TPOT_S for row in done.served)
    return {
        "rate": rate_per_s,
        "ttft": _quantiles([row.ttft_s for row in done.served]),
        "tpot": _quantiles([row.tpot_s for row in done.served]),
        "in_system": sum(row.last_s - row.arrival_s for row in done.served) / done.seconds,
        "e2e_mean_s": _mean([row.last_s - row.arrival_s for row in done.served]),
        "served_per_s": len(done.served) / done.seconds,
        "good_per_s": good / done.seconds,
        "good_share": good / len(done.served),
        "useful": done.made / done.rows,
        "tokens_per_s": sum(row.output_tokens for row in done.served) / done.seconds,
        "last_arrival_s": max(row.arrival_s for row in done.served),
    }


def recorded(coming: list[Arrival], rate_per_s: float) -> dict[str, Any]:
    """The same requests at their own moments, sped up to this mean rate."""
    start_s = coming[0].arrival_s
    own = [replace(row, arrival_s=row.arrival_s - start_s) for row in coming]
    factor = rate_per_s * own[-1].arrival_s / (len(own) - 1)
    done = replay(faster(own, factor), made(SETUP))
    return {"rate": rate_per_s, "ttft": _quantiles([row.ttft_s for row in done.served])}


def scarcity(name: str, budget: int, slots: int) -> dict[str, Any]:
    """For which of the three the head of the queue waited, as shares of the time in which it waited."""
    setup = replace(SETUP, max_tokens_per_step=budget, max_running=slots)
    done = at_moments(REQUESTS, OVERLOAD, setup)
    waited = {"tokens": 0.0, "slots": 0.0, "blocks": 0.0}
    for reason, seconds in done.waited_s.items():
        waited[_what(reason)] += seconds
    total = sum(waited.values())
    return {
        "name": name,
        "budget": budget,
        "slots": slots,
        "shares": {what: seconds / total for what, seconds in waited.items()},
        "served_per_s": len(done.served) / done.seconds,
        "tpot": _quantiles([row.tpot_s for row in done.served]),
    }


def _what(reason: str) -> str:
    """Which scarcity a scheduler's reason is about."""
    if reason.startswith("the step has its"):
        return "tokens"
    return "slots" if reason == "as many run as may" else "blocks"


def orders(coming: list[Arrival]) -> list[dict[str, Any]]:
    """First come and shortest prompt first on a busy server: the shorter half, the longest tenth, and all."""
    lengths = sorted(row.prompt_tokens for row in coming)
    half, tenth = lengths[len(lengths) // 2], lengths[9 * len(lengths) // 10]
    rows = []
    for name, done in (
        ("first come", at_moments(REQUESTS, BUSY, SETUP)),
        ("shortest first", replay(poisson(coming, BUSY, SEED), made(SETUP, queue=ShortestFirst()))),
    ):
        served = done.served
        rows.append(
            {
                "order": name,
                "all": _quantiles([row.ttft_s for row in served]),
                "short": _quantiles([row.ttft_s for row in served if row.prompt_tokens < half]),
                "long": _quantiles([row.ttft_s for row in served if row.prompt_tokens >= tenth]),
            }
        )
    return rows


def tenants() -> dict[str, Any]:
    """People who ask now and then, and a job of a thousand requests at one moment: served as they came, and fairly."""
    everyone = conversations(PEOPLE + JOB)
    people = [replace(row, tenant="people") for row in poisson(everyone[:PEOPLE], PEOPLE_PER_S, SEED)]
    job = [replace(row, tenant="job", arrival_s=JOB_S) for row in everyone[PEOPLE:]]
    mixed = sorted([*people, *job], key=lambda row: row.arrival_s)
    rows = []
    queues: tuple[tuple[str, WaitingQueue], ...] = (("first come", FirstCome()), ("fair share", FairShare()))
    for name, queue in queues:
        done = replay(mixed, made(SETUP, queue=queue))
        ends = max(row.last_s for row in done.served if row.tenant == "job")
        # Those who came before the job met an empty server.
        met = [row.ttft_s for row in done.served if row.tenant == "people" and JOB_S <= row.arrival_s < ends]
        rows.append({"order": name, "people": _quantiles(met), "job_s": ends - JOB_S, "met": len(met)})
    return {"rows": rows, "job": JOB, "per_s": PEOPLE_PER_S}


def decode_s(rows: int, coming: list[Arrival]) -> float:
    """Seconds for a step in which `rows` requests of mean length decode."""
    context = round(_mean([row.prompt_tokens + row.output_tokens / 2 for row in coming]))
    return COST.step_s(StepWork(1, rows, rows, rows * context, rows * context))


def small() -> dict[str, list[int]]:
    """The step in which each small request ends, under both schedulers."""
    ends = {}
    for name, scheduler in (
        ("static", StaticBatching(KVManager(64, 4), Limits(None, SLOTS))),
        ("continuous", ContinuousBatching(KVManager(64, 4), Limits(None, SLOTS))),
    ):
        done = replay([Arrival(0.0, 1, new, new) for new in ANSWERS], scheduler)
        ends[name] = [row.step for row in done.served]
    return ends


def story() -> dict[str, Any]:
    """A few requests and three scarcities, a step of the scheduler a step of the figure; told by the engine's log.

    The events are the log's. Those of one step are put under one call, and the last of the plan, before anything is
    computed or given back, has the plan's reason to wait.
    """
    log = EventLog()
    scheduler = ContinuousBatching(
        KVManager(STORY_BLOCKS, STORY_SIZE, log=log), Limits(STORY_BUDGET, STORY_SLOTS), log=log
    )
    requests = [Request(number, prompt, new) for number, (_, prompt, new) in enumerate(STORY)]
    left = [new for _, _, new in STORY]
    events: list[Event] = [dict(event) for event in log.events]
    waits: list[dict[str, Any]] = []
    step = 0
    while any(left):
        heard = len(log.events)
        for request in requests:
            if STORY[request.request][0] == step:
                assert scheduler.add(request) is None, "every request of the story can be served"
        plan = scheduler.schedule()
        planned = len(log.events) - heard
        why = [reason for reason in scheduler.num_waiting_by_reason() if reason != BEHIND]
        waiting = [row.request for row in requests if left[row.request] and row not in scheduler.running.in_order()]
        makes = {r for r, new in plan.scheduled.items() if plan.computed[r] + new == requests[r].num_tokens}
        for number in makes:
            left[number] -= 1
        scheduler.finish_step({number for number in makes if not left[number]})
        step += 1
        line = [r for r in waiting if STORY[r][0] < step]
        waits.append({"step": step, "line": line, "for": _what(why[0]) if why else "", "tokens": dict(plan.scheduled)})
        events += _as_one(log.events[heard:], planned, step, waits[-1])
    scheduler.check_invariants()
    return {"events": events, "waits": waits, "budget": STORY_BUDGET, "slots": STORY_SLOTS, "blocks": STORY_BLOCKS}


_FOR = {
    "tokens": f"the step has its {STORY_BUDGET} tokens",
    "slots": f"{STORY_SLOTS} run, and no more may",
    "blocks": "it needs more blocks than are free",
}


def _as_one(events: Sequence[Event], planned: int, step: int, wait: dict[str, Any]) -> list[Event]:
    """All events of one step of the scheduler, `planned` of them the plan's, as one step of the figure.

    Only its last state is shown.
    """
    tokens = wait["tokens"]
    told = f"step {step}: {' + '.join(map(str, tokens.values()))} = {sum(tokens.values())} tokens"
    one = [{name: event[name] for name in ("kind", "sentence", "seq", "blocks")} for event in events]
    one = [{"call": step, "told": told, **event} for event in one]
    if wait["for"]:
        head, *others = wait["line"]
        behind = f", and behind it request {' and '.join(map(str, others))}" if others else ""
        one[max(0, planned - 1)]["sentence"] += f" Request {head} waits: {_FOR[wait['for']]}{behind}."
    one[-1] |= {name: events[-1][name] for name in ("state", "fault")}
    return one


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "max": ordered[-1],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
