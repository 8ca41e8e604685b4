"""Evidence for "Preemption": what running out of blocks costs, told and replayed by the engine's own scheduler.

Owns: which replays the chapter may show of the engine. Knows nothing of how they are shown, nor of the chapter's model.
Schedulers, memories and prices are the engine's. Lengths are those of the book's workload; that answers are several
times as long, that prompts begin alike and when requests come is assumed, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from labkit.event_log import Event
from labkit.workloads import HASHED_TOKENS, workload
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.sched import ContinuousBatching, Limits, Request
from reference_impl.sched.plan import Plan
from reference_impl.sim import chunked_prefill
from reference_impl.sim.arrivals import Arrival, poisson
from reference_impl.sim.cost import CostModel
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.metrics import Metrics
from reference_impl.sim.simulator import Settings, simulate
from reference_impl.sim.work import StepWork

COST = CostModel(DEVICES["h100-sxm"], MODELS["llama-3.1-8b"])
BLOCK, KV_GIB, BUDGET = 16, 32, 2_048
BLOCKS = KV_GIB * 2**30 // (BLOCK * COST.model.kv_bytes_per_token)
ANYBODY = Limits(BUDGET, 1_024, 200_000)

REQUESTS, RATE, TIMES = 400, 4, 8
"""Requests, arrivals a second, and how many times as long answers are as recorded."""
WATERMARKS = (0.0, 0.02, 0.05, 0.1, 0.2)
VICTIMS = ("last", "fewest_tokens", "most_freed")
BUDGETS, CHAT_RATE = (256, 512, 1_024, 2_048, 4_096), 12
SIZES, VICTIM_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256), 1_024

LONG, LONG_ANSWER, FULL = 100_000, 2_000, 0.9
"""Prompts of the thrash, their answers, and the share of memory that four of them fill."""

INCIDENT, SYSTEM, KEPT = 400, 2_048, 0.05
"""Requests of the incident, tokens of the system prompt, and the watermark of the remedy."""

STORY_BLOCKS, STORY_SIZE, STORY_HOST, STORY_SWAPS = 6, 4, 4, 9
STORY = ((5, 10), (5, 9), (5, 6))
"""(prompt, answer). A victim of STORY_SWAPS computed tokens or more goes to the host."""


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    source = workload("azure_conv")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    rows = [(prompt, output) for prompt, output in pairs if output >= 1][:REQUESTS]
    # The first of both tables: nothing is kept free, and the last one in is the victim.
    plain = _row(_long_answers(rows))
    return {
        "source": source.description,
        "setting": {
            "requests": REQUESTS,
            "rate": RATE,
            "times": TIMES,
            "kv_gib": KV_GIB,
            "blocks": BLOCKS,
            "block": BLOCK,
            "device": COST.device.name,
            "model": COST.model.name,
            "budget": BUDGET,
        },
        "watermarks": [
            {"watermark": mark, **(_row(_long_answers(rows, watermark=mark)) if mark else plain)} for mark in WATERMARKS
        ],
        "victims": [
            {"victim": name, **(plain if name == "last" else _row(_long_answers(rows, victim=name)))}
            for name in VICTIMS
        ],
        "swap": _row(_long_answers(rows, recovery="swap")),
        "story": story(),
        "prices": prices(),
        "stall": [_stall(published) for published in chunked_prefill.PUBLISHED],
        "budgets": [_budget(rows, budget) for budget in BUDGETS],
        "thrash": {"first_chunk": thrash(full_fit=False), "whole": thrash(full_fit=True)},
        "thrash_setting": {"prompt": LONG, "answer": LONG_ANSWER, "full": FULL},
        "incident": [{"name": name, **incident(rows[:INCIDENT], case)} for name, case in CASES.items()],
        "incident_setting": {"requests": INCIDENT, "system": SYSTEM, "kept": KEPT},
    }


def _long_answers(
    rows: list[tuple[int, int]], *, watermark: float = 0.0, victim: str = "last", recovery: Any = "recompute"
) -> Metrics:
    """The workload with long answers through one scheduler."""
    host = 0 if recovery == "recompute" else BLOCKS
    memory = KVManager(BLOCKS, BLOCK, watermark=watermark, num_host_blocks=host)
    scheduler = ContinuousBatching(memory, ANYBODY, victim=victim, recovery=recovery)
    coming = (Arrival(0.0, prompt, output * TIMES, output * TIMES) for prompt, output in rows)
    return simulate(poisson(coming, RATE, 0), scheduler, COST, Settings(account_every=64))


def _row(done: Metrics) -> dict[str, Any]:
    ttft, gap, tpot = (done.latencies[name] for name in ("ttft_s", "itl_s", "tpot_s"))
    return {
        "preemptions": done.preemptions,
        "swaps": done.swaps,
        "recomputed": done.recomputed_tokens,
        "tokens_per_s": done.output_tokens / done.duration_s,
        "ttft_p50_s": ttft.quantile(0.5),
        "ttft_p99_s": ttft.quantile(0.99),
        "gap_p99_ms": gap.quantile(0.99) * 1e3,
        "gap_max_s": gap.maximum,
        "tpot_p99_ms": tpot.quantile(0.99) * 1e3,
        "e2e_s": done.latencies["e2e_s"].mean,
        "most_running": done.most_running,
        "refused": done.refused.total(),
    }


def prices() -> dict[str, Any]:
    """What it costs to bring a victim back: its tokens computed again, or its blocks moved out and in, in ms.

    Two kinds of copies: one for each block, and one for each block, layer and K or V.
    """
    tokens, shape = VICTIM_TOKENS, COST.model.shape
    again = COST.step_s(StepWork(0, 0, tokens, tokens * (tokens + 1) // 2, tokens))
    moved = 2 * tokens * COST.model.kv_bytes_per_token / COST.device.link_bytes_per_s
    copies = {"block": 1, "layer": 2 * shape.layers}
    return {
        "tokens": tokens,
        "kv_bytes": COST.model.kv_bytes_per_token,
        "link_gb_s": COST.device.link_bytes_per_s / 1e9,
        "copy_us": COST.rates.copy_s * 1e6,
        "linear_gflop": shape.linear_flops(1) / 1e9,
        "tflop_s": COST.device.flops_per_s * COST.rates.linear / 1e12,
        "share": COST.rates.linear,
        "moved_ms": moved * 1e3,
        "recompute_ms": again * 1e3,
        "copies": copies,
        "swap_ms": {
            how: [(moved + 2 * -(-tokens // size) * each * COST.rates.copy_s) * 1e3 for size in SIZES]
            for how, each in copies.items()
        },
        "sizes": list(SIZES),
    }


def _stall(published: chunked_prefill.Row) -> dict[str, Any]:
    ours = chunked_prefill.effect(published.prompt_tokens)
    return {
        "prompt": ours.prompt_tokens,
        **{
            whose: {"whole_ms": row.whole_ms, "chunked_ms": row.chunked_ms, "later": row.later}
            for whose, row in (("ours", ours), ("published", published))
        },
    }


def _budget(rows: list[tuple[int, int]], budget: int) -> dict[str, Any]:
    """The workload as recorded, in chunks of at most `budget` tokens a step; nobody is preempted."""
    scheduler = ContinuousBatching(KVManager(BLOCKS, BLOCK), replace(ANYBODY, max_tokens_per_step=budget))
    coming = (Arrival(0.0, prompt, output, output) for prompt, output in rows)
    return {"budget": budget, **_row(simulate(poisson(coming, CHAT_RATE, 0), scheduler, COST))}


def thrash(*, full_fit: bool) -> dict[str, Any]:
    """Four long prompts that fill most of the memory, and a fifth a second later."""
    memory = KVManager(int(4 * LONG / FULL) // BLOCK, BLOCK, full_fit=full_fit)
    times = (0.0, 0.0, 0.0, 0.0, 1.0)
    coming = (Arrival(at, LONG, LONG_ANSWER, LONG_ANSWER) for at in times)
    done = simulate(coming, ContinuousBatching(memory, ANYBODY), COST)
    return {**_row(done), "computed": done.work.tokens, "gap_p50_ms": done.latencies["itl_s"].quantile(0.5) * 1e3}


@dataclass(frozen=True)
class Case:
    """A day of the incident: whether prompts begin alike, how long answers are, and the settings of the server."""

    alike: bool
    times: int
    budget: int
    watermark: float = 0.0
    rate: float = RATE


BEFORE, AFTER = Case(True, 4, 512), Case(False, 8, 8_192)
CAPPED = replace(AFTER, times=4, budget=512, watermark=KEPT)
CASES = {
    "before": BEFORE,
    "incident": AFTER,
    "without the date": replace(AFTER, alike=True),
    "without long answers": replace(AFTER, times=4),
    "without the large budget": replace(AFTER, budget=512),
    "with a watermark": replace(AFTER, watermark=KEPT),
    "first": CAPPED,
    "second": replace(CAPPED, alike=True),
    "third": Case(True, 8, 512, KEPT, RATE / 3),
}
"""The day before, the incident, each change taken back alone, a symptom treated, and the remedy in three steps."""


class Watched(ContinuousBatching):
    """Counts what the prefix cache found: for requests that come in for the first time, and for victims again."""

    def __init__(self, memory: KVManager, limits: Limits) -> None:
        super().__init__(memory, limits)
        self._seen: set[int] = set()
        self.first = self.again = 0

    def schedule(self) -> Plan:
        plan = super().schedule()
        for request in plan.admitted:
            found = plan.reused.get(request, 0)
            if request in self._seen:
                self.again += found
            else:
                self.first += found
                self._seen.add(request)
        return plan


def incident(rows: list[tuple[int, int]], case: Case) -> dict[str, Any]:
    """One case, and two hit rates: over prompts alone, and with what victims found of their own."""
    memory = KVManager(BLOCKS, BLOCK, prefix_cache="hash", watermark=case.watermark)
    scheduler = Watched(memory, replace(ANYBODY, max_tokens_per_step=case.budget))
    done = simulate(poisson(_prompts(rows, case), case.rate, 0), scheduler, COST, Settings(account_every=64))
    asked, asked_again = done.prompt_tokens, done.recomputed_tokens + scheduler.again
    return {
        **_row(done),
        "hit_rate": scheduler.first / asked,
        "shown_rate": (scheduler.first + scheduler.again) / (asked + asked_again),
    }


def _prompts(rows: list[tuple[int, int]], case: Case) -> Iterator[Arrival]:
    """Each prompt behind the system prompt, which is the same for all unless it begins with a date."""
    pieces = SYSTEM // HASHED_TOKENS
    fresh = count(pieces)
    for prompt, output in rows:
        head = list(range(pieces)) if case.alike else [next(fresh) for _ in range(pieces)]
        own = [next(fresh) for _ in range(-(-prompt // HASHED_TOKENS))]
        yield Arrival(0.0, SYSTEM + prompt, output * case.times, output * case.times, head + own)


def story() -> dict[str, Any]:
    """Two victims, one computed again and one moved to the host; a step of the scheduler a step of the figure."""
    log = EventLog()
    memory = KVManager(STORY_BLOCKS, STORY_SIZE, num_host_blocks=STORY_HOST, log=log)
    scheduler = ContinuousBatching(
        memory,
        Limits(16, 8),
        recovery=lambda request: "swap" if request.num_computed >= STORY_SWAPS else "recompute",
        log=log,
    )
    requests = [Request(number, prompt, new) for number, (prompt, new) in enumerate(STORY)]
    left = [new for _, new in STORY]
    events: list[Event] = [dict(event) for event in log.events]
    steps: list[dict[str, Any]] = []
    for request in requests:
        assert scheduler.add(request) is None, "every request of the story can be served"
    while any(left):
        heard = len(log.events)
        plan = scheduler.schedule()
        makes = {r for r, new in plan.scheduled.items() if plan.computed[r] + new == requests[r].num_tokens}
        for number in makes:
            left[number] -= 1
        scheduler.finish_step({number for number in makes if not left[number]})
        steps.append({"preempted": list(plan.preempted), "out": list(plan.swapped_out), "in": list(plan.swapped_in)})
        steps[-1] |= {"tokens": {str(r): new for r, new in plan.scheduled.items()}, "left": list(left)}
        events += _as_one(log.events[heard:], len(steps), dict(plan.scheduled))
    scheduler.check_invariants()
    return {"events": events, "steps": steps, "blocks": STORY_BLOCKS, "size": STORY_SIZE, "swaps_from": STORY_SWAPS}


def _as_one(events: list[Event], step: int, tokens: dict[int, int]) -> list[Event]:
    """All events of one step of the scheduler as one step of the figure; only its last state is shown."""
    made = " + ".join(map(str, tokens.values()))
    told = f"step {step}: " + (f"{made} = {sum(tokens.values())} tokens" if len(tokens) > 1 else f"{made} computed")
    one = [{name: event[name] for name in ("kind", "sentence", "seq", "blocks")} for event in events]
    # The log has a refusal for each time that memory was asked, and a scheduler asks again; once is enough to read.
    one = [event for place, event in enumerate(one) if place == 0 or event != one[place - 1]]
    one = [{"call": step, "told": told, **event} for event in one]
    one[-1] |= {name: events[-1][name] for name in ("state", "fault")}
    return one
