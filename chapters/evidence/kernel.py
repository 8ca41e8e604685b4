"""Evidence for "The kernel on a GPU": the kept record of the kernels, and the engine's own shares of one batch.

Owns: which rows of the record and which batch the chapter may show. Knows nothing of how they are shown, and measures
nothing: the record was written by `engine bench kernels` on the machine that it names. The shares are those that the
engine would cut on that machine, computed by its own kernel in Triton's interpreter, so that no GPU is needed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# Triton reads it where a kernel is defined. This runs in a process of its own, so nobody else inherits it.
os.environ["TRITON_INTERPRET"] = "1"

from labkit.workloads import workload
from reference_impl import bench
from reference_impl.bench.kernel_cases import DECODE_CASES, REPLICA_BYTES
from reference_impl.bench.prefill_cases import PREFILL_CASES
from reference_impl.padding import ModelShape

RECORD = Path(bench.__file__).parent / "results" / "kernels.json"
SEQUENCES = 64
RESIDENT = 2
"""Programs of the engine's decode kernel on a multiprocessor."""
# The sizes of Llama 3 8B (Grattafiori et al., 2024, table 3), 16-bit weights and cache.
SHAPE = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
PREFILL = "prefill, 1 x 8k, 32/8, 128"


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    source = workload("azure_conv")
    made = source.output_tokens >= 1
    # As long as a request is in the middle of its answer.
    lengths = (source.prompt_tokens + source.output_tokens // 2)[made][:SEQUENCES].tolist()
    places = RESIDENT * record["machine"]["multiprocessors"]
    return {
        "device": record["machine"]["gpu"],
        "date": record["date"],
        "multiprocessors": record["machine"]["multiprocessors"],
        "resident": RESIDENT,
        "read_gb_s": record["ceilings"]["read_gb_s"],
        "replica_bytes": REPLICA_BYTES,
        "shape": {name: getattr(SHAPE, name) for name in ("layers", "heads", "kv_heads", "head_dim", "dtype_bytes")},
        "decode": [_decode(row) for row in record["decode"]],
        "prefill": _prefill(next(row for row in record["prefill"] if row["name"] == PREFILL)),
        "batch": {"source": source.description, "lengths": lengths, "shares": shares(lengths, places)},
    }


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    """One batch: what there is to read, and how long the textbook's kernel and ours took."""
    case = next(case for case in DECODE_CASES if case.name == row["name"])
    return {
        "name": row["name"],
        "sequences": len(case.lengths),
        "longest": max(case.lengths),
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "head_dim": case.head_dim,
        "block_size": case.block_size,
        "equal": case.equal,
        "kv_bytes": row["kv_bytes"],
        "floor_us": row["floor_us"],
        "textbook_us": row["results"]["textbook"].get("median_us"),
        "ours_us": row["results"]["ours"]["median_us"],
        "cut_us": row["cut_us"],
    }


def _prefill(row: dict[str, Any]) -> dict[str, Any]:
    """One prompt: its operations, the least that it reads and writes, and what ours reached."""
    case = next(case for case in PREFILL_CASES if case.name == row["name"])
    ((tokens, _),) = case.rows
    moved = tokens * 2 * (case.heads + case.kv_heads) * case.head_dim * case.dtype.itemsize
    return {"tokens": tokens, "flops": row["flops"], "bytes": moved, "tflop_s": row["results"]["ours"]["tflop_s"]}


def shares(lengths: list[int], places: int) -> list[list[list[int]]]:
    """For each share of the engine's work list for one KV head: its pieces as [sequence, tokens]."""
    import torch

    from reference_impl.attention.work_list import GRAIN_TOKENS, WorkList

    work = WorkList(
        len(lengths), SHAPE.heads, SHAPE.kv_heads, SHAPE.head_dim, torch.bfloat16, torch.device("cpu"), programs=places
    )
    work.refresh(torch.tensor(lengths, dtype=torch.int32))
    work.check_invariants()
    ends = work.ends.tolist()
    cut = []
    for grain, stop, *_ in work.cuts.tolist():
        pieces = []
        for who, length in enumerate(lengths):
            first = (max(grain, ends[who]) - ends[who]) * GRAIN_TOKENS
            last = min(length, (min(stop, ends[who + 1]) - ends[who]) * GRAIN_TOKENS)
            if last > first:
                pieces.append([who, last - first])
        cut.append(pieces)
    return cut
