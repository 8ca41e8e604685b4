"""What holds of every run of a kernel, whatever it computes: what is not its own stays, and what is, is right.

Owns: the memory around an answer, and how near to the oracle an answer must be. Knows nothing of any kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ERRORS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Relative L2 over the output; 4 times that in each row, as lab 4 has it."""
_AROUND = 7.0


def guarded(inputs: Sequence[Tensor], query: Tensor, call: Callable[[Tensor], None], rows: int | None = None) -> Tensor:
    """The first `rows` rows, all unless given, of what `call` writes into an answer of the shape of `query`.

    Raises: AssertionError if an input was changed, or anything was written beside these rows.
    """
    before = [tensor.clone() for tensor in inputs]
    # Rows of the answer lie apart, and what lies between is not the kernel's.
    tokens, heads, head_dim = query.shape
    around = torch.full((tokens, heads + 1, head_dim + 3), _AROUND, dtype=query.dtype, device=query.device)
    out = around[:, :heads, :head_dim]
    rows = tokens if rows is None else rows
    out[:rows] = float("nan")
    call(out)
    for was, tensor in zip(before, inputs, strict=True):
        assert torch.equal(was.nan_to_num(12345.0), tensor.nan_to_num(12345.0)), "an input was changed"
    assert bool((around[:, heads:] == _AROUND).all()), "written beside out"
    assert bool((around[:, :, head_dim:] == _AROUND).all()), "written beside out"
    assert bool((out[rows:] == _AROUND).all()), "a pad was written"
    return out[:rows].clone()


def check_near(out: Tensor, want: Tensor) -> None:
    """Raises: AssertionError unless `out` is `want`, in float64, within the error of its own type."""
    assert bool(out.isfinite().all()), "not every element is a number"
    limit = ERRORS[out.dtype]
    missed = out.double() - want
    assert float(missed.norm()) <= limit * max(float(want.norm()), 1e-30) or not want.numel(), "too far from the oracle"
    rows, size = missed.norm(dim=-1), want.norm(dim=-1)
    assert bool((rows <= 4 * limit * size + (size == 0) * limit).all()), "a row is too far from the oracle"
