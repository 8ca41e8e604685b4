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
from reference_impl.engine import decode_graphs
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.attention.batches import Batch, Shape, shapes
from tests.reference_impl.engine.driving import GREEDY, heard, tiny_engine
from tests.reference_impl.engine.graphs_by_hand import give_graphs

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


def alike(*, rows: tuple[tuple[int, int], ...], shared_blocks: int, block_size: int = 4) -> Batch:
    """A batch whose decodes begin in the same blocks, those of the first, and whose metadata say so."""
    batch = Batch(Shape(rows, block_size, 2, 3, 8, heads_outermost=True, num_pads=1, seed=4))
    tables, decodes = batch.metadata.block_tables, batch.metadata.num_decodes
    tables[:decodes, :shared_blocks] = tables[0, :shared_blocks].clone()
    batch.metadata = replace(batch.metadata, prefix_tokens=shared_blocks * block_size)
    return batch


@pytest.mark.parametrize(("window", "is_read_once"), [(None, True), (6, False)])
def test_decodes_that_begin_alike_have_the_oracles_answer_behind_a_window_too(
    device: torch.device, window: int | None, is_read_once: bool
) -> None:
    """Three decodes share 12 tokens; a prompt and a chunk beside them share none."""
    batch = alike(rows=((1, 13), (1, 30), (1, 19), (5, 5), (3, 20)), shared_blocks=3)
    with patch.object(triton_attention, "cascade_decode", wraps=triton_attention.cascade_decode) as made:
        out = attend(batch, device, window).cpu()
    assert made.called == is_read_once
    expected = batch.expected(0.4, window)
    torch.testing.assert_close(out[: len(expected)].double(), expected, rtol=2e-5, atol=2e-5)


def test_a_prefix_is_cut_once_a_step(device: torch.device) -> None:
    batch = alike(rows=((1, 13), (1, 30)), shared_blocks=3)
    with patch.object(triton_attention, "CascadeWork", wraps=triton_attention.CascadeWork) as works:
        first, second = (attend(batch, device) for _ in range(2))
    assert works.call_count == 1
    assert torch.equal(first, second)


def test_a_graph_that_reads_a_prefix_once_makes_the_tokens_of_one_that_does_not(
    device: torch.device, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three answers in a graph of four rows: the last one is padded."""
    if device.type != "cpu":
        pytest.skip("on a GPU test_gpu_engine.py sees it, in graphs that are captured")
    monkeypatch.setattr(decode_graphs, "PREFIX_STEPS", 2)

    def told(cascade_bytes: int | None) -> list[list[int]]:
        engine = tiny_engine(tiny, max_tokens_per_step=9).engine
        sizes = {"max_rows": 4, "max_tokens": 1, "max_context_tokens": 16}
        _, ran = give_graphs(engine, TritonAttention(), cascade_bytes=cascade_bytes, **sizes)
        for number in range(3):
            engine.add([3, 1, 4, 1, 5, 9, 2, 6, number], replace(GREEDY, max_tokens=5))
        found = heard(engine)
        assert ((4, 8) in ran) == (cascade_bytes is not None)
        return [found[key].token_ids for key in sorted(found)]

    assert told(1) == told(None)


def test_a_graph_with_prompts_makes_the_tokens_of_launches(device: torch.device, tiny: LoadedModel) -> None:
    """Prompts of several steps beside decodes; rows and sequences behind them are padded."""
    if device.type != "cpu":
        pytest.skip("on a GPU test_gpu_engine.py sees it, in graphs that are captured")

    def told(with_graphs: bool) -> list[list[int]]:
        engine = tiny_engine(tiny, max_tokens_per_step=9).engine
        engine.runner.attention = TritonAttention()
        if with_graphs:
            sizes = {"max_rows": 3, "max_tokens": 9, "max_context_tokens": 24}
            _, ran = give_graphs(engine, TritonAttention(), **sizes)
        for number in range(3):
            engine.add([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, number], replace(GREEDY, max_tokens=3))
        found = heard(engine)
        assert not with_graphs or {len(of) for of in ran} == {1, 2}, "steps of both kinds ran"
        return [found[key].token_ids for key in sorted(found)]

    assert told(with_graphs=True) == told(with_graphs=False)


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
