"""What a model is made of: its sizes and the few ways in which decoder-only families differ.

Owns: `ModelConfig`, and what of Hugging Face's `config.json` it understands. Knows nothing of weights or tensors.

    family     biases on q, k, v    on the output    norms on q and k    window
    llama      attention_bias       attention_bias   no                  no          Llama 2 and 3, SmolLM2
    mistral    no                   no               no                  all layers
    qwen2      yes                  no               no                  some layers Qwen2, Qwen2.5
    qwen3      attention_bias       attention_bias   yes                 some layers

Everything else is refused by name: a model that computes something else would answer, only wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reference_impl.model.errors import ModelError
from reference_impl.model.fields import Fields
from reference_impl.model.rope import Rope
from reference_impl.model.rope_config import rope_from_hf

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

_ONLY = {
    "hidden_act": "silu",
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
"""Fields that change the arithmetic -> the one value that is computed here, which is also the default."""


@dataclass(frozen=True)
class ModelConfig:
    """One model's sizes. Frozen, and checked when it is made. Raises: ModelError naming what does not go together.

    architecture: one of FAMILIES. num_heads query heads share num_kv_heads keys and values. intermediate_size: of the
    MLP. tied_embeddings: the output matrix is the embedding. attention_bias: on q, k and v. output_bias: on the
    attention's output. mlp_bias: on gate, up and down. qk_norm: each head's query and key is normed, then turned.
    sliding_window: a token sees so many last tokens, itself included, except in `full_layers`, where it sees all.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int
    rope: Rope = field(default_factory=Rope)
    rms_norm_eps: float = 1e-6
    tied_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    full_layers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for name in (*sizes, "head_dim", "max_context_tokens"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} key and value heads evenly"
            )
        if self.head_dim % 2:
            raise ModelError(f"head_dim must be even, because positions turn pairs, got {self.head_dim}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"sliding_window must be at least 1, got {self.sliding_window}")

    def window(self, layer: int) -> int | None:
        """How many last tokens `layer` sees; None: all."""
        return None if layer in self.full_layers else self.sliding_window

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """What one token's keys and values take in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype_bytes

    @classmethod
    def from_hf(cls, values: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """The model that a `config.json` describes.

        Raises: ModelError naming the field, its value and what is supported, on a field that is missing, wrong, or
        asks for what this model does not compute.
        """
        fields = Fields(values, where)
        family = _family(fields)
        heads, hidden = fields.whole("num_attention_heads"), fields.whole("hidden_size")
        layers = fields.whole("num_hidden_layers")
        window, full_layers = _windows(fields, family, layers)
        biased = family in ("llama", "qwen3") and fields.flag("attention_bias", False)
        return cls(
            architecture=family,
            vocab_size=fields.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.whole("intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=fields.whole("num_key_value_heads", heads),
            head_dim=_head_dim(fields, hidden, heads),
            max_context_tokens=fields.whole("max_position_embeddings"),
            rope=rope_from_hf(fields),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            tied_embeddings=fields.flag("tie_word_embeddings", False),
            attention_bias=biased or family == "qwen2",
            output_bias=biased,
            mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
            qk_norm=family == "qwen3",
            sliding_window=window,
            full_layers=full_layers,
        )


def _family(fields: Fields) -> str:
    """The family, once nothing in the file asks for another arithmetic."""
    family = fields.word("model_type")
    if family not in FAMILIES:
        raise ModelError(f"{fields.where}: model_type {family!r} is not supported; there are {', '.join(FAMILIES)}")
    for name, only in _ONLY.items():
        value = fields.values.get(name, only)
        if value != only and value is not None:
            raise ModelError(f"{fields.where}: {name} {value!r} is not supported, only {only!r}")
    return family


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if fields.values.get("head_dim") is None and hidden % heads:
        raise ModelError(f"{fields.where}: head_dim is missing, and {hidden} (hidden_size) does not divide by {heads}")
    return fields.whole("head_dim", hidden // heads)


def _windows(fields: Fields, family: str, layers: int) -> tuple[int | None, frozenset[int]]:
    """The window and the layers without one. Qwen's files give a window even where it is switched off."""
    if family == "llama" or (family != "mistral" and not fields.flag("use_sliding_window", False)):
        return None, frozenset()
    # A file without the field means the published default, one with null means no window.
    if fields.values.get("sliding_window", 4_096) is None:
        return None, frozenset()
    window = fields.whole("sliding_window", 4_096)
    if family == "mistral":
        return window, frozenset()
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return window, frozenset(range(min(fields.whole("max_window_layers", 28, least=0), layers)))
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in known for kind in kinds):
        raise fields.wrong("layer_types", f"a list of {layers} words, each {' or '.join(known)}")
    return window, frozenset(place for place, kind in enumerate(kinds) if kind == "full_attention")
