"""Our kernels behind the engine's surface, held against the oracle on every kind of batch."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from reference_impl.attention import triton_attention
from reference_impl.attention.backend import Attention
from reference_impl.attention.triton_attention import TritonAttention
from reference_impl.attention.work_list import WorkList
from tests.reference_impl.attention.batches import Batch, Shape, shapes

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = Shape(((1, 30), (1, 1), (5, 5), (3, 20)), 4, 2, 3, 8, heads_outermost=True, num_pads=2, seed=1)


def attend(batch: Batch, device: torch.device, window: int | None = None) -> Tensor:
    metadata = replace(
        batch.metadata,
        **{
            name: getattr(batch.metadata, name).to(device)
            for name in ("slot_mapping", "block_tables", "context_lens", "cu_seqlens")
        },
        worked_out=batch.metadata.worked_out,
    )
    query, key_cache, value_cache = (x.to(device) for x in (batch.query, batch.key_cache, batch.value_cache))
    return TritonAttention().attend(query, key_cache, value_cache, metadata, 0.4, window=window)


def test_it_is_an_attention_of_the_engine() -> None:
    assert isinstance(TritonAttention(), Attention)


def test_a_batch_of_all_kinds_is_the_oracles_and_pads_get_zeros(device: torch.device) -> None:
    batch = Batch(MIXED)
    out = attend(batch, device).cpu()
    expected = batch.expected(0.4)
    torch.testing.assert_close(out[: len(expected)].double(), expected, rtol=2e-5, atol=2e-5)
    assert torch.equal(out[len(expected) :], torch.zeros_like(out[len(expected) :]))
    assert len(out) == len(expected) + 2


@given(shape=shapes(longest=24, most_queries=6), window=st.none() | st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_it_is_the_oracles_answer_for_any_batch_and_nan_elsewhere_never_shows(
    device: torch.device, shape: Shape, window: int | None
) -> None:
    batch = Batch(shape)
    out = attend(batch, device, window).cpu()
    expected = batch.expected(0.4, window)
    assert out.shape == batch.query.shape
    assert out.isfinite().all()
    torch.testing.assert_close(out[: len(expected)].double(), expected, rtol=2e-5, atol=2e-5)


def test_the_work_is_cut_once_a_step_and_again_for_another_window(device: torch.device) -> None:
    batch = Batch(MIXED)
    with patch.object(triton_attention, "WorkList", wraps=WorkList) as made:
        for _ in range(3):
            attend(batch, device)
        assert made.call_count == 1
        attend(batch, device, window=6)
        assert made.call_count == 2


def test_what_is_stored_is_what_is_attended_to(device: torch.device) -> None:
    batch = Batch(MIXED)
    metadata = batch.metadata
    key_cache, value_cache = (torch.full_like(cache, 7.0).to(device) for cache in (batch.key_cache, batch.value_cache))
    slots = metadata.slot_mapping.to(device)
    key = torch.randn(len(slots), 2, 8, generator=torch.Generator().manual_seed(2)).to(device)
    TritonAttention().store_kv(key, -key, key_cache, value_cache, slots)
    written = slots[slots >= 0]
    assert torch.equal(key_cache.flatten(0, 1)[written], key[slots >= 0])
    assert torch.equal(value_cache.flatten(0, 1)[written], -key[slots >= 0])
    untouched = torch.ones(key_cache.shape[0] * 4, dtype=torch.bool)
    untouched[written.cpu()] = False
    assert (key_cache.flatten(0, 1).cpu()[untouched] == 7).all()
