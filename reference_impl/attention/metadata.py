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
    """One batch on the host: the arrays of `AttentionMetadata`, in its shapes and types, before a device has them.

    positions  [tokens] int64: where each query token stands in its sequence; 0 for a pad
    """

    slot_mapping: NDArray[np.int64]
    block_tables: NDArray[np.int32]
    context_lens: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    positions: NDArray[np.int64]
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
    """The metadata of `rows` on `device`, with `num_pads` pads behind their tokens.

    Raises: ValueError, naming the row, as `lay_out`, and unless a table has a block for every token of its context.
    Cost: O(tokens + blocks in the tables).
    """
    for place, row in enumerate(rows):
        if len(row.block_table) * block_size < row.context_tokens:
            blocks = len(row.block_table)
            raise ValueError(f"row {place}: {blocks} blocks of {block_size} do not hold {row.context_tokens} tokens")
    tables = np.full((len(rows), max((len(row.block_table) for row in rows), default=0)), -1, dtype=np.int32)
    for place, row in enumerate(rows):
        tables[place, : len(row.block_table)] = row.block_table
    queries, contexts = [row.query_tokens for row in rows], [row.context_tokens for row in rows]
    layout = lay_out(tables, queries, contexts, block_size, num_pads=num_pads)
    return layout.metadata([torch.from_numpy(array).to(device) for array in layout.arrays])


def lay_out(
    block_tables: NDArray[np.int32],
    query_tokens: Sequence[int],
    context_tokens: Sequence[int],
    block_size: int,
    *,
    num_pads: int = 0,
) -> BatchLayout:
    """The layout of sequences with so many query tokens and tokens of context, and `num_pads` pads behind them.

    block_tables: [sequences, max_blocks] int32, with a block for every token of each context, which is not checked.
    Raises: ValueError, naming the row, unless rows with one query token stand first and 1 <= query <= context.
    Cost: O(tokens), all of it NumPy's.
    """
    # NumPy takes a list of integers several times as fast as torch does, and this runs in every step.
    queries, contexts = np.array(query_tokens, dtype=np.int64), np.array(context_tokens, dtype=np.int32)
    for place in np.flatnonzero((queries < 1) | (queries > contexts)):
        raise ValueError(f"row {place} has {queries[place]} query tokens in a context of {contexts[place]}")
    several = np.flatnonzero(queries > 1)
    num_decodes = int(several[0]) if len(several) else len(queries)
    if (queries[num_decodes:] == 1).any():
        raise ValueError(f"row {num_decodes} has {queries[num_decodes]} query tokens and stands before one that has 1")
    cu_seqlens = np.zeros(len(queries) + 1, dtype=np.int32)
    np.cumsum(queries, out=cu_seqlens[1:])
    row_of = np.repeat(np.arange(len(queries)), queries)
    positions = np.arange(len(row_of)) + (contexts - cu_seqlens[1:])[row_of]
    return BatchLayout(
        slot_mapping=_padded(_slots(block_tables, row_of, positions, block_size), num_pads, -1),
        block_tables=block_tables,
        context_lens=contexts,
        cu_seqlens=cu_seqlens,
        positions=_padded(positions, num_pads, 0),
        query_tokens=tuple(query_tokens),
        context_tokens=tuple(context_tokens),
        num_decodes=num_decodes,
    )


def _padded(numbers: NDArray[np.int64], num_pads: int, pad: int) -> NDArray[np.int64]:
    """With `pad` behind them so many times. Most batches have none, and to add none takes NumPy 17 us."""
    return np.pad(numbers, (0, num_pads), constant_values=pad) if num_pads else numbers


def _slots(
    tables: NDArray[np.int32], row_of: NDArray[np.int64], positions: NDArray[np.int64], block_size: int
) -> NDArray[np.int64]:
    """I8 for every query token: slot(t) = table[t // block_size] * block_size + t % block_size."""
    blocks = tables[row_of, positions // block_size].astype(np.int64)
    slots: NDArray[np.int64] = blocks * block_size + positions % block_size
    return slots
