"""Every family beside transformers: the same weights, the same logits, whatever the batch looks like."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is what ours is compared with")
pytest.importorskip("safetensors")

from tests.reference_impl.model.paged_batches import PagedModel, in_chunks, random_prompts
from tests.reference_impl.model.published import (
    MOST_DIFFERENCE,
    VOCAB,
    loaded,
    published_logits,
    published_model,
    worst,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}
OTHER_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 8.0,
    "attention_factor": 1.2,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, grouped heads": ("llama", {}),
    "llama, one key for all heads": ("llama", {"num_key_value_heads": 1}),
    "llama, a key for each head": ("llama", {"num_key_value_heads": 4}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, heads of another size": ("llama", {"head_dim": 20}),
    "llama, eps of its own": ("llama", {"rms_norm_eps": 0.3}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "llama, yarn of other numbers": ("llama", {"head_dim": 24, "rope_parameters": OTHER_YARN}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, biases": ("qwen3", {"head_dim": 12, "attention_bias": True}),
    "qwen3, window": (
        "qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
}
LENGTHS = (1, 40, 7, 19, 1, 30)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_packed_batch_are_those_of_transformers(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    theirs = published_model(family, **changes)
    model = loaded(theirs, tmp_path)
    prompts = random_prompts(LENGTHS, VOCAB)
    expected = published_logits(theirs, prompts)
    paged = PagedModel(model, num_sequences=len(prompts), longest=max(LENGTHS))
    found = paged.step(list(enumerate(prompts)), num_pads=3)
    assert worst([found[place] for place in range(len(prompts))], expected) < MOST_DIFFERENCE
    assert worst(in_chunks(model, prompts, chunk=9), expected) < MOST_DIFFERENCE


@given(
    family=st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.integers(1, 3),
    half_head=st.integers(1, 9),
    hidden_per_head=st.integers(1, 12),
    inner=st.integers(1, 50),
    layers=st.integers(1, 3),
    tied=st.booleans(),
    bias=st.booleans(),
    window=st.none() | st.integers(1, 12),
    rope=st.sampled_from([None, LLAMA3, YARN]),
    chunk=st.integers(1, 12),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_any_sizes_give_the_logits_of_transformers(
    family: str,
    kv_heads: int,
    group: int,
    half_head: int,
    hidden_per_head: int,
    inner: int,
    layers: int,
    tied: bool,
    bias: bool,
    window: int | None,
    rope: dict[str, Any] | None,
    chunk: int,
) -> None:
    changes: dict[str, Any] = {
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * group,
        "head_dim": 2 * half_head,
        "hidden_size": hidden_per_head * kv_heads * group,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "tie_word_embeddings": tied,
    }
    if family == "qwen2":
        # Its heads always divide the hidden size.
        del changes["head_dim"]
        changes["hidden_size"] = 2 * half_head * kv_heads * group
    if family in ("llama", "qwen3"):
        changes["attention_bias"] = bias
    if family != "llama":
        changes["sliding_window"] = window
    if family.startswith("qwen"):
        changes |= {"use_sliding_window": window is not None, "max_window_layers": 1}
    if rope is not None:
        changes["rope_parameters"] = dict(rope)
    theirs = published_model(family, **changes)
    with TemporaryDirectory() as folder:
        model = loaded(theirs, Path(folder))
    prompts = random_prompts((1, 14, 23), VOCAB)
    assert worst(in_chunks(model, prompts, chunk), published_logits(theirs, prompts)) < MOST_DIFFERENCE


def test_only_the_rows_asked_for_have_logits_and_in_their_order(tmp_path: Path) -> None:
    import torch

    from reference_impl.attention.metadata import BatchRow, build_metadata
    from tests.reference_impl.model.paged_batches import PlainAttention

    model = loaded(published_model("llama"), tmp_path)
    (prompt,) = random_prompts((12,), VOCAB)
    paged = PagedModel(model, num_sequences=1, longest=12)
    every = paged.step([(0, prompt)])[0]
    metadata = build_metadata([BatchRow([0, 1, 2], 12, 12)], 4)
    for rows in ([11], [5, 0, 11], []):
        asked = torch.tensor(rows, dtype=torch.int64)
        found = model.forward(torch.tensor(prompt), torch.arange(12), paged.caches, metadata, PlainAttention(), asked)
        assert found.shape == (len(rows), VOCAB)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, every[rows], atol=1e-5, rtol=0)
