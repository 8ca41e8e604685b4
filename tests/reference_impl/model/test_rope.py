"""Positions as turns: what must hold for any of them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.model.rope import DivisorScaling, LinearScaling, Llama3Scaling, Rope, Rotary, YarnScaling, rotate

CPU = torch.device("cpu")
ROPES = (Rope(), Rope(5e5), Rope(10_000.0, LinearScaling(4.0)), Rope(10_000.0, Llama3Scaling(8.0, 1.0, 4.0, 64)))


def turned(rope: Rope, heads: torch.Tensor, positions: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    rotary = Rotary(rope, heads.shape[-1], dtype=dtype, device=CPU)
    return rotate(heads, rotary.at(torch.tensor(positions)))


@given(rope=st.sampled_from(ROPES), half=st.integers(1, 16), seed=st.integers(0, 99), place=st.integers(0, 4_000))
@settings(max_examples=40, deadline=None)
def test_a_turn_keeps_lengths_and_position_0_changes_nothing(rope: Rope, half: int, seed: int, place: int) -> None:
    heads = torch.randn(2, 3, 2 * half, generator=torch.Generator().manual_seed(seed))
    at_place = turned(rope, heads, [0, place])
    assert torch.equal(at_place[0], heads[0])
    torch.testing.assert_close(at_place.norm(dim=-1), heads.norm(dim=-1), rtol=1e-5, atol=1e-6)


@given(rope=st.sampled_from(ROPES), query=st.integers(0, 2_000), apart=st.integers(0, 200), shift=st.integers(0, 2_000))
@settings(max_examples=40, deadline=None)
def test_a_score_depends_on_how_far_apart_and_not_on_where(rope: Rope, query: int, apart: int, shift: int) -> None:
    heads = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(query))
    here = turned(rope, heads, [query + apart, query])
    there = turned(rope, heads, [query + apart + shift, query + shift])
    # Angles of some thousand radians in float32 are right to a few 1e-4.
    torch.testing.assert_close((here[0] * here[1]).sum(), (there[0] * there[1]).sum(), rtol=0, atol=2e-2)


def test_a_turn_is_the_rotation_of_each_plane() -> None:
    heads = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])
    found = turned(Rope(100.0), heads, [3])[0, 0]
    # Planes (0, 2) and (1, 3), at frequencies 1 and 1/10.
    three, tenths = torch.tensor(3.0), torch.tensor(0.3)
    expected = torch.stack([three.cos(), -2 * tenths.sin(), three.sin(), 2 * tenths.cos()])
    torch.testing.assert_close(found, expected)


def test_linear_scaling_is_positions_closer_together() -> None:
    heads = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    close = turned(Rope(10_000.0, LinearScaling(4.0)), heads, [8, 40, 400])
    torch.testing.assert_close(close, turned(Rope(), heads, [2, 10, 100]))


def test_llama_3_keeps_fast_planes_and_divides_slow_ones() -> None:
    plain = Rope().frequencies(32)
    scaled = Rope(10_000.0, Llama3Scaling(8.0, 1.0, 4.0, 64)).frequencies(32)
    turns = 64 * plain / (2 * torch.pi)
    torch.testing.assert_close(scaled[turns > 4], plain[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled > plain / 8) & (scaled < plain))[between].all()


def test_yarn_makes_every_score_sharper_by_its_amplitude_twice() -> None:
    heads = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0))
    sharper = turned(Rope(10_000.0, YarnScaling(4.0, 64, 32.0, 1.0, amplitude=1.5)), heads, [0])
    torch.testing.assert_close(sharper, 1.5 * heads)


def test_divisors_divide_each_frequency() -> None:
    torch.testing.assert_close(
        Rope(10_000.0, DivisorScaling((1.0, 2.0, 8.0))).frequencies(6),
        Rope().frequencies(6) / torch.tensor([1.0, 2.0, 8.0]),
    )


def test_positions_past_256_are_told_apart_in_bfloat16() -> None:
    heads = torch.ones(2, 1, 4, dtype=torch.bfloat16)
    found = turned(Rope(), heads, [1_000, 1_001], torch.bfloat16)
    exact = turned(Rope(), heads.float(), [1_000, 1_001])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.02)
    assert not torch.equal(found[0], found[1])
