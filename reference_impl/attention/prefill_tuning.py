"""How large the tiles of prefill are: what a program's registers and a multiprocessor's shared memory hold.

Owns: the rule. Knows nothing of the kernel. It asks for the bytes of a head alone, so that shapes nobody measured are
treated like those that were.

Of 128 rows, 256 threads hold head_dim / 2 numbers of the output each, tile / 2 scores and half as much of weights in 16
bits. With the addresses that is 127 registers for 64 numbers a head and tiles of 64, so that two programs fit, and 247
for 256 and tiles of 32: with 255 a thread has no more (compiled by triton 3.6 for an H100).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PrefillTuning:
    """Rows of a tile of queries, (token, head) each; tokens of a tile of keys, and of one that an edge crosses, which
    divides it; warps and pipeline stages."""

    rows: int
    tile_tokens: int
    edge_tokens: int
    num_warps: int
    num_stages: int


def prefill_tuning_for(head_dim: int, dtype: torch.dtype) -> PrefillTuning:
    """What the registers hold, from the bytes of a head alone. See NOTES.md."""
    if dtype.itemsize > 2:
        # No tensor cores: all the products of a tile are written out, thread by thread.
        return PrefillTuning(rows=32, tile_tokens=16, edge_tokens=16, num_warps=8, num_stages=1)
    head_bytes = max(16, head_dim) * dtype.itemsize
    if head_bytes <= 256:
        # Up to 128 bytes two programs fit on a multiprocessor: one multiplies while the other takes exponentials.
        # Above, tiles of 128 would fit the registers too, and were 7 to 29 % slower: two under way are worth more.
        return PrefillTuning(rows=128, tile_tokens=64, edge_tokens=64, num_warps=8, num_stages=3)
    return PrefillTuning(rows=128, tile_tokens=32, edge_tokens=32, num_warps=8, num_stages=3)
