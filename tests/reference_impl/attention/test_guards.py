"""The guards around every run of a kernel notice what a kernel must not do."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.reference_impl.attention.guards import check_near, guarded

QUERY = torch.ones(3, 2, 4)


def beside(out: Tensor) -> None:
    # The first number behind the last head's last one.
    torch.as_strided(out, (1,), (1,), out.storage_offset() + (out.shape[1] - 1) * out.stride(1) + out.shape[2]).fill_(0)


def behind(out: Tensor) -> None:
    out[2] = 0.0


def right(out: Tensor) -> None:
    out[:2] = 1.0


def test_an_answer_where_it_belongs_is_given() -> None:
    assert torch.equal(guarded([QUERY], QUERY, right, 2), QUERY[:2])


@pytest.mark.parametrize(("wrong", "said"), [(beside, "written beside out"), (behind, "a pad was written")])
def test_what_is_written_where_it_must_not_be_is_told(wrong: Callable[[Tensor], None], said: str) -> None:
    def call(out: Tensor) -> None:
        right(out)
        wrong(out)

    with pytest.raises(AssertionError, match=said):
        guarded([QUERY], QUERY, call, 2)


def test_an_input_that_is_changed_is_told() -> None:
    given = QUERY.clone()
    with pytest.raises(AssertionError, match="an input was changed"):
        guarded([given], QUERY, lambda out: given.zero_())


@pytest.mark.parametrize(
    ("off", "said"),
    [(math.nan, "not every element is a number"), (1e-2, "too far from the oracle"), (3e-5, "a row is too far")],
)
def test_an_answer_that_is_off_is_told(off: float, said: str) -> None:
    # Rows of 1 and one of 0.1, whose error hides among the others'.
    want = torch.ones(100, 1, 4, dtype=torch.float64)
    want[7] = 0.1
    out = want.float()
    check_near(out, want)
    out[7] += off
    with pytest.raises(AssertionError, match=said):
        check_near(out, want)
