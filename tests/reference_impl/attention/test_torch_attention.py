"""Attention in torch as the engine uses it, held against the oracle on every kind of batch."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.attention import reference, torch_attention, torch_layout
from reference_impl.attention.backend import Attention
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.attention.torch_layout import Geometry, layout
from tests.reference_impl.attention.batches import NAN, Batch, Shape, shapes

pytestmark = pytest.mark.usefixtures("one_thread")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def plain(*rows: tuple[int, int], block_size: int = 4, num_pads: int = 0) -> Shape:
    return Shape(rows, block_size, 2, 3, 8, heads_outermost=True, num_pads=num_pads, seed=1)


def test_it_is_an_attention_of_the_engine() -> None:
    assert isinstance(TorchAttention(), Attention)


@given(shape=shapes(), window=st.none() | st.integers(1, 50))
@settings(max_examples=250, deadline=None)
def test_it_is_the_oracles_answer_for_any_batch_and_nan_elsewhere_never_shows(shape: Shape, window: int | None) -> None:
    batch = Batch(shape)
    out = TorchAttention().attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.4, window=window)
    expected = batch.expected(0.4, window)
    assert out.shape == batch.query.shape
    assert out.isfinite().all()
    torch.testing.assert_close(out[: len(expected)].double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_it_computes_in_every_type(dtype: torch.dtype) -> None:
    batch = Batch(plain((1, 30), (1, 4), (1, 17), (5, 5), (3, 20)), dtype=dtype)
    out = TorchAttention().attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.4)
    assert out.dtype == dtype
    error = (out.double() - batch.expected(0.4)).abs().max()
    assert error <= TOLERANCE[dtype]


def test_many_decodes_of_unlike_lengths_are_cut_into_groups_of_like_length() -> None:
    contexts = [1, 900, 30, 33, 870, 40, 31, 1000, 2]
    batch = Batch(plain(*((1, context) for context in contexts)))
    parts = layout(batch.metadata, Geometry(batch.key_cache.shape[0], 4, 2, None), 8, torch.float32)
    assert sum(group.members for group in parts.groups) == len(contexts)
    read = sum(group.read.blocks.numel() * 4 for group in parts.groups)
    assert read <= torch_layout.LIKE * sum(contexts) + 4 * len(contexts)
    assert len(parts.groups) < len(contexts)
    assert sorted(parts.order.tolist()) == list(range(2 * len(contexts)))


def test_a_group_is_no_larger_than_said_unless_one_sequence_is() -> None:
    batch = Batch(plain(*((1, context) for context in [30] * 8 + [100])))
    with patch.object(torch_layout, "GROUP_TOKENS", 64):
        parts = layout(batch.metadata, Geometry(batch.key_cache.shape[0], 4, 2, None), 8, torch.float32)
        out = TorchAttention().attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.4)
    assert [group.members for group in parts.groups] == [1, 2, 2, 2, 2]
    torch.testing.assert_close(out.double(), batch.expected(0.4), rtol=2e-5, atol=2e-5)


def test_with_a_window_only_the_blocks_that_it_shows_are_read() -> None:
    batch = Batch(plain((1, 400), (10, 300)))
    parts = layout(batch.metadata, Geometry(batch.key_cache.shape[0], 4, 2, 8), 8, torch.float32)
    assert parts.groups[0].read.blocks.numel() <= 3
    assert parts.chunks[0].read.blocks.numel() <= 6


def test_what_all_layers_share_is_worked_out_once_a_step() -> None:
    batch = Batch(plain((1, 30), (4, 9)))
    attention = TorchAttention()
    with patch.object(torch_attention, "layout", wraps=layout) as work:
        for _ in range(5):
            attention.attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.4)
        assert work.call_count == 1
        attention.attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.4, window=6)
        assert work.call_count == 2


def test_the_query_is_not_changed_and_may_be_a_view() -> None:
    batch = Batch(plain((1, 30), (4, 9)))
    wide = torch.cat([batch.query, batch.query], dim=1)
    view, before = wide[:, : batch.query.shape[1]], wide.clone()
    out = TorchAttention().attend(view, batch.key_cache, batch.value_cache, batch.metadata, 0.4)
    assert torch.equal(wide, before)
    torch.testing.assert_close(out.double(), batch.expected(0.4), rtol=2e-5, atol=2e-5)


def test_scores_that_overflow_an_exponential_do_not() -> None:
    batch = Batch(plain((1, 9), (3, 9)))
    out = TorchAttention().attend(batch.query * 1e4, batch.key_cache, batch.value_cache, batch.metadata, 1.0)
    assert out.isfinite().all()


def test_an_empty_batch_and_one_of_pads_alone_give_nothing_to_use() -> None:
    for pads in (0, 3):
        batch = Batch(plain(num_pads=pads))
        out = TorchAttention().attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 1.0)
        assert out.shape == batch.query.shape
        assert out.eq(0).all()


@given(shape=shapes())
@settings(max_examples=60, deadline=None)
def test_keys_and_values_are_written_where_the_oracle_writes_them(shape: Shape) -> None:
    batch = Batch(shape)
    ours, theirs = ((batch.key_cache.clone(), batch.value_cache.clone()) for _ in range(2))
    tokens = batch.metadata.num_tokens
    key, value = (torch.randn(tokens, shape.kv_heads, shape.head_dim) for _ in range(2))
    TorchAttention().store_kv(key, value, *ours, batch.metadata.slot_mapping)
    reference.store_kv(key, value, *theirs, batch.metadata.slot_mapping)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_poison_in_the_own_slots_does_show() -> None:
    batch = Batch(plain((1, 9)))
    batch.value_cache[int(batch.metadata.block_tables[0, 1]), 2] = NAN
    out = TorchAttention().attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 1.0)
    assert out.isnan().any(), "if it did not, the tests with poison elsewhere would show nothing"
