"""When two plays of one plan count as equal: rounding may differ, and nothing else."""

# Everything below needs Triton, in the interpreter where there is no GPU.
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.triton_here import import_triton

if not import_triton():
    pytest.skip("Triton is not installed here", allow_module_level=True)

from autograder.gpu.answers import _alike


def stored(tensor: Tensor) -> Tensor:
    """A buffer as the process holds it, between guards that are far larger than any answer."""
    guard = torch.full((64,), -777.0, dtype=tensor.dtype)
    return torch.cat([guard, tensor, guard]).view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_last_bit_may_differ(dtype: torch.dtype) -> None:
    answer = torch.linspace(0.1, 0.9, 32).to(dtype)
    other = answer.clone()
    other[::5] *= 1 + torch.finfo(dtype).eps
    assert _alike(stored(answer), stored(other), str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("change", [0.05, float("nan"), float("inf")], ids=["another number", "NaN", "infinity"])
def test_one_other_number_among_guards_is_seen(change: float) -> None:
    answer = torch.linspace(0.01, 0.02, 32)
    other = answer.clone()
    other[7] = change
    assert not _alike(stored(answer), stored(other), "float32")


def test_integers_are_equal_or_not() -> None:
    one = torch.arange(8, dtype=torch.int32)
    assert _alike(one.view(torch.uint8), one.clone().view(torch.uint8), "int32")
    assert not _alike(one.view(torch.uint8), (one + 1).view(torch.uint8), "int32")


def test_numbers_that_are_not_numbers_are_equal_where_both_have_them() -> None:
    one, other = torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0 + 1e-7])
    assert _alike(stored(one), stored(other), "float32")
