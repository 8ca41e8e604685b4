"""Whether the decodes of a batch begin alike, and whether it pays to read their beginning once.

Owns: the tokens that all of them have in the same blocks, and the bytes from which on a kernel of its own for these is
the faster way. Knows nothing of why blocks are shared: a prefix cache, forks, anything that gives two sequences one
block. Nothing is compared but block ids, on the host, which has them anyway.
Cost: O(sequences) where they do not begin alike, O(sequences * common blocks) where they do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PAYS_BYTES = 2**28
"""Bytes of one layer that need not be read again, from which on `cascade_decode` is used.

Measured on an H100 (NOTES.md): plain decode reads a prefix again at some 5.5 TB/s, since it lies in the second-level
cache, and the kernel that reads it once takes some 20 us, so that 110 MB are what it costs; this is twice as much.
"""


def common_prefix_tokens(block_tables: NDArray[np.int32], context_tokens: Sequence[int], block_size: int) -> int:
    """Tokens at the beginning of all sequences that lie in the same blocks; 0 of a single one.

    block_tables [sequences, blocks], context_tokens of each. Whole blocks that every context fills.
    """
    blocks = min(context_tokens, default=0) // block_size
    if len(block_tables) < 2 or not blocks or (block_tables[:, 0] != block_tables[0, 0]).any():
        return 0
    alike = (block_tables[:, :blocks] == block_tables[0, :blocks]).all(axis=0)
    return (blocks if alike.all() else int(alike.argmin())) * block_size


def spared_bytes(sequences: int, prefix_tokens: int, bytes_per_token: int) -> int:
    """What one layer reads less if a prefix is read once. bytes_per_token: keys and values of one token."""
    return max(0, sequences - 1) * prefix_tokens * bytes_per_token
