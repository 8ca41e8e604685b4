"""A layer's norm, its gate and a step's turns, each in one Triton kernel.

Owns: the kernels and the calls around them. Knows nothing of layers. Each reads its input once, computes in float32
whatever the dtype, and rounds once. A decode step of a few hundred tokens moves some megabytes through them, two
microseconds: what they cost is that they are started, so there are few of them.
Cost: every byte read and written once; one launch each.
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
from reference_impl.model.ops import Unnormed

LONGEST_ROW = 16_384
"""Numbers of a row that one program holds in its registers."""
_GATED = 1_024
"""Numbers of the gated product that one program makes."""
_TURNS = 512
"""Angles of one program."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last of [rows, size], a new tensor; rows of x have any stride.

    Raises: ValueError, with nothing computed, on shapes that do not go together or more than LONGEST_ROW numbers.
    Source: Zhang and Sennrich, NeurIPS 2019.
    """
    if x.dim() != 2 or weight.shape != x.shape[1:] or (x.stride(1) != 1 and x.shape[1] > 1):
        found = f"{tuple(x.shape)} of strides {x.stride()} with a weight of shape {tuple(weight.shape)}"
        raise ValueError(f"a norm of {found}: need [rows, size] with contiguous rows, and [size]")
    rows, size = x.shape
    if size > LONGEST_ROW:
        raise ValueError(f"a norm over {size} numbers: at most {LONGEST_ROW} fit into a program")
    out = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    if rows:
        block = next_power_of_2(size)
        warps = max(1, min(16, block // 256))
        _rms_norm[(rows,)](x, weight, out, eps, x.stride(0), SIZE=size, BLOCK=block, num_warps=warps)
    return out


def gated(gate_up: Tensor, unnormed: Unnormed | None = None) -> Tensor:
    """silu(gate) * up [rows, inner], a new tensor, of gate and up side by side in [rows, 2 * inner], any row stride.

    unnormed: what gate and up were made of, if that was not normed before.
    Raises: ValueError, with nothing computed, on another shape. Source: Shazeer, 2020.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or gate_up.stride(1) != 1:
        found = f"{tuple(gate_up.shape)} of strides {gate_up.stride()}"
        raise ValueError(f"gate and up are {found}: need [rows, 2 * inner] with contiguous rows")
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device)
    late, constants = late_norm(unnormed, rows)
    if rows:
        grid = (rows, cdiv(inner, _GATED))
        _gated[grid](gate_up, out, gate_up.stride(0), *late, INNER=inner, BLOCK=_GATED, **constants)
    return out


def late_norm(unnormed: Unnormed | None, tokens: int) -> tuple[tuple[Tensor | float | None, ...], dict[str, int]]:
    """What a kernel that calls `norm_factor` needs for it: rows, their stride and eps, and its constants.

    Raises: ValueError unless there is one row for each of `tokens`, of at most LONGEST_ROW numbers side by side.
    """
    if unnormed is None:
        return (None, 0, 0.0), {"NORM_SIZE": 0, "NORM_BLOCK": 1}
    rows = unnormed.rows
    is_right = rows.dim() == 2 and len(rows) == tokens and 1 <= rows.shape[1] <= LONGEST_ROW
    if not is_right or (rows.stride(1) != 1 and rows.shape[1] > 1):
        found = f"{tuple(rows.shape)} of strides {rows.stride()}"
        raise ValueError(f"unnormed rows are {found}: need {tokens} contiguous ones of 1 to {LONGEST_ROW} numbers")
    size = rows.shape[1]
    return (rows, rows.stride(0), unnormed.eps), {"NORM_SIZE": size, "NORM_BLOCK": next_power_of_2(size)}


def turns(positions: Tensor, frequencies: Tensor, amplitude: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [tokens, planes] float32, times `amplitude`, of positions [tokens] and frequencies [planes].

    Once a step, not once a layer: sixteen layers read what one computes. Angles in float32, as `Rotary.at` has them.
    Raises: ValueError, with nothing computed, on positions that are not one contiguous int32 or int64 a token.
    """
    if positions.dim() != 1 or positions.dtype not in (torch.int32, torch.int64) or not positions.is_contiguous():
        found = f"{tuple(positions.shape)} of {positions.dtype}"
        raise ValueError(f"positions are {found}: need one int32 or int64 for each token, in one piece")
    tokens, planes = positions.shape[0], frequencies.shape[0]
    cos, sin = torch.empty(2, tokens, planes, dtype=torch.float32, device=positions.device)
    if tokens:
        columns = next_power_of_2(planes)
        rows = max(1, _TURNS // columns)
        grid = (cdiv(tokens, rows),)
        _turns[grid](positions, frequencies, cos, sin, amplitude, tokens, PLANES=planes, COLUMNS=columns, ROWS=rows)
    return cos, sin


@triton.jit
def _rms_norm(x, weight, out, eps, x_row, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    # 64 bits: a prompt's rows may have more than 2**31 numbers.
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    kept = at < SIZE
    numbers = tl.load(x + row * x_row + at, mask=kept, other=0.0).to(tl.float32)
    scale = tl.load(weight + at, mask=kept, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(numbers * numbers, 0) / SIZE + eps)
    tl.store(out + row * SIZE + at, (numbers * factor * scale).to(out.dtype.element_ty), mask=kept)


@triton.jit
def norm_factor(row, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """What the norm of the SIZE numbers at `row` multiplies by."""
    at = tl.arange(0, BLOCK)
    numbers = tl.load(row + at, mask=at < SIZE, other=0.0).to(tl.float32)
    return tl.rsqrt(tl.sum(numbers * numbers, 0) / SIZE + eps)


@triton.jit
def _gated(
    gate_up,
    out,
    row_stride,
    unnormed,
    unnormed_row,
    eps,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM_SIZE: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = at < INNER
    source = gate_up + row * row_stride + at
    gate = tl.load(source, mask=kept, other=0.0).to(tl.float32)
    up = tl.load(source + INNER, mask=kept, other=0.0).to(tl.float32)
    if NORM_SIZE > 0:
        factor = norm_factor(unnormed + row * unnormed_row, eps, NORM_SIZE, NORM_BLOCK)
        gate *= factor
        up *= factor
    made = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * INNER + at, made.to(out.dtype.element_ty), mask=kept)


# Positions: as lengths in attention/paged_prefill.py.
@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["positions"])
def _turns(
    positions,
    frequencies,
    cos,
    sin,
    amplitude,
    tokens,
    PLANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    plane = tl.arange(0, COLUMNS)
    position = tl.load(positions + token, mask=token < tokens, other=0).to(tl.float32)
    frequency = tl.load(frequencies + plane, mask=plane < PLANES, other=0.0)
    angle = position[:, None] * frequency[None, :]
    at = token[:, None] * PLANES + plane[None, :]
    kept = (token < tokens)[:, None] & (plane < PLANES)[None, :]
    tl.store(cos + at, tl.cos(angle) * amplitude, mask=kept)
    tl.store(sin + at, tl.sin(angle) * amplitude, mask=kept)
