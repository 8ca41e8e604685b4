"""Unequal sequences as tensors: one padded rectangle, or one packed row.

Why: a tensor has one shape, and prompts do not. Padding fills the rectangle and then needs a mask, positions and a bias
to make the pads invisible; packing lays the sequences end to end and needs their boundaries to keep them apart.
Owns: those tensors. Knows nothing of models, devices beyond that of its input, or which sequences belong in one batch
(that is `batches.py`). The only module of the package that needs torch.
Invariants: a real token reads real tokens of its own sequence alone, none of them later than itself; its position is
the number of real tokens before it; every row of a bias lets its query look somewhere.
Cost: O(rows * width) for ids, mask and positions; O(rows * width^2) for a bias.
Source: the causal mask is Vaswani et al., 2017, section 3.2.3; `cu_seqlens` is what the variable-length kernels of
FlashAttention (Dao et al., 2022) take; packing without leaks is Krell et al., 2021.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import SupportsIndex

import torch
from torch import Tensor

from reference_impl.padding.rows import pad_rows

_INT32_MAX = 2**31 - 1
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

Sequences = Sequence[Sequence[SupportsIndex]]


def pad_batch(
    sequences: Sequences, pad_id: SupportsIndex, side: str = "left", multiple_of: SupportsIndex = 1
) -> tuple[Tensor, Tensor]:
    """`(input_ids, attention_mask)`: [batch, width] int64, and [batch, width] bool, True at real tokens.

    The width is the longest length rounded up to `multiple_of`. The mask comes from the lengths, never from the ids, so
    `pad_id` may equal a real id and a sequence may be empty: its row is all pads.
    Raises: ValueError on no sequences, an unknown side, a multiple below 1, an id beyond int64; TypeError on an id that
    is no integer. Both name the place of the id. Cost: O(batch * width).
    """
    pad = _int64(pad_id, "pad_id")
    ids = pad_rows(_token_ids(sequences), pad, side, multiple_of)
    real = pad_rows([[True] * len(sequence) for sequence in sequences], False, side, multiple_of)
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(real, dtype=torch.bool)


def position_ids(attention_mask: Tensor) -> Tensor:
    """[batch, width] int64: real tokens count 0, 1, 2, ... from the start of their row, pads are 0 on any side.

    A pad's position is never used; 0 is safe in every table of positions. The pads of a mask with holes are skipped.
    Raises: ValueError unless the mask is [batch >= 1, width] bool. Cost: O(batch * width).
    """
    mask = _checked_mask(attention_mask)
    return (mask.cumsum(dim=1) - 1).masked_fill(~mask, 0)


def attention_bias(attention_mask: Tensor) -> Tensor:
    """[batch, 1, width, width] float32, to be added to the scores: 0 where a query may look, -inf elsewhere.

    A real query looks at the real keys up to and including itself. A pad query looks at itself and at nothing else:
    with no key at all its softmax would be 0/0, and its NaN would be a key and a value of the next layer. Nobody reads
    what it computes, so the cheapest row that is not empty will do, the same on either side.
    Adding -inf hides any finite pad. It does not hide NaN (NaN - inf and 0 * NaN are NaN), so a kernel whose masked
    slots may hold anything must select instead of add.
    Raises: ValueError unless the mask is [batch >= 1, width] bool. Cost: O(batch * width^2).
    """
    mask = _checked_mask(attention_mask)
    width = mask.shape[1]
    itself = torch.eye(width, dtype=torch.bool, device=mask.device)
    causal = torch.ones_like(itself).tril()
    may_look = torch.where(mask[:, None, :, None], causal & mask[:, None, None, :], itself)
    return _additive(may_look)


def pack(sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """`(input_ids, cu_seqlens, position_ids)`: [total] int64, [batch + 1] int32, [total] int64.

    Sequence i is tokens `cu_seqlens[i]` to `cu_seqlens[i + 1] - 1`, and its positions start again at 0. No slot is a
    pad. An empty sequence repeats a boundary.
    Raises: ValueError on no sequences, a total beyond int32, an id beyond int64; TypeError on an id that is no integer.
    Cost: O(total + batch).
    """
    total = sum(len(sequence) for sequence in sequences)
    if total > _INT32_MAX:
        raise ValueError(f"{total} tokens in one packed row: cu_seqlens is int32 and ends at {_INT32_MAX}")
    rows = _token_ids(sequences)
    boundaries = list(accumulate((len(row) for row in rows), initial=0))
    return (
        torch.tensor([token for row in rows for token in row], dtype=torch.int64),
        torch.tensor(boundaries, dtype=torch.int32),
        torch.tensor([place for row in rows for place in range(len(row))], dtype=torch.int64),
    )


def packed_bias(cu_seqlens: Tensor) -> Tensor:
    """[1, 1, total, total] float32: a causal triangle for each packed sequence, -inf between sequences.

    A packed row with this bias is a batch of one for any attention that takes a bias. A kernel for variable lengths
    reads the boundaries instead and never forms the square, which is why packing pays.
    Raises: ValueError unless cu_seqlens is [batch + 1] of integers, starts at 0 and never falls. Cost: O(total^2).
    """
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens must be [batch + 1] int32 or int64 with a batch of at least 1, "
            f"got {list(cu_seqlens.shape)} {cu_seqlens.dtype}"
        )
    lengths = cu_seqlens.diff()
    if cu_seqlens[0] != 0 or bool((lengths < 0).any()):
        raise ValueError(f"cu_seqlens must start at 0 and never fall, got {cu_seqlens.tolist()}")
    owner = torch.repeat_interleave(lengths)
    return _additive((owner[:, None] == owner[None, :]).tril())[None, None]


def _additive(may_look: Tensor) -> Tensor:
    return torch.zeros(may_look.shape, device=may_look.device).masked_fill_(~may_look, -torch.inf)


def _checked_mask(attention_mask: Tensor) -> Tensor:
    # A mask of 0 and 1 in integers would pass `~` and come out as -1 and -2: refused here, not wrong there.
    if attention_mask.dim() != 2 or attention_mask.shape[0] == 0 or attention_mask.dtype != torch.bool:
        raise ValueError(
            f"attention_mask must be [batch, width] bool with a batch of at least 1, "
            f"got {list(attention_mask.shape)} {attention_mask.dtype}"
        )
    return attention_mask


def _token_ids(sequences: Sequences) -> list[list[int]]:
    if len(sequences) == 0:
        raise ValueError("no sequences: a batch has at least one")
    return [
        [_int64(token, "sequence", row, "token", place) for place, token in enumerate(sequence)]
        for row, sequence in enumerate(sequences)
    ]


def _int64(value: SupportsIndex, *where: object) -> int:
    """The value as an integer that fits in int64; an error says where it stood (joined only then: this runs often)."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{' '.join(map(str, where))}: {value!r} is not an integer") from None
    if not _INT64_MIN <= number <= _INT64_MAX:
        raise ValueError(f"{' '.join(map(str, where))}: {number} does not fit in int64")
    return number
