"""The engine's attentions over caches of 8-bit floats: one oracle for torch's and Triton's, the same bits stored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.attention.backend import Attention
from reference_impl.attention.fp8 import FP8, KVScales, as_bytes, quantised
from reference_impl.attention.lab4 import Lab4Attention
from reference_impl.attention.torch_attention import TorchAttention
from tests.reference_impl.attention.batches import Batch, Shape, shapes

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = Shape(((1, 30), (1, 1), (5, 5), (3, 20)), 4, 2, 3, 8, heads_outermost=True, num_pads=2, seed=1)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# On a GPU each shape is compiled anew, which takes seconds.
EXAMPLES = 8 if torch.cuda.is_available() else 20
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["torch", "triton"])
def attention(request: pytest.FixtureRequest) -> Attention:
    if request.param == "torch":
        return TorchAttention()
    pytest.importorskip("triton")
    from reference_impl.attention.triton_attention import TritonAttention

    return TritonAttention()


@pytest.fixture(scope="module")
def where(attention: Attention, device: torch.device) -> torch.device:
    """Torch's on a CPU: there it serves."""
    return torch.device("cpu") if isinstance(attention, TorchAttention) else device


def in_8_bits(batch: Batch) -> KVScales:
    """Scales for the batch, whose caches are of FP8 from now on; NaN stays where it was."""
    k, v = torch.linspace(0.004, 0.02, 2 * batch.key_cache.shape[2]).view(2, -1)
    batch.key_cache, batch.value_cache = quantised(batch.key_cache, k), quantised(batch.value_cache, v)
    return KVScales(k, v)


def expected(batch: Batch, scales: KVScales, window: int | None = None) -> Tensor:
    found = batch.metadata
    query = batch.query[: int(found.cu_seqlens[-1])]
    places = (found.block_tables, found.cu_seqlens, found.context_lens)
    by = {"k_scale": scales.k, "v_scale": scales.v}
    return reference.paged_prefill(query, batch.key_cache, batch.value_cache, *places, 0.4, window=window, **by)


def attend(
    attention: Attention, where: torch.device, batch: Batch, scales: KVScales, window: int | None = None
) -> Tensor:
    names = ("slot_mapping", "block_tables", "context_lens", "cu_seqlens")
    metadata = replace(batch.metadata, **{name: getattr(batch.metadata, name).to(where) for name in names})
    query, key_cache, value_cache = (x.to(where) for x in (batch.query, batch.key_cache, batch.value_cache))
    there = KVScales(*(scale.to(where) for scale in scales))
    return attention.attend(query, key_cache, value_cache, metadata, 0.4, window=window, scales=there).cpu()


@given(shape=shapes(longest=24, most_queries=6), window=st.none() | st.integers(1, 30))
@quick
def test_it_is_the_oracles_answer_for_any_batch_and_nan_elsewhere_never_shows(
    attention: Attention, where: torch.device, shape: Shape, window: int | None
) -> None:
    batch = Batch(shape)
    scales = in_8_bits(batch)
    out, want = attend(attention, where, batch, scales, window), expected(batch, scales, window)
    assert out.isfinite().all()
    torch.testing.assert_close(out[: len(want)].double(), want, rtol=2e-5, atol=2e-5)
    assert not out[len(want) :].any()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_it_computes_in_the_querys_type(attention: Attention, where: torch.device, dtype: torch.dtype) -> None:
    batch = Batch(MIXED, dtype=dtype)
    scales = in_8_bits(batch)
    out, want = attend(attention, where, batch, scales), expected(batch, scales)
    assert out.dtype == dtype
    assert float((out[: len(want)].double() - want).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("heads_outermost", [True, False])
def test_keys_and_values_are_stored_as_the_oracle_stores_them(
    attention: Attention, where: torch.device, heads_outermost: bool
) -> None:
    batch = Batch(replace(MIXED, heads_outermost=heads_outermost))
    scales = in_8_bits(batch)
    key, value = 3 * torch.randn(2, batch.metadata.num_tokens, 2, 8, generator=torch.Generator().manual_seed(4))
    ours, theirs = ([cache.clone() for cache in (batch.key_cache, batch.value_cache)] for _ in range(2))
    ours = [cache.to(where) for cache in ours]
    slots = batch.metadata.slot_mapping
    there = KVScales(*(scale.to(where) for scale in scales))
    attention.store_kv(key.to(where), value.to(where), *ours, slots.to(where), scales=there)
    reference.store_kv(key, value, *theirs, slots, k_scale=scales.k, v_scale=scales.v)
    for found, want in zip(ours, theirs, strict=True):
        assert torch.equal(as_bytes(found.cpu()), as_bytes(want))


def test_a_cache_of_8_bits_without_scales_is_refused_and_one_of_others_with_them(
    attention: Attention, where: torch.device
) -> None:
    batch = Batch(MIXED)
    ones = KVScales(*torch.ones(2, 2).to(where))
    with pytest.raises(ValueError, match="k_scale is for a cache of torch"):
        attend(attention, where, batch, ones)
    slots = batch.metadata.slot_mapping.to(where)
    key = torch.zeros(len(slots), 2, 8, device=where)
    cache = torch.zeros(99, 4, 2, 8, device=where)
    with pytest.raises(ValueError, match="needs k_scale"):
        attention.store_kv(key, key, cache.to(FP8), cache.to(FP8), slots)


def test_lab_4_knows_none_and_says_so() -> None:
    class Backend:
        def store_kv(self, *given: object) -> None:
            raise AssertionError("asked")

        paged_attention = store_kv

    batch = Batch(MIXED)
    scales = in_8_bits(batch)
    lab = Lab4Attention(Backend())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lab 4 knows no caches of 8-bit floats"):
        attend(lab, torch.device("cpu"), batch, scales)
    with pytest.raises(ValueError, match="lab 4 knows no caches of 8-bit floats"):
        lab.store_kv(batch.query, batch.query, batch.key_cache, batch.value_cache, batch.query, scales=scales)
