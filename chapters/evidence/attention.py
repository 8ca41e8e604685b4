"""Evidence for "Attention over pages": one head's walk through its blocks, and the engine's own poison test.

Owns: which keys, values and states the chapter may show of the engine. Knows nothing of how they are shown.
The blocks are where the engine's own allocator put them; each state is a merge of the engine's own partial results, and
the walk ends in what attention over all tokens at once gives.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from reference_impl.attention.metadata import BatchRow, build_metadata
from reference_impl.attention.reference import Partial, attention, gather, merge, paged_decode, store_kv
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.memory import BlockAllocator
from reference_impl.padding import ModelShape

NUM_BLOCKS, BLOCK_SIZE, TOKENS = 12, 4, 14
HEADS, KV_HEADS, HEAD_DIM, HEAD = 4, 2, 2, 2
"""Head 2 of 4 looks at KV head 1 of 2; `2 % 2` would send it to KV head 0."""
SCALE = HEAD_DIM**-0.5
SEED = 2
# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit weights and cache.
SHAPE = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
POISONED_CONTEXTS = (0, 1, 15, 16, 17, 33)


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    return {"walk": walk(), "poison": poison(), "shape": asdict(SHAPE)}


def walk() -> dict[str, Any]:
    """Block after block of one sequence: its scores, its own partial result, and the merge of all so far."""
    torch.manual_seed(SEED)
    table, slots = _scattered()
    query = 2 * torch.randn(1, HEADS, HEAD_DIM, dtype=torch.float64)
    key, value = (torch.randn(TOKENS, KV_HEADS, HEAD_DIM, dtype=torch.float64) for _ in range(2))
    caches = [torch.full((NUM_BLOCKS, BLOCK_SIZE, KV_HEADS, HEAD_DIM), torch.nan, dtype=torch.float64) for _ in "kv"]
    store_kv(key, value, *caches, torch.tensor(slots))
    found = [gather(cache, torch.tensor(table), TOKENS) for cache in caches]
    kept = _over(query, found, 0, 0)
    top, steps = -torch.inf, []
    for step, block in enumerate(table):
        first, stop = step * BLOCK_SIZE, min(TOKENS, (step + 1) * BLOCK_SIZE)
        kept = merge(kept, _over(query, found, first, stop))
        scores = found[0][first:stop, HEAD * KV_HEADS // HEADS] @ query[0, HEAD] * SCALE
        top = max(top, float(scores.max()))
        steps.append({"block": block, "scores": scores.tolist(), "m": top, **_sums(kept, top)})
    whole = paged_decode(query, *caches, torch.tensor([table]), torch.tensor([TOKENS]), SCALE)
    return {
        "num_blocks": NUM_BLOCKS,
        "block_size": BLOCK_SIZE,
        "tokens": TOKENS,
        "table": table,
        "head": HEAD,
        "heads": HEADS,
        "kv_heads": KV_HEADS,
        "scale": SCALE,
        "query": query[0].tolist(),
        "key": key.tolist(),
        "value": value.tolist(),
        "steps": steps,
        "answers": whole[0].tolist(),
    }


def poison() -> dict[str, Any]:
    """The engine's attention on a CPU, with NaN in every slot that no sequence wrote: its largest error, in float32."""
    torch.manual_seed(SEED)
    blocks = BlockAllocator(64, 16)
    blocks.allocate(99, 40)
    for row, tokens in enumerate(POISONED_CONTEXTS):
        if tokens:
            blocks.allocate(row, tokens)
    blocks.free(99)
    tables = [blocks.block_table(row) if tokens else [] for row, tokens in enumerate(POISONED_CONTEXTS)]
    wide = torch.full((len(tables), max(map(len, tables))), -1, dtype=torch.int32)
    caches = [torch.full((64, 16, 2, 32), torch.nan) for _ in "kv"]
    for row, table in enumerate(tables):
        wide[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
        if table:
            slots = torch.tensor(blocks.slot_mapping(row, 0, POISONED_CONTEXTS[row]))
            store_kv(*(torch.randn(len(slots), 2, 32) for _ in "kv"), *caches, slots)
    query = torch.randn(len(tables), 8, 32)
    right = paged_decode(query, *caches, wide, torch.tensor(POISONED_CONTEXTS), 32**-0.5)
    live = [row for row, tokens in enumerate(POISONED_CONTEXTS) if tokens]
    metadata = build_metadata([BatchRow(tables[row], 1, POISONED_CONTEXTS[row]) for row in live], 16)
    found = TorchAttention().attend(query[live], *caches, metadata, 32**-0.5)
    return {
        "contexts": list(POISONED_CONTEXTS),
        "unwritten": int(caches[0][:, :, 0, 0].isnan().sum()),
        "slots": 64 * 16,
        "finite": bool(right.isfinite().all() and found.isfinite().all()),
        "zero_of_empty": bool((right[0] == 0).all()),
        "worst": float((found - right[live]).abs().max()),
    }


def _scattered() -> tuple[list[int], list[int]]:
    """A table out of order: others held all blocks, three of them went, and the sequence took what there was."""
    blocks = BlockAllocator(NUM_BLOCKS, BLOCK_SIZE)
    for other, tokens in ((10, 4), (11, 8), (12, 4), (13, 8), (14, 12), (15, 12)):
        blocks.allocate(other, tokens)
    for gone in (11, 14, 10):
        blocks.free(gone)
    blocks.allocate(0, TOKENS)
    return blocks.block_table(0), blocks.slot_mapping(0, 0, TOKENS)


def _over(query: Tensor, found: list[Tensor], first: int, stop: int) -> Partial:
    """The engine's partial result over tokens first..stop-1."""
    return attention(query, found[0][first:stop], found[1][first:stop], SCALE, causal=False)


def _sums(kept: Partial, top: float) -> dict[str, Any]:
    """What the engine keeps as an answer and a logarithm, as two sums under the largest score."""
    lse, out = kept.lse[0, HEAD], kept.out[0, HEAD]
    total = torch.exp(lse - top)
    return {"l": float(total), "o": (out * total).tolist(), "lse": float(lse), "out": out.tolist()}
