"""Small models of transformers with random weights: what ours must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impl.model.safetensors_folder import SafetensorsFolder
from reference_impl.model.transformer import Transformer
from reference_impl.model.weights import load_weights

CPU = torch.device("cpu")
VOCAB = 97
MOST_DIFFERENCE = 1e-4

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def published_model(family: str, **changes: Any) -> Any:
    """A model of transformers, its weights so large that logits differ by units and each layer matters."""
    transformers = pytest.importorskip("transformers")
    config_class = getattr(transformers, f"{CLASSES[family]}Config")
    model_class = getattr(transformers, f"{CLASSES[family]}ForCausalLM")
    model = model_class(config_class(**{**SIZES, **changes}, attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            numbers = torch.randn(weight.shape, generator=generator)
            gain = 1.5 * weight.shape[-1] ** -0.5 if weight.dim() == 2 and "embed" not in name else 0.5
            weight.copy_(1 + 0.2 * numbers if "norm" in name else gain * numbers)
    return model


def loaded(model: Any, folder: Path) -> Transformer:
    """The same model by way of files."""
    model.save_pretrained(folder)
    return load_weights(SafetensorsFolder(folder), dtype=torch.float32, device=CPU)


def published_logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """[tokens, vocab] of each prompt by itself."""
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0].float() for prompt in prompts]


def worst(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of two logits anywhere; NaN counts as one."""
    difference = max(float((mine - other).abs().max()) for mine, other in zip(ours, theirs, strict=True))
    return difference if difference == difference else float("inf")
