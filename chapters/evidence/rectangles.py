"""Evidence for "Rectangles are expensive": the opening picture, the padding question and three ledgers of waste.

Owns: which numbers the chapter may show of the engine. Knows nothing of how they are shown.
The picture: a pool in which other requests came and went, then the two padded sequences; the blocks are where the
reference allocator put them. The ledgers: the start of the Azure conversation workload in static batches.
"""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

from labkit.workloads import workload
from reference_impl.memory import BlockAllocator
from reference_impl.padding import Account, ModelShape, pad_rows, static_batch

NUM_BLOCKS, BLOCK_SIZE = 30, 2
SENTENCES = ("<SOS> I think this movie is better", "<SOS> I really like")
QUESTION = (("The", "cat", "sat"), ("A", "quick", "brown", "fox"), ("On", "the", "mat"))
# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit weights and cache.
SHAPE = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
LEDGER_BATCH = 16
WINDOW = 512


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    conversation = workload("azure_conv")
    prompts, outputs = conversation.prompt_tokens.tolist(), conversation.output_tokens.tolist()
    return {
        "picture": picture(),
        "question": {
            "right": pad_rows(QUESTION, "<pad>", side="right"),
            "left": pad_rows(QUESTION, "<pad>", side="left"),
        },
        "shape": {
            **asdict(SHAPE),
            "kv_bytes_per_token": SHAPE.kv_bytes_per_token,
            "linear_weights": SHAPE.linear_weights,
        },
        "ledger": ledger(prompts, outputs, LEDGER_BATCH),
        "prefill_share": {str(size): prefill_share(prompts, size) for size in BATCH_SIZES},
        "source": conversation.description,
    }


def picture() -> dict[str, Any]:
    """The two sequences, left-padded, in a pool that other requests have churned."""
    rows = pad_rows([sentence.split() for sentence in SENTENCES], "<pad>", side="left")
    allocator = BlockAllocator(NUM_BLOCKS, BLOCK_SIZE)
    # Any seed scatters the blocks; with this one the picture is easy to read.
    rng = random.Random(7)
    live: list[int] = []

    def someone_leaves() -> None:
        allocator.free(live.pop(rng.randrange(len(live))))

    for request in range(2, 60):
        while allocator.num_free_blocks < 14:
            someone_leaves()
        allocator.allocate(request, rng.randint(1, 6))
        live.append(request)
    for seq, row in enumerate(rows):
        while allocator.num_free_blocks < 8:
            someone_leaves()
        allocator.allocate(seq, len(row))
        someone_leaves()
    allocator.check_invariants()
    names = {request: chr(ord("C") + place) for place, request in enumerate(live)}
    return {
        "rows": rows,
        "block_tables": [allocator.block_table(seq) for seq in range(len(rows))],
        "num_blocks": NUM_BLOCKS,
        "block_size": BLOCK_SIZE,
        "others": {str(block): names[request] for request in live for block in allocator.block_table(request)},
        "num_free_blocks": allocator.num_free_blocks,
    }


def ledger(prompts: list[int], outputs: list[int], size: int) -> dict[str, float]:
    """Slots, FLOPs and bytes of static batches of `size` rows in order of arrival; a short last batch is left out."""
    total: Account | None = None
    for start in range(0, len(prompts) - size + 1, size):
        batch = static_batch(prompts[start : start + size], outputs[start : start + size], SHAPE)
        total = batch if total is None else total + batch
    assert total is not None, "fewer requests than one batch"
    return {
        "batch_size": size,
        "slots_lost": total.slots_lost,
        "flops_lost": total.flops_lost,
        "bytes_lost": total.bytes_lost,
        "slots": total.slots,
        "slots_needed": total.slots_needed,
    }


def prefill_share(prompts: list[int], size: int) -> dict[str, float]:
    """Padding share of the prompts' rectangles: as they came, sorted inside a window of arrivals, sorted as a whole."""
    windowed = [token for start in range(0, len(prompts), WINDOW) for token in sorted(prompts[start : start + WINDOW])]
    orders = {"arrival": prompts, "window": windowed, "sorted": sorted(prompts)}
    shares = {}
    for name, lengths in orders.items():
        batches = [lengths[start : start + size] for start in range(0, len(lengths) - size + 1, size)]
        slots = sum(size * max(batch) for batch in batches)
        shares[name] = 1 - sum(map(sum, batches)) / slots
    return shares
