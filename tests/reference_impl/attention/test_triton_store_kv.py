"""store_kv in Triton: beside the reference, with guards around every slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from reference_impl.attention import reference
from reference_impl.attention.store_kv import store_kv

pytestmark = pytest.mark.usefixtures("one_thread")


@given(
    slots=st.lists(st.integers(0, 59), max_size=40, unique=True),
    skipped=st.sets(st.integers(0, 39)),
    kv_heads=st.integers(1, 5),
    head_dim=st.sampled_from([1, 5, 32, 80, 128]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    index=st.sampled_from([torch.int32, torch.int64]),
    strided=st.booleans(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_writes_what_the_reference_writes_and_nothing_else(
    device: torch.device,
    slots: list[int],
    skipped: set[int],
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    index: torch.dtype,
    strided: bool,
) -> None:
    mapping = torch.tensor([-1 if at in skipped else slot for at, slot in enumerate(slots)], dtype=index, device=device)
    # One projection's output: queries, keys and values of a token side by side.
    fused = torch.randn(len(slots), 3, kv_heads, head_dim, device=device).to(dtype)
    key, value = fused[:, 1], fused[:, 2]
    if not strided:
        key, value = key.contiguous(), value.contiguous()
    ours = torch.randn(5, 2, 12, kv_heads, head_dim, device=device).to(dtype)
    theirs = ours.clone()
    before = fused.clone()
    store_kv(key, value, ours[:, 0], ours[:, 1], mapping)
    reference.store_kv(key, value, theirs[:, 0], theirs[:, 1], mapping)
    assert torch.equal(ours, theirs)
    assert torch.equal(fused, before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slot_mapping": torch.zeros(3, dtype=torch.float32)}, "slot_mapping is .*float32: need one int64 or int32"),
        ({"slot_mapping": torch.zeros(2, dtype=torch.int64)}, "for each of 3 tokens"),
        ({"value": torch.zeros(3, 2, 9)}, "key has shape"),
        ({"key_cache": torch.zeros(4, 16, 2, 8, dtype=torch.float16)}, "need one type"),
        ({"value_cache": torch.zeros(4, 16, 3, 8)}, "do not go with keys"),
        ({"key": torch.zeros(3, 8, 2).transpose(1, 2)}, "last dimension of key has stride 2"),
    ],
)
def test_a_refused_call_says_why_and_writes_nothing(
    device: torch.device, change: dict[str, torch.Tensor], said: str
) -> None:
    given = {
        "key": torch.ones(3, 2, 8),
        "value": torch.ones(3, 2, 8),
        "key_cache": torch.zeros(4, 16, 2, 8),
        "value_cache": torch.zeros(4, 16, 2, 8),
        "slot_mapping": torch.arange(3),
    } | change
    given = {name: tensor.to(device) for name, tensor in given.items()}
    with pytest.raises(ValueError, match=said):
        store_kv(**given)
    assert not given["key_cache"].any()
    assert not given["value_cache"].any()
