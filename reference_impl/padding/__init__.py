"""Padding: unequal sequences made into a rectangle, what that rectangle costs, and packing, which has none.

Owns: rows of one length (`rows.py`), padded and packed batches as tensors (`batch.py`), the choice of which sequences
share a batch (`batches.py`, with the tree of `first_fit.py` beneath), the account in cache slots, arithmetic and memory
traffic (`account.py`), the ways of batching side by side (`compare.py`), and the check of lengths that they share
(`lengths.py`). Knows nothing of models, time or paging.
Only `batch.py` needs torch, so it is not imported here: `from reference_impl.padding.batch import pad_batch`.
Start with `account.py`.
"""

from reference_impl.padding.account import Account, ModelShape, packed_prefill, padded_prefill, static_batch
from reference_impl.padding.batches import (
    arrival_batches,
    bucketed,
    make_batches,
    pack_rows,
    padding_share,
    windowed,
)
from reference_impl.padding.compare import Way, padding_table
from reference_impl.padding.rows import pad_rows, padded_width

__all__ = [
    "Account",
    "ModelShape",
    "Way",
    "arrival_batches",
    "bucketed",
    "make_batches",
    "pack_rows",
    "packed_prefill",
    "pad_rows",
    "padded_prefill",
    "padded_width",
    "padding_share",
    "padding_table",
    "static_batch",
    "windowed",
]
