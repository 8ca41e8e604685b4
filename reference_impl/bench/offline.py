"""`engine bench offline`: batch jobs on a GPU, in output tokens a second, beside the floor that bytes set.

Owns: the jobs, the runs, the floor, and the record. Knows nothing of how an engine works.
A job is nano-vllm's published script, or requests of a trace: all are there at once, nobody ends before it has made
what was asked, nothing is found again from an earlier turn. A turn is timed from the first request to the last piece of
text; the model, the blocks and the CUDA graphs are there before, as they are for peers.
The floor is what must be read at least: in every step all weights, and the keys and values of every sequence in it. It
knows nothing of the prompts' arithmetic, so that jobs with long prompts and short answers stay further from it.

    suite, date, commit, machine   as in `machine.py`
    read_gb_s      the read ceiling, measured in this run; null on a CPU
    runs           list of:
    model, dtype, lengths, is_real, requests, longest_tokens, prompt_tokens, output_tokens
                   dtype: "bfloat16", or "bfloat16, KV fp8" where keys and values have another
                   is_real: the script, or a recorded trace; false if lengths were sampled, as there was no trace
    weight_bytes, kv_bytes, floor_tokens_per_s   of the whole job; the last is null on a CPU
    turns          list of: seconds, steps, preemptions
    tokens_per_s   output tokens a second of the median turn; share of the floor
    step           a step with all requests: how many, context_tokens of all, wall_ms, gpu_ms, and kinds: kind of kernel
                   -> ms; null on a CPU, and where they never all decode at once
    goal           tokens_per_s, met, for the script on the shape it is published for; else null
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from random import Random
from typing import Any

import torch

from reference_impl.bench.machine import MACHINE, describe
from reference_impl.bench.profiled_step import profiled_step
from reference_impl.bench.record import Schema, check_fields, short
from reference_impl.bench.serve import load_or_draw
from reference_impl.bench.workload_lengths import asks, fitting
from reference_impl.engine.build import build_engine
from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Ask, generate
from reference_impl.engine.heap import frozen_heap
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import usable_device
from reference_impl.model.sampling import SamplingParams

SCRIPT = "script"
REQUESTS, LONGEST = 256, 4_096
PUBLISHED_SHAPE = "qwen3-0.6b"
GOAL_TOKENS_PER_S = 18_500.0
"""Above vLLM 0.20.2 on one H100 of the same kind, 18,413 and 18,351 in two runs of this script."""
_WARM_UP_SEED, _TRACE_SEED = 1, 2
_TEMPERATURE = 0.6

_FIELDS: Schema = {
    "record": {
        "suite": str,
        "date": str,
        "commit": str,
        "machine": dict,
        "read_gb_s": (float, type(None)),
        "runs": list,
    },
    "run": {
        "model": str,
        "dtype": str,
        "lengths": str,
        "is_real": bool,
        "requests": int,
        "longest_tokens": int,
        "prompt_tokens": int,
        "output_tokens": int,
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
        Ask(
            prompt,
            SamplingParams(max_tokens=draw.randint(100, 1_024), temperature=_TEMPERATURE, ignore_eos=True, seed=place),
        )
        for place, prompt in enumerate(prompts)
    ]


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
    """What is asked of which model: the script, or the first `requests` of a trace; and how often it is run."""

    model: str = PUBLISHED_SHAPE
    lengths: str = SCRIPT
    requests: int = REQUESTS
    turns: int = 3

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the number."""
        if self.turns < 1:
            raise ValueError(f"turns must be at least 1, got {self.turns}")
        if self.lengths == SCRIPT and self.requests != REQUESTS:
            raise ValueError(f"the script has {REQUESTS} requests, not {self.requests}: give a trace as lengths")

    def asks(self, vocab_size: int, longest: int) -> tuple[list[Ask], bool]:
        """The requests, of at most `longest` tokens if they are a trace's, and whether their lengths are real."""
        if self.lengths == SCRIPT:
            return script_asks(), True
        lengths = fitting(self.lengths, self.requests, longest - 1, longest)
        return asks(lengths.pairs, vocab_size, _TRACE_SEED, temperature=_TEMPERATURE), lengths.is_real


KEPT = (Job(), Job("llama-3.2-1b"), Job(lengths="azure_conv"), Job(lengths="sharegpt_8k"))
"""Two shapes, and lengths that people really sent."""


def measure(settings: EngineSettings, jobs: Sequence[Job], name: str, say: Say = print) -> dict[str, Any]:
    """The record of these jobs. Each model is one that `settings` could name, or a shape of `random_model.py`.

    name: of the commit. Raises: ValueError on a model, dtype, device or trace that is not there, or where a request is
    refused.
    """
    device = usable_device(settings.device)
    read = _read_bytes_per_s() if device.type == "cuda" else None
    runs = []
    for job in jobs:
        runs.append(run(replace(settings, model=job.model, prefix_cache="none"), job, read, say))
        # The next model needs the memory that this one had.
        gc.collect()
        if read is not None:
            torch.cuda.empty_cache()
    return {
        "suite": "offline",
        "date": date.today().isoformat(),
        "commit": name,
        "machine": describe(device),
        "read_gb_s": short(read / 1e9) if read else None,
        "runs": runs,
    }


def run(settings: EngineSettings, job: Job, read_bytes_per_s: float | None, say: Say) -> dict[str, Any]:
    """One job, as the record has it. read_bytes_per_s: None on a CPU."""
    loaded, _ = load_or_draw(settings.model, settings.dtype, settings.device)
    longest = settings.max_context_tokens or min(LONGEST, loaded.config.max_context_tokens)
    wanted, is_real = job.asks(loaded.config.vocab_size, longest)
    built = build_engine(replace(settings, max_context_tokens=longest), loaded=loaded)
    say("\n".join([f"{job.model}, {job.lengths}:", *built.profile.lines()]))
    engine = built.engine
    generate(engine, asks([(len(ask.prompt), 2) for ask in wanted], loaded.config.vocab_size, _WARM_UP_SEED))
    with frozen_heap():
        turns = [_turn(engine, wanted, say) for _ in range(job.turns)]
    floor = floor_of(wanted, loaded.transformer.weight_bytes, built.profile.bytes_per_token)
    figures = _figures(turns, sum(ask.params.max_tokens for ask in wanted), floor, read_bytes_per_s)
    narrow = settings.kv_cache_dtype != "auto"
    published = job.lengths == SCRIPT and job.model == PUBLISHED_SHAPE and read_bytes_per_s is not None and not narrow
    met = figures["tokens_per_s"] >= GOAL_TOKENS_PER_S
    return {
        "model": job.model,
        "dtype": f"{settings.dtype}, KV {settings.kv_cache_dtype}" if narrow else settings.dtype,
        "lengths": job.lengths,
        "is_real": is_real,
        "requests": len(wanted),
        "longest_tokens": longest,
        "prompt_tokens": sum(len(ask.prompt) for ask in wanted),
        "weight_bytes": floor.weight_bytes,
        "kv_bytes": floor.kv_bytes,
        "turns": turns,
        **figures,
        "step": profiled_step(engine, wanted) if read_bytes_per_s else None,
        "goal": {"tokens_per_s": GOAL_TOKENS_PER_S, "met": met} if published else None,
    }


def _figures(
    turns: Sequence[dict[str, Any]], tokens: int, floor: Floor, read_bytes_per_s: float | None
) -> dict[str, Any]:
    rate = tokens / statistics.median(turn["seconds"] for turn in turns)
    bound = tokens / floor.seconds(read_bytes_per_s) if read_bytes_per_s else None
    return {
        "output_tokens": tokens,
        "tokens_per_s": short(rate),
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


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record for people."""
    read = f", read {record['read_gb_s']:,.0f} GB/s" if record["read_gb_s"] else ""
    return [f"{record['machine']['device']}{read}", *(line for run in record["runs"] for line in _lines(run))]


def _lines(run: Mapping[str, Any]) -> list[str]:
    lengths = run["lengths"] if run["is_real"] else f"{run['lengths']}, sampled"
    said = [
        f"{run['model']} {run['dtype']}, {run['requests']} requests ({lengths}): "
        f"{run['tokens_per_s']:,.0f} output tokens a second"
    ]
    if run["share"] is not None:
        read_tb = (run["kv_bytes"] + run["weight_bytes"]) / 1e12
        said.append(f"floor {run['floor_tokens_per_s']:,.0f} ({read_tb:.1f} TB to read): {run['share']:.0%}")
    if (step := run["step"]) is not None:
        said.append(
            f"a step of {step['requests']} decodes over {step['context_tokens']:,} tokens: "
            f"{step['wall_ms']:.2f} ms, the GPU {step['gpu_ms']:.2f} of it"
        )
        said += [f"  {ms:8.3f} ms  {kind}" for kind, ms in step["kinds"].items()]
    if (goal := run["goal"]) is not None:
        said.append(f"goal {goal['tokens_per_s']:,.0f}: {'hit' if goal['met'] else 'MISS'}")
    return said


def check_record(record: Any) -> None:
    """Raises: ValueError naming the first field that is missing, unknown, of another type or at odds with another."""
    check_fields(_FIELDS, "record", record)
    check_fields(_FIELDS, "machine", record["machine"])
    if not record["runs"]:
        raise ValueError("runs: there are none")
    for found in record["runs"]:
        _check_run(found)


def _check_run(found: Any) -> None:
    check_fields(_FIELDS, "run", found)
    if not found["turns"]:
        raise ValueError("turns: there are none")
    for turn in found["turns"]:
        check_fields(_FIELDS, "turn", turn)
    for part in ("step", "goal"):
        if found[part] is not None:
            check_fields(_FIELDS, part, found[part])
    if found["goal"] is not None and found["goal"]["met"] != (found["tokens_per_s"] >= found["goal"]["tokens_per_s"]):
        raise ValueError(f"goal: {found['tokens_per_s']} tokens a second, but met is {found['goal']['met']}")
