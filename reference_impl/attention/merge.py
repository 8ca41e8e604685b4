"""Pieces of one sequence become its answer, on the device.

Owns: the Triton functions that add partial results by log-sum-exp. Knows nothing of how they came about.
A piece is the normalised output over its tokens and the logarithm, to base 2, of the sum of exponentials behind it;
that of a piece without tokens is -inf and weighs nothing. Pieces are taken many at a time: their loads wait together.
Source: Dao et al., NeurIPS 2022, section 3.1; `reference.merge` is the same for two.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Begun:
    """What the first `tokens` tokens of every sequence gave, in pieces; who goes on from it reads none of them again.

    out: [pieces, batch, heads, head_dim], lse: [pieces, batch, heads], both float32 and contiguous.
    """

    tokens: int
    out: Tensor
    lse: Tensor

    def check(self, query: Tensor) -> None:
        """Raises: ValueError unless there are pieces for such a query [batch, heads, head_dim]."""
        pieces = self.out.shape[:1]
        for name, found, shape in (("out", self.out, query.shape), ("lse", self.lse, query.shape[:2])):
            if found.shape != (*pieces, *shape) or found.dtype != torch.float32 or not found.is_contiguous():
                what = f"begun.{name} is {tuple(found.shape)} of {found.dtype}"
                raise ValueError(f"{what}: need contiguous float32 for a query of {tuple(query.shape)}")


@triton.jit
def _add(top, weight_sum, out, lse, found):
    """One piece more, to the largest logarithm so far, the sum of weights under it and the weighted outputs."""
    higher = tl.maximum(top, lse)
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    fade, weight = tl.exp2(top - shift), tl.exp2(lse - shift)
    return higher, weight_sum * fade + weight, out * fade[:, None] + found * weight[:, None]


@triton.jit
def go_on_from(
    pieces_out,
    pieces_lse,
    pieces,
    sequence,
    batch,
    at_head,
    heads,
    head_stop,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """The state of an online softmax, (top [ROWS], sum of weights [ROWS], output [ROWS, DIMS]), behind the `pieces`
    of a `Begun`; with 0 of them, behind nothing."""
    dim = tl.arange(0, DIMS)
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight_sum = tl.zeros((ROWS,), dtype=tl.float32)
    out = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    for start in range(0, pieces, PIECES):
        for ahead in tl.static_range(PIECES):
            piece = start + ahead
            at = (sequence + piece * batch) * heads + at_head
            there = (at_head < head_stop) & (piece < pieces)
            lse = tl.load(pieces_lse + at, mask=there, other=float("-inf"))
            place = pieces_out + at[:, None] * HEAD_DIM + dim[None, :]
            found = tl.load(place, mask=there[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
            top, weight_sum, out = _add(top, weight_sum, out, lse, found)
    return top, weight_sum, out


@triton.jit
def merge_pieces(
    partial_out,
    partial_lse,
    share,
    last,
    at_head,
    heads,
    head_stop,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """[ROWS, DIMS] float32, heads `at_head` [ROWS] below `head_stop`, over the pieces of shares `share` to `last`.

    The piece of the first share is the one that begins there (slot 1), those of the others came in (slot 0).
    """
    dim = tl.arange(0, DIMS)
    top = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight_sum = tl.zeros((ROWS,), dtype=tl.float32)
    out = tl.zeros((ROWS, DIMS), dtype=tl.float32)
    for start in range(share, last + 1, PIECES):
        for ahead in tl.static_range(PIECES):
            piece = start + ahead
            at = (piece * 2 + (piece == share).to(tl.int64)) * heads + at_head
            there = (at_head < head_stop) & (piece <= last)
            # .cg: other multiprocessors wrote these, and this one's first-level cache may be older.
            lse = tl.load(partial_lse + at, mask=there, other=float("-inf"), cache_modifier=".cg")
            found = tl.load(
                partial_out + at[:, None] * HEAD_DIM + dim[None, :],
                mask=there[:, None] & (dim < HEAD_DIM)[None, :],
                other=0.0,
                cache_modifier=".cg",
            )
            top, weight_sum, out = _add(top, weight_sum, out, lse, found)
    return out / tl.where(weight_sum == 0.0, 1.0, weight_sum)[:, None]
