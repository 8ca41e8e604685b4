"""A batch job on a CPU: our engine beside the padded static batch of transformers' `generate`.

Owns: the job, both runs of it, and what is compared. Knows nothing of how either works inside.
The job is 32 requests of unlike lengths, from the same weights in float32, with the same threads of one process. Every
request has a length of its own; only its own tokens count as useful. transformers pads all prompts on the left to the
longest and makes as many tokens for every row as the longest answer needs, as a static batch does; ours runs as it
would serve. Both take the most likely token, and nothing but a request's length ends it.
The runs take turns, because a shared machine is not equally fast at all times; the gain is the median of the turns'.
What is compared besides speed is the tokens: they should be the same, but for ties that float32 does not keep apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from labkit.workloads import Workload, workload
from reference_impl.engine.build import build_engine
from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Ask, generate
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import LoadedModel, find_model, load_model
from reference_impl.model.sampling import SamplingParams

REQUESTS, MAX_PROMPT, MAX_OUTPUT = 32, 256, 256
FIRST_TOKEN = 1_000
"""Prompts are made of token ids from here on, which are plain words in every vocabulary of this size."""

Run = Callable[["Job"], list[list[int]]]


@dataclass(frozen=True)
class Job:
    """Prompts as token ids, and how many tokens each answer has."""

    prompts: list[list[int]]
    outputs: list[int]

    @property
    def useful_tokens(self) -> int:
        """Tokens that somebody asked for."""
        return sum(self.outputs)

    @property
    def padded_share(self) -> float:
        """Share of the static batch's tokens, prompts and answers, that nobody asked for."""
        width = max(map(len, self.prompts)) + max(self.outputs)
        asked = sum(map(len, self.prompts)) + self.useful_tokens
        return 1 - asked / (len(self.prompts) * width)


@dataclass(frozen=True)
class Turn:
    """Both runs of the job, one after the other, in seconds. same: answers with the same tokens."""

    ours_s: float
    theirs_s: float
    same: int

    @property
    def gain(self) -> float:
        """How many times as many useful tokens a second ours makes."""
        return self.theirs_s / self.ours_s


@dataclass(frozen=True)
class Offline:
    """What was measured: useful tokens a second of either run's median, and the median of the gains."""

    job: Job
    turns: list[Turn]

    @property
    def ours_tokens_per_s(self) -> float:
        return self.job.useful_tokens / median(turn.ours_s for turn in self.turns)

    @property
    def theirs_tokens_per_s(self) -> float:
        return self.job.useful_tokens / median(turn.theirs_s for turn in self.turns)

    @property
    def gain(self) -> float:
        return median(turn.gain for turn in self.turns)


def mixed_job(requests: int = REQUESTS, max_prompt: int = MAX_PROMPT, max_output: int = MAX_OUTPUT) -> Job:
    """The first ShareGPT requests of at most these lengths. Raises: ValueError if there are too few."""
    source: Workload = workload("sharegpt_8k")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    sizes = [(prompt, new) for prompt, new in pairs if prompt <= max_prompt and 1 <= new <= max_output][:requests]
    if len(sizes) < requests:
        raise ValueError(f"{len(sizes)} requests of the workload are as short as that, {requests} are needed")
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(FIRST_TOKEN, 10 * FIRST_TOKEN, (prompt,), generator=draw).tolist() for prompt, _ in sizes]
    return Job(prompts, [new for _, new in sizes])


def compare(ours: Run, theirs: Run, job: Job, turns: int, progress: Callable[[str], None] = print) -> Offline:
    """Both runs, `turns` times, who goes first changing. Raises: ValueError if an answer has the wrong length.

    A short job of the same kind comes before, whose time does not count: memory is new, and libraries load late.
    """
    warm_up = Job([prompt[:8] for prompt in job.prompts], [2] * len(job.prompts))
    for run in (ours, theirs):
        run(warm_up)
    found = []
    for number in range(turns):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        answers, seconds = {}, {}
        for run in order:
            started_s = time.perf_counter()
            answers[run] = run(job)
            seconds[run] = time.perf_counter() - started_s
            lengths = [len(answer) for answer in answers[run]]
            if lengths != job.outputs:
                raise ValueError(f"answers of {lengths} tokens were made, {job.outputs} were asked for")
        same = sum(mine == other for mine, other in zip(answers[ours], answers[theirs], strict=True))
        found.append(Turn(seconds[ours], seconds[theirs], same))
        said = f"ours {found[-1].ours_s:.1f} s, transformers {found[-1].theirs_s:.1f} s, gain {found[-1].gain:.2f}"
        progress(f"turn {number + 1} of {turns}: {said}, {same} of {len(job.outputs)} answers the same")
    return Offline(job, found)


def our_run(loaded: LoadedModel, job: Job) -> Run:
    """The engine with memory for the whole job, and nothing found again from the turn before."""
    tokens = sum(map(len, job.prompts)) + job.useful_tokens
    blocks = tokens // 16 + len(job.prompts)
    settings = EngineSettings(
        model=loaded.name,
        kv_memory_bytes=16 * blocks * loaded.config.kv_bytes_per_token(4),
        prefix_cache="none",
        max_running=len(job.prompts),
    )
    engine: Engine = build_engine(settings, loaded=loaded).engine

    def run(wanted: Job) -> list[list[int]]:
        asks = [
            Ask(prompt, SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True))
            for prompt, new in zip(wanted.prompts, wanted.outputs, strict=True)
        ]
        replies, _ = generate(engine, asks)
        return [reply.answers[0].token_ids for reply in replies]

    return run


def their_run(source: str) -> Run:
    """transformers with the same weights, padded on the left, greedy. Raises: ImportError where it is not installed."""
    model = as_transformers(source)

    def run(job: Job) -> list[list[int]]:
        width, longest = max(map(len, job.prompts)), max(job.outputs)
        rows = [[0] * (width - len(prompt)) + prompt for prompt in job.prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in job.prompts]
        with torch.inference_mode():
            made = model.generate(
                input_ids=torch.tensor(rows),
                attention_mask=torch.tensor(mask),
                max_new_tokens=longest,
                min_new_tokens=longest,
                do_sample=False,
                pad_token_id=0,
            )
        return [row[width : width + new] for row, new in zip(made.tolist(), job.outputs, strict=True)]

    return run


def as_transformers(source: str) -> Any:
    """transformers' model with the weights of `source`, float32. Raises: ValueError if it is not of Llama's kind."""
    import transformers

    checkpoint = find_model(source).checkpoint
    config = checkpoint.config
    if config.architecture != "llama" or config.rope.scaling is not None:
        raise ValueError(f"{source} is of the family {config.architecture}; this comparison is for Llama's, unscaled")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_context_tokens,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=config.tied_embeddings,
            attention_bias=config.attention_bias,
        )
    ).train(False)
    # No token ends an answer: every row has the length that was asked for.
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.read(name))
    return model


def measure(source: str, turns: int, job: Job | None = None, progress: Callable[[str], None] = print) -> Offline:
    """The comparison for the model that `source` names. Cost: about a minute a turn with SmolLM2 on two cores."""
    job = job or mixed_job()
    loaded = load_model(source)
    return compare(our_run(loaded, job), their_run(source), job, turns, progress)
