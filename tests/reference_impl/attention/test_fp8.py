"""The 8-bit format: what a number becomes, what it stands for, and the oracle over a cache of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.attention import reference
from reference_impl.attention.fp8 import FP8, LARGEST, as_bytes, check_scales, dequantised, quantised

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = torch.ones(1)


def code(number: float, scale: float = 1.0) -> float:
    """What the number stands for in 8 bits."""
    stored = quantised(torch.tensor([[number]]), torch.tensor([scale]))
    return float(dequantised(stored, torch.tensor([scale]), torch.float64))


def nearest(number: float) -> float:
    """By the definition: 3 bits behind the leading one, steps of 2**-9 at the bottom, to even in the middle."""
    step = 2.0 ** max(math.floor(math.log2(abs(number))) - 3, -9) if number else 1.0
    return max(-LARGEST, min(LARGEST, round(number / step) * step))


@given(number=st.floats(-1e4, 1e4, width=32) | st.floats(-0.03125, 0.03125, width=32))
def test_a_number_becomes_the_nearest_one_and_the_largest_where_it_is_larger(number: float) -> None:
    assert code(number) == nearest(number)


@given(number=st.floats(-1e3, 1e3, width=32), power=st.integers(-8, 8))
def test_a_scale_of_a_power_of_two_moves_the_point_and_nothing_else(number: float, power: int) -> None:
    assert code(number * 2.0**power, 2.0**power) == code(number) * 2.0**power


def test_nan_stays_nan_and_infinity_is_the_largest() -> None:
    assert math.isnan(code(math.nan))
    assert code(math.inf) == LARGEST
    assert code(-math.inf, 0.5) == -LARGEST / 2


def test_every_head_has_a_scale_of_its_own() -> None:
    scale = torch.tensor([0.25, 2.0])
    numbers = torch.tensor([[[1000.0, 1.0], [1000.0, 1.0]]])
    assert dequantised(quantised(numbers, scale), scale, torch.float32).tolist() == [[[112.0, 1.0], [896.0, 1.0]]]


def test_the_oracle_reads_what_it_stored_as_what_it_stands_for() -> None:
    generator = torch.Generator().manual_seed(3)
    key, value = torch.randn(2, 7, 2, 8, generator=generator)
    query = torch.randn(1, 4, 8, generator=generator)
    scales = {"k_scale": torch.tensor([0.02, 0.03]), "v_scale": torch.tensor([0.01, 0.05])}
    narrow = [torch.zeros(3, 4, 2, 8, dtype=FP8) for _ in range(2)]
    wide = [torch.zeros(3, 4, 2, 8, dtype=torch.float64) for _ in range(2)]
    slots = torch.tensor([8, 9, 10, 11, 0, 1, 2])
    reference.store_kv(key, value, *narrow, slots, **scales)
    pairs = zip((key, value), scales.values(), strict=True)
    meant = [dequantised(quantised(tensor, by), by, torch.float64) for tensor, by in pairs]
    reference.store_kv(*meant, *wide, slots)
    rest = (torch.tensor([[2, 0]]), torch.tensor([7]), 0.3)
    found = reference.paged_decode(query, *narrow, *rest, **scales)
    torch.testing.assert_close(found, reference.paged_decode(query, *wide, *rest), rtol=1e-12, atol=1e-12)
    assert not as_bytes(narrow[0])[1].any(), "a block of nobody's was written"


@pytest.mark.parametrize(
    ("k_scale", "v_scale", "said"),
    [
        (None, ONE, "a cache of torch.float8_e4m3fn needs k_scale, one float32 for each of 1 KV heads"),
        (ONE, None, "needs v_scale"),
        (ONE.double(), ONE, r"k_scale is \(1,\) of torch.float64 on cpu: need \(1,\) of torch.float32 on cpu"),
        (ONE, torch.ones(2), r"v_scale is \(2,\) of torch.float32"),
        (ONE, torch.ones(()), r"v_scale is \(\) of torch.float32"),
        (ONE, ONE.to("meta"), "v_scale is .* on meta: need .* on cpu"),
        (0 * ONE, ONE, r"k_scale must be above 0 for every head, got \[0.0\]"),
        (ONE, -ONE, "v_scale must be above 0"),
        (ONE, ONE * math.nan, r"v_scale must be above 0 for every head, got \[nan\]"),
    ],
)
def test_scales_that_do_not_go_with_the_cache_are_refused_by_name(
    k_scale: torch.Tensor | None, v_scale: torch.Tensor | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        check_scales(torch.zeros(2, 4, 1, 8, dtype=FP8), k_scale, v_scale)


def test_a_cache_of_another_type_takes_no_scale() -> None:
    check_scales(torch.zeros(2, 4, 1, 8), None, None)
    with pytest.raises(
        ValueError, match=r"k_scale is for a cache of torch\.float8_e4m3fn, this one is of torch\.float32"
    ):
        check_scales(torch.zeros(2, 4, 1, 8), ONE, None)
