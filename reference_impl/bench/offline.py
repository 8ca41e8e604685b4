"""`engine bench offline`: a batch job on a GPU, in output tokens a second, beside the floor that bytes set.

Owns: the jobs, the runs, the floor, where a step's time goes, and the record. Knows nothing of how an engine works.
The job is nano-vllm's published script, or requests of a trace: all are there at once, nobody ends before it has made
what was asked, nothing is found again from an earlier turn. A turn is timed from the first request to the last piece of
text; the model, the blocks and the CUDA graphs are there before, as they are for peers.
The floor is what must be read at least: in every step all weights, and the keys and values of every sequence in it.

    suite, date, commit, machine   as in `machine.py`
    model, dtype, lengths, requests, prompt_tokens, output_tokens
    read_gb_s      the read ceiling, measured in this run; null on a CPU
    weight_bytes, kv_bytes, floor_tokens_per_s   of the whole job; null on a CPU
    turns          list of: seconds, steps, preemptions
    tokens_per_s   output tokens a second of the median turn; share of the floor
    step           a step with all requests: how many, context_tokens of all, wall_ms, gpu_ms, and kinds: kind of kernel
                   -> ms; null on a CPU
    goal           tokens_per_s, met, for the script on the shape it is published for; else null
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from random import Random
from typing import Any

import torch

from reference_impl.bench.machine import MACHINE, describe
from reference_impl.bench.record import Schema, check_fields, short
from reference_impl.bench.serve import load_or_draw
from reference_impl.bench.workload_lengths import asks, fitting
from reference_impl.engine.build import build_engine
from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Ask, generate
from reference_impl.engine.options import EngineSettings
from reference_impl.model.sampling import SamplingParams

SCRIPT = "script"
REQUESTS, LONGEST = 256, 4_096
PUBLISHED_SHAPE = "qwen3-0.6b"
GOAL_TOKENS_PER_S = 18_500.0
"""Above vLLM 0.20.2 on one H100 of the same kind, 18,413 and 18,351 in two runs of this script."""
_WARM_UP_SEED, _TRACE_SEED = 1, 2
_PROFILED_STEPS = 20

_FIELDS: Schema = {
    "record": {
        "suite": str,
        "date": str,
        "commit": str,
        "machine": dict,
        "model": str,
        "dtype": str,
        "lengths": str,
        "requests": int,
        "prompt_tokens": int,
        "output_tokens": int,
        "read_gb_s": (float, type(None)),
        "weight_bytes": int,
        "kv_bytes": int,
        "floor_tokens_per_s": (float, type(None)),
        "turns": list,
        "tokens_per_s": float,
        "share": (float, type(None)),
        "step": (dict, type(None)),
        "goal": (dict, type(None)),
    },
    "turn": {"seconds": float, "steps": int, "preemptions": int},
    "step": {"requests": int, "context_tokens": int, "gpu_ms": float, "wall_ms": float, "kinds": dict},
    "goal": {"tokens_per_s": float, "met": bool},
    **MACHINE,
}

Say = Callable[[str], None]


def script_asks() -> list[Ask]:
    """nano-vllm's benchmark: seed 0, prompts and answers of 100 to 1,024 tokens, temperature 0.6, no end token."""
    draw = Random(0)
    prompts = [[draw.randint(0, 10_000) for _ in range(draw.randint(100, 1_024))] for _ in range(REQUESTS)]
    return [
        Ask(prompt, SamplingParams(max_tokens=draw.randint(100, 1_024), temperature=0.6, ignore_eos=True, seed=place))
        for place, prompt in enumerate(prompts)
    ]


def trace_asks(name: str, requests: int, vocab_size: int, longest: int) -> list[Ask]:
    """The first requests of a trace of at most `longest` tokens, sampled like the script's."""
    pairs = fitting(name, requests, longest - 1, longest).pairs
    return asks(pairs, vocab_size, _TRACE_SEED, temperature=0.6)


@dataclass(frozen=True)
class Floor:
    """What a job must read: keys and values of each sequence in each of its steps, all weights in every step."""

    weight_bytes: int
    kv_bytes: int

    def seconds(self, read_bytes_per_s: float) -> float:
        return (self.weight_bytes + self.kv_bytes) / read_bytes_per_s


def floor_of(job: Sequence[Ask], weight_bytes: int, kv_bytes_per_token: int) -> Floor:
    """The floor of a job whose requests all run at once: there are as many steps as the longest answer has tokens."""
    tokens = sum(
        ask.params.max_tokens * len(ask.prompt) + ask.params.max_tokens * (ask.params.max_tokens - 1) // 2
        for ask in job
    )
    steps = max(ask.params.max_tokens for ask in job)
    return Floor(weight_bytes * steps, tokens * kv_bytes_per_token)


@dataclass(frozen=True)
class Job:
    """What is asked: the script, or the first `requests` of a trace; and how often it is run."""

    lengths: str = SCRIPT
    requests: int = REQUESTS
    turns: int = 3

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the number."""
        if self.turns < 1:
            raise ValueError(f"turns must be at least 1, got {self.turns}")
        if self.lengths == SCRIPT and self.requests != REQUESTS:
            raise ValueError(f"the script has {REQUESTS} requests, not {self.requests}: give a trace as lengths")

    def asks(self, vocab_size: int, longest: int) -> list[Ask]:
        if self.lengths == SCRIPT:
            return script_asks()
        return trace_asks(self.lengths, self.requests, vocab_size, longest)


def measure(settings: EngineSettings, job: Job, name: str, say: Say = print) -> dict[str, Any]:
    """The record of a job. settings: `model` may be a shape of `random_model.py`. name: of the commit.

    Raises: ValueError on a model, dtype, device or trace that is not there, or where a request is refused.
    """
    loaded, _ = load_or_draw(settings.model, settings.dtype, settings.device)
    longest = settings.max_context_tokens or min(LONGEST, loaded.config.max_context_tokens)
    settings = replace(settings, max_context_tokens=longest, prefix_cache="none")
    wanted = job.asks(loaded.config.vocab_size, longest)
    built = build_engine(settings, loaded=loaded)
    say("\n".join(built.profile.lines()))
    engine = built.engine
    generate(engine, asks([(len(ask.prompt), 2) for ask in wanted], loaded.config.vocab_size, _WARM_UP_SEED))
    turns = [_turn(engine, wanted, say) for _ in range(job.turns)]
    on_gpu = loaded.transformer.device.type == "cuda"
    step = profiled_step(engine, wanted) if on_gpu else None
    floor = floor_of(wanted, loaded.transformer.weight_bytes, built.profile.bytes_per_token)
    figures = _figures(turns, sum(ask.params.max_tokens for ask in wanted), floor, on_gpu)
    published = job.lengths == SCRIPT and settings.model == PUBLISHED_SHAPE and on_gpu
    met = figures["tokens_per_s"] >= GOAL_TOKENS_PER_S
    return {
        "suite": "offline",
        "date": date.today().isoformat(),
        "commit": name,
        "machine": describe(loaded.transformer.device),
        "model": settings.model,
        "dtype": settings.dtype,
        "lengths": job.lengths,
        "requests": len(wanted),
        "prompt_tokens": sum(len(ask.prompt) for ask in wanted),
        "weight_bytes": floor.weight_bytes,
        "kv_bytes": floor.kv_bytes,
        "turns": turns,
        **figures,
        "step": step,
        "goal": {"tokens_per_s": GOAL_TOKENS_PER_S, "met": met} if published else None,
    }


def _figures(turns: Sequence[dict[str, Any]], tokens: int, floor: Floor, on_gpu: bool) -> dict[str, Any]:
    rate = tokens / statistics.median(turn["seconds"] for turn in turns)
    read = _read_bytes_per_s() if on_gpu else None
    bound = tokens / floor.seconds(read) if read else None
    return {
        "output_tokens": tokens,
        "tokens_per_s": short(rate),
        "read_gb_s": short(read / 1e9) if read else None,
        "floor_tokens_per_s": short(bound) if bound else None,
        "share": short(rate / bound) if bound else None,
    }


def _read_bytes_per_s() -> float:
    # Its kernels need triton, which a run on a CPU does not.
    from reference_impl.bench import device_clock

    return device_clock.read_bytes_per_s()


def _turn(engine: Engine, job: Sequence[Ask], say: Say) -> dict[str, Any]:
    preempted = engine.scheduler.counters.preemptions
    started_s = time.perf_counter()
    replies, totals = generate(engine, job)
    seconds = time.perf_counter() - started_s
    for ask, reply in zip(job, replies, strict=True):
        if reply.refused:
            raise ValueError(f"a request of {len(ask.prompt)} tokens was refused: {reply.refused}")
        made = len(reply.answers[0].tokens)
        if made != ask.params.max_tokens:
            raise ValueError(f"an answer has {made} tokens, {ask.params.max_tokens} were asked for")
    made = totals.made_tokens
    say(f"{made:,} tokens in {seconds:.2f} s and {totals.steps} steps: {made / seconds:,.0f} a second")
    return {
        "seconds": short(seconds),
        "steps": totals.steps,
        "preemptions": engine.scheduler.counters.preemptions - preempted,
    }


def profiled_step(engine: Engine, job: Sequence[Ask], steps: int = _PROFILED_STEPS) -> dict[str, Any] | None:
    """Where the time of a step goes in which all requests decode, a mean of `steps`; the requests are let go then.

    None if they never all decode for so long: there is too little memory, or the first end before the last begin.
    """
    from torch.profiler import ProfilerActivity, profile

    made = start_all(engine, job)
    found = None
    if made is not None and min(ask.params.max_tokens for ask in job) > made // len(job) + 2 * steps + 2:
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        made += sum(_stepped(engine) for _ in range(steps))
        torch.cuda.synchronize()
        wall_s = (time.perf_counter() - started_s) / steps
        # Once more with the profiler, whose own cost is not to be in the wall's time.
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            made += sum(_stepped(engine) for _ in range(steps))
            torch.cuda.synchronize()
        kinds: defaultdict[str, float] = defaultdict(float)
        for event in watched.key_averages():
            if event.self_device_time_total:
                kinds[_kind(event.key)] += event.self_device_time_total / steps / 1e3
        found = {
            "requests": len(job),
            "context_tokens": sum(len(ask.prompt) for ask in job) + made,
            "gpu_ms": short(sum(kinds.values())),
            "wall_ms": short(wall_s * 1e3),
            "kinds": {kind: short(ms) for kind, ms in sorted(kinds.items(), key=lambda item: -item[1])},
        }
    engine.abort_all()
    while engine.has_work:
        engine.step()
    return found


def start_all(engine: Engine, job: Sequence[Ask]) -> int | None:
    """Add all requests and step until a step decodes for every one: tokens made. None if that never comes."""
    for ask in job:
        engine.add(ask.prompt, ask.params)
    made = 0
    while engine.has_work:
        made += _stepped(engine)
        if engine.last_step.decode_tokens == len(job) and not engine.last_step.prefill_tokens:
            return made
    return None


def _stepped(engine: Engine) -> int:
    """One step; tokens that it made."""
    return sum(len(piece.tokens) for piece in engine.step())


_KINDS = {
    "attention": ("_paged_decode", "_paged_prefill"),
    "work list": ("_cut",),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitK", "cublas"),
    "copies": ("Memcpy", "Memset"),
}


def _kind(kernel: str) -> str:
    """What a kernel is for, by its name; its own name's beginning where nothing fits."""
    for kind, words in _KINDS.items():
        if any(word in kernel for word in words):
            return kind
    return kernel[:60]


def lines(record: dict[str, Any]) -> list[str]:
    """The record for people."""
    said = [
        f"{record['model']} {record['dtype']} on {record['machine']['device']}, {record['requests']} requests "
        f"({record['lengths']}): {record['tokens_per_s']:,.0f} output tokens a second"
    ]
    if record["share"] is not None:
        said.append(
            f"floor {record['floor_tokens_per_s']:,.0f} (read {record['read_gb_s']:,.0f} GB/s): {record['share']:.0%}"
        )
    if (step := record["step"]) is not None:
        said.append(
            f"a step of {step['requests']} decodes over {step['context_tokens']:,} tokens: "
            f"{step['wall_ms']:.2f} ms, the GPU {step['gpu_ms']:.2f} of it"
        )
        said += [f"  {ms:8.3f} ms  {kind}" for kind, ms in step["kinds"].items()]
    if (goal := record["goal"]) is not None:
        said.append(f"goal {goal['tokens_per_s']:,.0f}: {'hit' if goal['met'] else 'MISS'}")
    return said


def check_record(record: Any) -> None:
    """Raises: ValueError naming the first field that is missing, unknown, of another type or at odds with another."""
    check_fields(_FIELDS, "record", record)
    check_fields(_FIELDS, "machine", record["machine"])
    if not record["turns"]:
        raise ValueError("turns: there are none")
    for turn in record["turns"]:
        check_fields(_FIELDS, "turn", turn)
    for part in ("step", "goal"):
        if record[part] is not None:
            check_fields(_FIELDS, part, record[part])
    if record["goal"] is not None and record["goal"]["met"] != (
        record["tokens_per_s"] >= record["goal"]["tokens_per_s"]
    ):
        raise ValueError(f"goal: {record['tokens_per_s']} tokens a second, but met is {record['goal']['met']}")
