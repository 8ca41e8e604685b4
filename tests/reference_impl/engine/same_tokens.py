"""The same prompts through engines that differ in one part, and through transformers: the tokens must not differ.

Owns: the prompts, the ways to run an engine, and what counts as equal. Two answers are equal if their tokens are, or if
they part at a tie: the two tokens' logits, by transformers and from the same beginning, are less than TIE apart, which
float32 cannot keep apart when sums are taken in another order. From there on they are other texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from reference_impl.engine.build import Built, build_engine
from reference_impl.engine.generate import Ask, generate
from reference_impl.engine.options import EngineSettings
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams

ROOT = Path(__file__).resolve().parents[3]
TIE = 1e-4
_PARTS = Path(__file__).parent / "parts"
LAB3 = f"{ROOT / 'tests' / 'submissions' / 'lab3_block_allocator' / 'correct' / 'stack_and_counter.py'}:BlockAllocator"
LAB4 = f"{_PARTS / 'lab4.py'}"
LAB5 = f"{_PARTS / 'lab5.py'}:PrefixCache"
LAB6 = f"{_PARTS / 'lab6.py'}:Scheduler"


def prompts_of(loaded: LoadedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Prompts of so many tokens, each from another place of the project's own texts."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "LICENSE", "CONTRIBUTING.md"))
    ids = loaded.tokenizer.encode(text)
    while len(ids) < max(lengths) + len(lengths):
        ids += ids
    stride = max(1, (len(ids) - max(lengths)) // len(lengths))
    return [ids[place * stride : place * stride + length] for place, length in enumerate(lengths)]


def spread(count: int, longest: int) -> list[int]:
    """`count` lengths from 1 to `longest`, evenly on a logarithmic scale, in an order that mixes them."""
    lengths = [round(math.exp(math.log(longest) * place / (count - 1))) for place in range(count)]
    return [lengths[(place * 7) % count] for place in range(count)] if count % 7 else lengths


@dataclass(frozen=True)
class Way:
    """One way to run the engine. blocks: KV memory in blocks of 16, as a multiple of the longest request's."""

    settings: dict[str, Any] = field(default_factory=dict)
    times_longest: float = 0.0
    n: int = 1
    twice: bool = False


WAYS: dict[str, Way] = {
    "one after the other": Way({"max_running": 1, "prefix_cache": "none"}),
    "batched, prompts whole": Way({"max_tokens_per_step": 8_192, "prefix_cache": "none"}),
    "prompts in chunks of 48": Way({"max_tokens_per_step": 48, "max_running": 24, "prefix_cache": "none"}),
    "preempted and computed again": Way({"prefix_cache": "none"}, times_longest=1.6),
    "preempted and swapped": Way({"prefix_cache": "none", "recovery": "swap"}, times_longest=1.6),
    "preempted, with what the cache still has": Way({"prefix_cache": "hash"}, times_longest=1.6),
    "prefixes found by hash": Way({"prefix_cache": "hash"}, twice=True),
    "prefixes found in a tree": Way({"prefix_cache": "radix"}, twice=True),
    "three answers that share blocks": Way({"prefix_cache": "none"}, n=3),
    "three answers in too little memory": Way({"prefix_cache": "none"}, n=3, times_longest=1.6),
    "three answers, swapped": Way({"prefix_cache": "none", "recovery": "swap"}, n=3, times_longest=1.6),
    "blocks of 1": Way({"block_size": 1, "prefix_cache": "none"}),
    "blocks of 7": Way({"block_size": 7}, twice=True),
    "padded": Way({"block_allocator": "padded"}, times_longest=4),
    "contiguous": Way({"block_allocator": "contiguous"}, times_longest=4),
    "pow2": Way({"block_allocator": "pow2"}, times_longest=4),
    "oracle": Way({"block_allocator": "oracle"}, times_longest=4),
    "grow": Way({"block_allocator": "grow"}, times_longest=4),
    "static batches": Way({"scheduler": "static"}),
    "orca": Way({"scheduler": "orca"}),
    "prefill first": Way({"scheduler": "prefill-first"}),
    "a lab 3 of somebody": Way({"block_allocator": LAB3}, n=3, times_longest=1.6),
    "a lab 4 of somebody": Way({"attention": LAB4}),
    "a lab 5 of somebody": Way({"prefix_cache": LAB5}, twice=True),
    "a lab 6 of somebody": Way({"scheduler": LAB6}, n=3),
}


def built(loaded: LoadedModel, way: Way, longest_tokens: int) -> Built:
    """An engine for `way`; with plenty of memory unless the way asks for little."""
    settings = EngineSettings(model=loaded.name, max_tokens_per_step=512, debug=True)
    settings = replace(settings, **way.settings)
    times = way.times_longest or 12.0
    bytes_per_token = loaded.config.kv_bytes_per_token(4)
    memory = math.ceil(times * longest_tokens / settings.block_size) * settings.block_size * bytes_per_token
    context = min(loaded.config.max_context_tokens, longest_tokens)
    return build_engine(replace(settings, kv_memory_bytes=memory, max_context_tokens=context), loaded=loaded)


def answers(
    loaded: LoadedModel, way: Way, prompts: Sequence[list[int]], new_tokens: int
) -> tuple[Built, list[list[list[int]]]]:
    """For each prompt the token ids of each of its answers; on the second time round, where the way asks for one."""
    engine = built(loaded, way, max(map(len, prompts)) + new_tokens)
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, n=way.n, ignore_eos=True)
    asks = [Ask(list(prompt), params) for prompt in prompts]
    for _ in range(1 + way.twice):
        replies, _ = generate(engine.engine, asks)
    refused = [reply.refused for reply in replies if reply.refused]
    assert not refused, refused[0]
    return engine, [[told.token_ids for told in reply.answers] for reply in replies]


def transformers_answer(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """What `generate` makes of one prompt, greedily; end tokens are tokens like any other."""
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return [int(token) for token in out[0, len(prompt) :]]


def difference(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> str:
    """ "" if the answers are equal, or part at a tie; else where they part, and by how much."""
    if ours == theirs:
        return ""
    place = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if place is None:
        return f"{len(ours)} tokens, not {len(theirs)}"
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + theirs[:place]])).logits[0, -1].double()
    gap = abs(float(logits[ours[place]] - logits[theirs[place]]))
    return "" if gap < TIE else f"token {place} is {ours[place]}, not {theirs[place]}; their logits are {gap:.1e} apart"
