"""What one step's attention must know of its batch: built once a step, the same for every layer.

Owns: the shape of a batch over paged memory. Knows nothing of requests, of who holds a block or of any kernel. There is
no "prefill" flag: a decode is a sequence with one query token.

    tokens       t0 t0 | t1 | t2 t2 t2 | pad pad      the queries of all sequences end to end, then pads
    cu_seqlens   0       2    3          6            pads belong to no sequence
    context      what a sequence has in the cache once this step's tokens are stored, its own queries included

Sequences with one query token stand first, so that a kernel for decodes sees them as one piece.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class BatchRow:
    """One sequence of a batch: its block table, its query tokens of this step, and its context with them, in tokens."""

    block_table: Sequence[int]
    query_tokens: int
    context_tokens: int


@dataclass(frozen=True)
class AttentionMetadata:
    """One batch.

    slot_mapping  [tokens] int64: the slot of each query token, -1 for a pad
    block_tables  [sequences, max_blocks] int32: -1 behind the last block of a sequence
    context_lens  [sequences] int32
    cu_seqlens    [sequences + 1] int32: where each sequence's query tokens begin
    query_tokens, context_tokens: the same counts on the host, so that nobody waits for the device to learn them
    num_decodes: sequences with one query token; they stand first
    prefix_tokens: that all of these have in the same blocks and that are worth reading once; which of them, the table
    of the first says. An attention may do so, or not
    worked_out: what an attention found out about this batch in its first layer and needs again in the others; whoever
    puts something in has a key of its own, and it goes with the batch
    """

    slot_mapping: Tensor
    block_tables: Tensor
    context_lens: Tensor
    cu_seqlens: Tensor
    query_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]
    num_decodes: int
    prefix_tokens: int = 0
    worked_out: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def num_tokens(self) -> int:
        """Query tokens of the batch, pads included."""
        return self.slot_mapping.shape[0]


@dataclass(frozen=True)
class BatchLayout:
    """One batch on the host: the arrays of `AttentionMetadata`, in its shapes and types, before a device has them."""

    slot_mapping: NDArray[np.int64]
    block_tables: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    query_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]
    num_decodes: int

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What a device needs, in the order in which `metadata` takes it."""
        return self.slot_mapping, self.block_tables, self.context_lens, self.cu_seqlens

    def metadata(self, arrays: Sequence[Tensor]) -> AttentionMetadata:
        """The batch, with `arrays` as the device has them."""
        slots, tables, contexts, starts = arrays
        return AttentionMetadata(
            slots, tables, contexts, starts, self.query_tokens, self.context_tokens, self.num_decodes
        )


def build_metadata(
    rows: Sequence[BatchRow], block_size: int, *, num_pads: int = 0, device: torch.device | str = "cpu"
) -> AttentionMetadata:
    """The metadata of `rows` on `device`; arguments, errors and cost as `lay_out`."""
    layout = lay_out(rows, block_size, num_pads=num_pads)
    return layout.metadata([torch.from_numpy(array).to(device) for array in layout.arrays])


def lay_out(rows: Sequence[BatchRow], block_size: int, *, num_pads: int = 0) -> BatchLayout:
    """The layout of `rows`, with `num_pads` pads behind their tokens.

    Raises: ValueError, naming the row, unless rows with one query token stand first, 1 <= query <= context, and a table
    has a block for every token of its context. Cost: O(tokens + blocks in the tables).
    """
    for place, row in enumerate(rows):
        if not 1 <= row.query_tokens <= row.context_tokens:
            raise ValueError(f"row {place} has {row.query_tokens} query tokens in a context of {row.context_tokens}")
        if len(row.block_table) * block_size < row.context_tokens:
            blocks = len(row.block_table)
            raise ValueError(f"row {place}: {blocks} blocks of {block_size} do not hold {row.context_tokens} tokens")
    queries = [row.query_tokens for row in rows]
    num_decodes = next((place for place, count in enumerate(queries) if count > 1), len(rows))
    if 1 in queries[num_decodes:]:
        raise ValueError(f"row {num_decodes} has {queries[num_decodes]} query tokens and stands before one that has 1")
    contexts = [row.context_tokens for row in rows]
    # NumPy takes a list of integers several times as fast as torch does, and this runs in every step.
    tables = np.full((len(rows), max((len(row.block_table) for row in rows), default=0)), -1, dtype=np.int32)
    for place, row in enumerate(rows):
        tables[place, : len(row.block_table)] = row.block_table
    cu_seqlens = np.cumsum([0, *queries], dtype=np.int32)
    lengths = np.array(contexts, dtype=np.int32)
    return BatchLayout(
        slot_mapping=_slots(tables, np.array(queries), lengths, cu_seqlens, block_size, num_pads),
        block_tables=tables,
        context_lens=lengths,
        cu_seqlens=cu_seqlens,
        query_tokens=tuple(queries),
        context_tokens=tuple(contexts),
        num_decodes=num_decodes,
    )


def _slots(
    tables: NDArray[np.int32],
    queries: NDArray[np.int64],
    contexts: NDArray[np.int32],
    cu_seqlens: NDArray[np.int32],
    block_size: int,
    num_pads: int,
) -> NDArray[np.int64]:
    """I8 for every query token: slot(t) = table[t // block_size] * block_size + t % block_size; -1 for every pad."""
    slots = np.full(int(cu_seqlens[-1]) + num_pads, -1, dtype=np.int64)
    if len(queries):
        row_of = np.repeat(np.arange(len(queries)), queries)
        position = np.arange(len(row_of)) + (contexts - cu_seqlens[1:])[row_of]
        blocks = tables[row_of, position // block_size].astype(np.int64)
        slots[: len(row_of)] = blocks * block_size + position % block_size
    return slots
