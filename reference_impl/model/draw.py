"""Tokens drawn on a GPU: two passes over logits that are too many to be read more often.

Owns: the Triton kernels and the call around them. Knows nothing of requests, seeds or wishes. A row's vocabulary falls
into blocks. The first pass leaves for each block its largest logit and the sum of exp((logit - largest) / temperature),
or, where the row is greedy, who is the largest. The second adds the sums up in order, finds the block in which the
running sum passes number * total, and reads that block alone once more:

    blocks        |  0  |  1  |  2  |  3  |     number * total lies in block 2: of all logits
    running sum   0     s0   +s1   +s2 ^ +s3    only those of block 2 are looked at again

Weights are computed in float32, sums of more than a block in float64; where two sums in another order differ by a
millionth of the total, a number that close to a boundary may fall to its other side. A token of weight 0 is never
drawn, since only those of some weight are looked at.
Nothing waits for the device, so a graph can hold both.
Cost: every logit read once, one block of each row twice; two launches.
Source: inverse transform sampling, Devroye, 1986, section III.2; the running maximum is Milakov and Gimelshein's, 2018.
"""

# Kernels take pointers and constants that Python's types do not describe, and Triton ships no types.
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from reference_impl.attention.sizes import cdiv, next_power_of_2

BLOCK_TOKENS = 4_096
"""Logits of a program: enough that a block's record is nothing beside it, few enough to be read twice."""
LEAST_TEMPERATURE = 1e-30
"""What float32 divides by without trouble; 0 itself is greedy."""
BAD_ROWS = {-1: "NaN", -2: "+inf", -3: "nothing but -inf"}
"""What stands in place of a token where a row's logits hold no choice."""
_LOG2_E = tl.constexpr(1.4426950408889634)


def draw(
    logits: Tensor, temperatures: Tensor, numbers: Tensor, out: Tensor, *, block_tokens: int = BLOCK_TOKENS
) -> None:
    """A token of each row into out [rows] int64: the first, by id, at which the running sum of shares passes a number.

    logits: [rows, vocab], any floating-point type, rows of any stride, read only; -inf forbids a token. temperatures:
    [rows] float32, at least LEAST_TEMPERATURE, or 0 for the largest logit, lowest id first. numbers: [rows] float64,
    0 <= number < 1. A row without a choice gets a key of BAD_ROWS. block_tokens: a power of 2.
    Raises: ValueError, with nothing launched, on shapes or types that do not go together.
    """
    _check(logits, temperatures, numbers, out)
    rows, vocab = logits.shape
    if not rows:
        return
    block = min(block_tokens, next_power_of_2(vocab))
    blocks = cdiv(vocab, block)
    # What pass one leaves of each block: its largest logit, and a sum or whose the largest is.
    largest = torch.empty(rows, blocks, dtype=torch.float32, device=logits.device)
    found = torch.empty_like(largest)
    sizes = (vocab, logits.stride(0), blocks)
    _weigh[(rows * blocks,)](logits, temperatures, largest, found, *sizes, BLOCK=block, num_warps=4)
    _choose[(rows,)](
        logits,
        temperatures,
        numbers,
        largest,
        found,
        out,
        *sizes,
        BLOCK=block,
        BLOCKS=next_power_of_2(blocks),
        num_warps=8,
    )


@triton.jit
def _weigh(logits, temperatures, largest, found, vocab, row_stride, blocks, BLOCK: tl.constexpr):
    """One block of one row. A NaN anywhere makes the block's largest a NaN."""
    to = tl.program_id(0)
    row = (to // blocks).to(tl.int64)
    block = to % blocks
    at = tl.arange(0, BLOCK)
    left = vocab - block * BLOCK
    start = logits + row * row_stride + block * BLOCK
    x = tl.load(start + at, mask=at < left, other=float("-inf")).to(tl.float32)
    temperature = tl.load(temperatures + row)
    top = tl.max(x, 0)
    broken = tl.max((x != x).to(tl.int32), 0)
    tl.store(largest + to, tl.where(broken > 0, float("nan"), top))
    if temperature > 0:
        # A block of nothing but -inf has no largest to subtract, and weighs nothing.
        shift = tl.where(top == float("-inf"), 0.0, top)
        tl.store(found + to, tl.sum(tl.exp2((x - shift) * (_LOG2_E / temperature)), 0))
    else:
        # Whole numbers up to a block's length are exact in float32.
        tl.store(found + to, tl.min(tl.where(x == top, at, BLOCK), 0).to(tl.float32))


@triton.jit
def _choose(
    logits,
    temperatures,
    numbers,
    largest,
    found,
    out,
    vocab,
    row_stride,
    blocks,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One row, from what is known of its blocks."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    tops = tl.load(largest + row * blocks + block, mask=there, other=float("-inf"))
    sums = tl.load(found + row * blocks + block, mask=there, other=0.0)
    temperature = tl.load(temperatures + row)
    top = tl.max(tops, 0)
    if tl.max((tops != tops).to(tl.int32), 0) > 0:
        tl.store(out + row, -1)
    elif top == float("inf"):
        tl.store(out + row, -2)
    elif top == float("-inf"):
        tl.store(out + row, -3)
    elif temperature > 0:
        number = tl.load(numbers + row)
        scale = _LOG2_E / temperature
        weights = sums.to(tl.float64) * tl.exp2((tops - top) * scale).to(tl.float64)
        chosen, before = _first_past(weights, number * tl.sum(weights, 0), block, BLOCKS)
        # All that is known of one block is what the others are masked away from.
        mine = block == chosen
        mine_top = tl.max(tl.where(mine, tops, float("-inf")), 0)
        weight = tl.sum(tl.where(mine, weights, 0.0), 0)
        block_sum = tl.sum(tl.where(mine, sums.to(tl.float64), 0.0), 0)
        left = (number * tl.sum(weights, 0) - before) / weight * block_sum
        at = tl.arange(0, BLOCK)
        start = logits + row * row_stride + chosen * BLOCK
        x = tl.load(start + at, mask=at < vocab - chosen * BLOCK, other=float("-inf")).to(tl.float32)
        token, _ = _first_past(tl.exp2((x - mine_top) * scale).to(tl.float64), left, at, BLOCK)
        tl.store(out + row, (chosen * BLOCK + token).to(tl.int64))
    else:
        first = tl.min(tl.where(there & (tops == top), block, BLOCKS), 0)
        within = tl.sum(tl.where(block == first, sums, 0.0), 0)
        tl.store(out + row, first.to(tl.int64) * BLOCK + within.to(tl.int64))


@triton.jit
def _first_past(weights, target, place, SIZE: tl.constexpr):
    """The first place of some weight at which the running sum passes `target`, and the sum before it.

    The last of some weight where rounding leaves the sum short of the target. Only places of some weight count: sums
    that are added up in a tree need not grow where a weight is 0, nor stay.
    """
    running = tl.cumsum(weights, 0)
    some = weights > 0
    first = tl.min(tl.where(some & (running > target), place, SIZE), 0)
    last = tl.max(tl.where(some, place, 0), 0)
    chosen = tl.minimum(first, last)
    return chosen, tl.sum(tl.where(place < chosen, weights, 0.0), 0)


def _check(logits: Tensor, temperatures: Tensor, numbers: Tensor, out: Tensor) -> None:
    flat = logits.dim() == 2 and logits.shape[1] and (logits.stride(1) == 1 or logits.shape[1] == 1)
    if not flat or not logits.is_floating_point():
        found = f"{tuple(logits.shape)} of {logits.dtype} and strides {logits.stride()}"
        raise ValueError(f"logits are {found}: need floating-point [rows, vocab] with contiguous rows")
    for name, tensor, dtype in (
        ("temperatures", temperatures, torch.float32),
        ("numbers", numbers, torch.float64),
        ("out", out, torch.int64),
    ):
        if tensor.shape != logits.shape[:1] or tensor.dtype != dtype or not tensor.is_contiguous():
            found = f"{tuple(tensor.shape)} of {tensor.dtype}"
            raise ValueError(f"{name} is {found}: need {dtype} in one piece for each of {logits.shape[0]} rows")
