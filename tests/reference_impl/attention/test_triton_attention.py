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
from reference_impl.attention.common_prefix import common_prefix_tokens
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.attention.triton_attention import TritonAttention
from reference_impl.attention.work_list import WorkList
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.attention.batches import Batch, Shape, shapes
from tests.reference_impl.engine.driving import GREEDY, heard, tiny_engine

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = Shape(((1, 30), (1, 1), (5, 5), (3, 20)), 4, 2, 3, 8, heads_outermost=True, num_pads=2, seed=1)


def attend(
    batch: Batch, device: torch.device, window: int | None = None, attention: TritonAttention | None = None
) -> Tensor:
    metadata = replace(
        batch.metadata,
        **{
            name: getattr(batch.metadata, name).to(device)
            for name in ("slot_mapping", "block_tables", "context_lens", "cu_seqlens")
        },
        worked_out=batch.metadata.worked_out,
    )
    query, key_cache, value_cache = (x.to(device) for x in (batch.query, batch.key_cache, batch.value_cache))
    return (attention or TritonAttention()).attend(query, key_cache, value_cache, metadata, 0.4, window=window)


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


def alike(*, rows: tuple[tuple[int, int], ...], shared_blocks: int, block_size: int = 4) -> Batch:
    """A batch whose decodes begin in the same blocks: those of the first."""
    batch = Batch(Shape(rows, block_size, 2, 3, 8, heads_outermost=True, num_pads=1, seed=4))
    tables, decodes = batch.metadata.block_tables, batch.metadata.num_decodes
    tables[:decodes, :shared_blocks] = tables[0, :shared_blocks].clone()
    batch.metadata = replace(batch.metadata, host_tables=tables.numpy())
    return batch


@pytest.mark.parametrize(("cascade_bytes", "is_read_once"), [(1, True), (3072, True), (3073, False), (None, False)])
def test_decodes_that_begin_alike_have_the_oracles_answer_in_whatever_way(
    device: torch.device, cascade_bytes: int | None, is_read_once: bool
) -> None:
    """Three decodes share 12 tokens of 128 bytes, so 3,072 are spared; a prompt and a chunk beside them share none."""
    batch = alike(rows=((1, 13), (1, 30), (1, 19), (5, 5), (3, 20)), shared_blocks=3)
    attention = TritonAttention(cascade_bytes=cascade_bytes)
    with patch.object(triton_attention, "cascade_decode", wraps=triton_attention.cascade_decode) as made:
        out = attend(batch, device, attention=attention).cpu()
    assert made.called == is_read_once
    expected = batch.expected(0.4)
    torch.testing.assert_close(out[: len(expected)].double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("window", "host_tables"), [(6, True), (None, False)], ids=["behind a window", "where the host has no tables"]
)
def test_a_prefix_is_not_read_once(device: torch.device, window: int | None, host_tables: bool) -> None:
    batch = alike(rows=((1, 13), (1, 30)), shared_blocks=3)
    if not host_tables:
        batch.metadata = replace(batch.metadata, host_tables=None)
    with patch.object(triton_attention, "cascade_decode") as made:
        out = attend(batch, device, window, attention=TritonAttention(cascade_bytes=1)).cpu()
    assert not made.called
    expected = batch.expected(0.4, window)
    torch.testing.assert_close(out[: len(expected)].double(), expected, rtol=2e-5, atol=2e-5)


def test_what_is_common_is_looked_for_once_a_step(device: torch.device) -> None:
    batch = alike(rows=((1, 13), (1, 30)), shared_blocks=3)
    with (
        patch.object(triton_attention, "CascadeWork", wraps=triton_attention.CascadeWork) as works,
        patch.object(triton_attention, "common_prefix_tokens", wraps=common_prefix_tokens) as looks,
    ):
        first, second = (attend(batch, device, attention=TritonAttention(cascade_bytes=1)) for _ in range(2))
    assert (works.call_count, looks.call_count) == (1, 1)
    assert torch.equal(first, second)


def test_an_engine_whose_decodes_begin_alike_makes_the_tokens_of_one_that_reads_all(
    device: torch.device, tiny: LoadedModel
) -> None:
    if device.type != "cpu":
        pytest.skip("on a GPU test_gpu_engine.py sees it, with the kernels' own engine")
    system = [3, 1, 4, 1, 5, 9, 2, 6]

    def told(attention: Attention) -> list[list[int]]:
        engine = tiny_engine(tiny, max_tokens_per_step=9).engine
        engine.runner.attention = attention
        for number in range(3):
            engine.add([*system, number], replace(GREEDY, max_tokens=4))
        found = heard(engine)
        return [found[key].token_ids for key in sorted(found)]

    with patch.object(triton_attention, "cascade_decode", wraps=triton_attention.cascade_decode) as made:
        ours = told(TritonAttention(cascade_bytes=1))
    assert {call.args[4] for call in made.call_args_list} == {8}
    assert ours == told(TorchAttention())


def test_a_cascade_for_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="cascade_bytes must be at least 1, got 0; None turns it off"):
        TritonAttention(cascade_bytes=0)


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
