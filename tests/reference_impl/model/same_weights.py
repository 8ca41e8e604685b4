"""transformers' own model with the weights that ours holds: what comes out of the two can then be compared exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reference_impl.model.loader import find_model


def as_transformers(source: str) -> Any:
    """A `LlamaForCausalLM` in float32 with the weights that `source` names, of Llama's kind without scaling."""
    transformers = pytest.importorskip("transformers", reason="transformers is what ours is compared with")
    checkpoint = find_model(source).checkpoint
    config = checkpoint.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_context_tokens,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=config.tied_embeddings,
            attention_bias=config.attention_bias,
        )
    ).eval()
    left = set(checkpoint.shapes)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(checkpoint.read(name))
            left.remove(name)
    assert not left, f"transformers has no {sorted(left)}"
    return theirs
