"""Evidence for "An engine that adds up": one job replayed nine times, an incident, and whether the tokens stay equal.

Owns: which replays the chapter may show of the engine. Knows nothing of how they are shown.
Every row has the same requests, the same bytes and the same clock (`reference_impl.sim.simulator`). Lengths are those
of the workload. What prompts say is invented, for the trace has lengths alone: every prompt longer than `SHARED` begins
with the same tokens. Only a prefix cache looks at that.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

import reference_impl.bench as bench
from labkit.workloads import HASHED_TOKENS, workload
from reference_impl.engine.build import build_engine
from reference_impl.engine.generate import Ask, generate
from reference_impl.engine.options import EngineSettings
from reference_impl.memory import POLICIES, KVManager, Sizes
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.model.loader import load_model
from reference_impl.model.sampling import SamplingParams
from reference_impl.padding import bucketed
from reference_impl.sched import ContinuousBatching, EngineScheduler, Limits, StaticBatching
from reference_impl.sched.plan import Plan
from reference_impl.sched.prefill_first import PrefillFirst
from reference_impl.sim.arrivals import Arrival, poisson
from reference_impl.sim.cost import CostModel
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.metrics import Metrics
from reference_impl.sim.simulator import Settings, simulate

COST = CostModel(DEVICES["h100-sxm"], MODELS["llama-3.1-8b"])
CAPACITY, LONGEST, ANSWER_LIMIT = 131_072, 8_192, 1_000
"""Tokens of KV memory, of the longest request, and of an answer at most, which every caller states."""
BLOCK, SLOTS, BUDGET = 16, 256, 2_048
REQUESTS, SHARED = 1_000, HASHED_TOKENS
BUCKETS = tuple(2**power for power in range(6, 14))
WHOLE = Limits(None, SLOTS, LONGEST)
CHUNKED = Limits(BUDGET, SLOTS, LONGEST)

STREAMS, RATE_PER_S, LONGER, LARGE_BLOCK, FEW_SLOTS, SEED = 1_500, 18, 1.3, 256, 84, 0
"""The incident: requests, how many a second, how much longer answers are in one replay, and other sizes."""

ANSWERS, NEW_TOKENS = 24, 48
WAYS: dict[str, dict[str, Any]] = {
    "one request at a time": {"max_running": 1, "prefix_cache": "none"},
    "padded": {"block_allocator": "padded"},
    "reserved": {"block_allocator": "contiguous"},
    "power of two": {"block_allocator": "pow2"},
    "paged": {"prefix_cache": "none"},
    "shared": {"prefix_cache": "hash"},
    "chunked": {"prefix_cache": "none", "max_tokens_per_step": 24, "max_running": 12},
}
"""Ways to run the real engine, each as changes of its settings."""


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    queue = requests()[:REQUESTS]
    ladder = rows(queue)
    return {
        "source": workload("azure_conv").description,
        "queue": [[one.prompt_tokens, one.output_tokens] for one in queue],
        "sharing": sum(one.prompt_tokens > SHARED for one in queue),
        "sizes": {
            "capacity": CAPACITY,
            "longest": LONGEST,
            "answer_limit": ANSWER_LIMIT,
            "shared": SHARED,
            "budget": BUDGET,
            "slots": SLOTS,
            "block": BLOCK,
            "kv_bytes": COST.model.kv_bytes_per_token,
            "model": COST.model.name,
            "device": COST.device.name,
        },
        "rows": ladder,
        "square": square(queue, ladder),
        "incident": incident(),
        "tokens": {dtype: same_tokens(dtype) for dtype in ("float32", "bfloat16")},
        "measured": measured(),
    }


def requests(*, is_shared: bool = True, longer: float = 1.0) -> list[Arrival]:
    """The requests of the workload that fit the limits, all there at 0 s, each with the contents of its prompt."""
    source = workload("azure_conv")
    own = count(1)
    found = []
    for prompt, new in zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True):
        if not 1 <= new <= ANSWER_LIMIT or prompt + ANSWER_LIMIT > LONGEST:
            continue
        hashes = [next(own) for _ in range(-(-prompt // HASHED_TOKENS))]
        if is_shared and prompt > SHARED:
            hashes[0] = 0
        answer = min(ANSWER_LIMIT, round(new * longer))
        found.append(Arrival(0.0, prompt, answer, ANSWER_LIMIT, prefix_hashes=hashes))
    return found


# The scoreboard -----------------------------------------------------------------------------------------------------


class PackedBatches(StaticBatching):
    """Static batches whose tokens are laid end to end: neither pads nor rows that are done are computed."""

    def schedule(self) -> Plan:
        return replace(super().schedule(), rectangle=None)


def ranges(name: str) -> PolicyMemory:
    """The memory of this policy, `CAPACITY` tokens large."""
    return PolicyMemory(POLICIES[name](Sizes(CAPACITY, LONGEST, BLOCK)))


def blocks(prefix_cache: Any = "none", size: int = BLOCK) -> KVManager:
    """Blocks as tokens come, in as many bytes."""
    return KVManager(CAPACITY // size, size, prefix_cache=prefix_cache)


LADDER: tuple[tuple[str, Callable[[], EngineScheduler]], ...] = (
    ("padded", lambda: StaticBatching(ranges("padded"), WHOLE)),
    ("bucketed", lambda: StaticBatching(ranges("padded"), WHOLE)),
    ("packed", lambda: PackedBatches(ranges("padded"), WHOLE)),
    ("reserved", lambda: PackedBatches(ranges("reserve_max"), WHOLE)),
    ("power of two", lambda: PackedBatches(ranges("pow2"), WHOLE)),
    ("paged", lambda: PackedBatches(blocks(), WHOLE)),
    ("shared", lambda: PackedBatches(blocks("hash"), WHOLE)),
    ("continuous", lambda: PrefillFirst(blocks("hash"), WHOLE)),
    ("chunked", lambda: ContinuousBatching(blocks("hash"), CHUNKED)),
)


def rows(queue: list[Arrival]) -> list[dict[str, Any]]:
    """One row of the scoreboard for each step of the ladder."""
    needed = sum(one.prompt_tokens + one.output_tokens - 1 for one in queue)
    found = []
    for name, made in LADDER:
        reads = Settings(keep_contents=name in ("shared", "continuous", "chunked"))
        met = simulate(iter(in_buckets(queue) if name == "bucketed" else queue), made(), COST, reads)
        is_rectangle = name in ("padded", "bucketed")
        assert met.completed == len(queue), "a row that refuses somebody is no row"
        assert not (is_rectangle and (met.preemptions or met.reused_tokens)), "else a pad is not told from the rest"
        padded = 1 - needed / met.work.tokens if is_rectangle else 0.0
        found.append({"name": name, **_row(met), "padded": padded, "needed": needed, "series": _series(met)})
    return found


def in_buckets(queue: list[Arrival]) -> list[Arrival]:
    """The same requests, bucket by bucket; inside one as they came."""
    order = bucketed([one.prompt_tokens for one in queue], BUCKETS, CAPACITY)
    return [queue[place] for batch in order for place in batch]


def square(queue: list[Arrival], ladder: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Two memories under two schedulers, and nothing else changed; the static ones are rows of the ladder."""
    memories: dict[str, Callable[[], Any]] = {"reserved": lambda: ranges("reserve_max"), "paged": blocks}
    static = {row["name"]: {key: value for key, value in row.items() if key != "series"} for row in ladder}
    blind = Settings(keep_contents=False)
    return {
        name: {
            "static": static[name],
            "continuous": _row(simulate(iter(queue), ContinuousBatching(memory(), CHUNKED), COST, blind)),
        }
        for name, memory in memories.items()
    }


def _row(met: Metrics) -> dict[str, Any]:
    means = met.memory.means()
    return {
        "running": means["running"],
        "waiting": means["waiting"],
        "most_running": met.most_running,
        "tokens_per_s": met.output_tokens / met.duration_s,
        "output_tokens": met.output_tokens,
        "seconds": met.duration_s,
        "steps": met.work.steps,
        "computed": met.work.tokens,
        "hit_rate": met.reused_tokens / met.prompt_tokens,
        "preemptions": met.preemptions,
        "recomputed": met.recomputed_tokens,
        "ttft_p50_s": met.latencies["ttft_s"].quantile(0.5),
        "ttft_p99_s": met.latencies["ttft_s"].quantile(0.99),
        "longest_pause_s": met.latencies["itl_s"].maximum,
        "shares": {name: means[name] for name in ("held", "reserved", "internal", "tail", "external", "free")},
    }


def _series(met: Metrics, most: int = 512) -> dict[str, list[float]]:
    columns = met.memory.columns()
    stride = -(-len(columns["time_s"]) // most)
    return {name: [round(value, 4) for value in values[::stride]] for name, values in columns.items()}


# The incident -------------------------------------------------------------------------------------------------------


def incident() -> dict[str, Any]:
    """The same streams with one thing changed in each replay, and with two settings that an operator might turn."""

    def replayed(queue: list[Arrival], size: int = BLOCK, limits: Limits = CHUNKED) -> dict[str, Any]:
        scheduler = ContinuousBatching(blocks("hash", size), limits)
        met = simulate(poisson(queue[:STREAMS], RATE_PER_S, SEED), scheduler, COST)
        row = _row(met)
        series = _series(met, 128)
        each = row["shares"]["held"] * CAPACITY / row["running"]
        return {**row, "held_each": each, "series": {name: series[name] for name in ("time_s", "held", "waiting")}}

    alike, apart = requests(), requests(is_shared=False)
    few = Limits(BUDGET, FEW_SLOTS, LONGEST)
    return {
        "streams": STREAMS,
        "rate": RATE_PER_S,
        "longer": LONGER,
        "large_block": LARGE_BLOCK,
        "few_slots": FEW_SLOTS,
        "replays": {
            "before": replayed(alike),
            "growth": replayed(requests(longer=LONGER)),
            "fragmentation": replayed(alike, LARGE_BLOCK),
            "prefix": replayed(apart),
            "slots": replayed(apart, limits=few),
        },
    }


# The same tokens ----------------------------------------------------------------------------------------------------


def same_tokens(dtype: str) -> dict[str, int]:
    """How many greedy answers of the engine equal those of one request at a time, each way; weights are random."""
    torch.set_num_threads(1)
    rng = random.Random(SEED)
    start = [7] * 32
    prompts = [start + [rng.randrange(256) for _ in range(rng.choice((1, 5, 17, 90, 150)))] for _ in range(ANSWERS)]
    loaded = load_model("tiny", dtype=dtype, device="cpu")
    settings = EngineSettings(model="tiny", dtype=dtype, kv_memory_bytes=8 * 2**20, max_context_tokens=256)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    first: list[list[int]] = []
    equal = {}
    for name, changes in WAYS.items():
        engine = build_engine(replace(settings, **changes), loaded=loaded).engine
        replies, _ = generate(engine, [Ask(list(prompt), params) for prompt in prompts])
        answers = [reply.answers[0].token_ids for reply in replies]
        assert all(len(answer) == NEW_TOKENS for answer in answers)
        first = first or answers
        equal[name] = sum(mine == theirs for mine, theirs in zip(answers, first, strict=True))
    return equal


def measured() -> dict[str, Any]:
    """The kept record of a real run on a GPU: another model, another workload, the same question."""
    record = json.loads((Path(bench.__file__).parent / "results" / "budget.json").read_text(encoding="utf-8"))
    plain = ("none", "own")
    chosen = {row["allocator"]: row for row in record["rows"] if (row["prefix_cache"], row["prompts"]) == plain}
    return {
        "device": record["machine"]["device"],
        "date": record["date"],
        "model": record["model"]["name"],
        "kv_tokens": record["memory"]["kv_tokens"],
        "requests": record["workload"]["requests"],
        "rows": {
            name: {key: row[key] for key in ("tokens_per_s", "mean_running", "gain", "running_gain")}
            for name, row in chosen.items()
        },
    }
