"""Evidence for "Buckets, sorting, packing": the engine's batches under one token budget, and its packed row.

Owns: which batches, boundaries, positions and biases the chapter may show of the engine. Knows nothing of how they are
shown, nor of the chapter's own model.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from labkit.workloads import workload
from reference_impl.padding import (
    ModelShape,
    arrival_batches,
    bucketed,
    make_batches,
    pack_rows,
    padding_table,
)
from reference_impl.padding.batch import pack, packed_bias

PROMPTS = ("The cat sat on the mat", "I really like", "A quick")
# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit weights and cache.
SHAPE = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
BUDGET = 16_384
"""Slots of a forward pass; the longest prompt of the workload fits."""
EDGES = (256, 512, 1_024, 2_048, 4_096, 8_192, 16_384)
WINDOW = 64
SHOWN, SHOWN_BUDGET = 20, 8_192
"""The first prompts of the workload, and the budget of the figure that shows what becomes of each."""


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    prompts = workload("azure_conv").prompt_tokens.tolist()
    return {
        "prompts": list(PROMPTS),
        "row": row(),
        "budget": BUDGET,
        "window": WINDOW,
        "edges": list(EDGES),
        "ways": [
            {
                "name": way.name,
                "passes": way.batches,
                "slots_lost": way.account.slots_lost,
                "flops_lost": way.account.flops_lost,
            }
            for way in padding_table(prompts, BUDGET, SHAPE, EDGES, WINDOW)
        ],
        "rooms": rooms(prompts, WINDOW),
        "shown": shown(prompts[:SHOWN]),
        "shape": {
            **asdict(SHAPE),
            "kv_bytes_per_token": SHAPE.kv_bytes_per_token,
            "linear_weights": SHAPE.linear_weights,
        },
    }


def row() -> dict[str, Any]:
    """The prompts as the engine packs them, with the looks of its bias, and the looks if it knew of no boundary."""
    words = list(dict.fromkeys(word for prompt in PROMPTS for word in prompt.split()))
    ids, boundaries, positions = pack([[words.index(word) for word in prompt.split()] for prompt in PROMPTS])
    one = torch.tensor([0, len(ids)])
    return {
        "words": [words[token] for token in ids.tolist()],
        "boundaries": boundaries.tolist(),
        "positions": positions.tolist(),
        "may_look": (packed_bias(boundaries) == 0)[0, 0].tolist(),
        "one_positions": list(range(len(ids))),
        "one_may_look": (packed_bias(one) == 0)[0, 0].tolist(),
    }


def rooms(prompts: list[int], size: int) -> dict[str, int]:
    """Packed rows if each room of `size` waiting prompts is packed by itself, and the fewest that their tokens fill."""
    parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return {
        "size": size,
        "rows": sum(len(pack_rows(part, BUDGET)) for part in parts),
        "least": sum(-(-sum(part) // BUDGET) for part in parts),
    }


def shown(prompts: list[int]) -> dict[str, Any]:
    """A few prompts under a small budget, as each way puts them into forward passes."""
    edges = [edge for edge in EDGES if edge <= SHOWN_BUDGET]
    return {
        "prompts": prompts,
        "budget": SHOWN_BUDGET,
        "passes": {
            "Padded, as they came": arrival_batches(prompts, SHOWN_BUDGET),
            "Padded, in buckets": bucketed(prompts, edges, SHOWN_BUDGET),
            "Padded, sorted": make_batches(prompts, SHOWN_BUDGET),
            "Packed": pack_rows(prompts, SHOWN_BUDGET),
        },
    }
