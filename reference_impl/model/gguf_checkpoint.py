"""A model in a GGUF file, under the names and in the order of Hugging Face's checkpoints.

Owns: the translation of keys and names, and the undoing of one permutation. Knows nothing of bytes (`gguf_file.py`).

Files of the architecture `llama` keep q and k in another order of rows: components i and i + D/2 of a head, which are
turned together, stand side by side. `_unpermute` puts them back, so that one order holds for every model here.

    in the file   0  D/2  1  D/2+1  2 ...      a head's rows
    here          0  1  2 ...  D/2  D/2+1 ...
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from reference_impl.model.config import ModelConfig
from reference_impl.model.errors import ModelError
from reference_impl.model.fields import Fields
from reference_impl.model.ggml_types import unpack
from reference_impl.model.gguf_file import GGUFFile
from reference_impl.model.rope import DivisorScaling, Rope
from reference_impl.model.weights import EMBEDDING, HEAD

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_ROPE_DIVISORS = "rope_freqs.weight"
_NAMES = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": HEAD}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_LAYER = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")


class GGUFCheckpoint:
    """A `Checkpoint`. Raises: ModelError as `GGUFFile`, and on an architecture or a key that is not understood."""

    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        self._entries = {
            _published_name(name): entry for name, entry in self.file.tensors.items() if name != _ROPE_DIVISORS
        }
        self.config = _config(self.file)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def where(self, name: str) -> str:
        entry = self._entries.get(name)
        return f"{self.file.path}: tensor {_file_name(name) if entry is None else entry.name!r}"

    def read(self, name: str) -> Tensor:
        entry = self._entries[name]
        tensor = unpack(self.file.raw(entry), entry.ggml_type, entry.shape)
        permuted = self.file.metadata["general.architecture"] == "llama"
        if permuted and ".q_proj." in name:
            return _unpermute(tensor, self.config.num_heads)
        if permuted and ".k_proj." in name:
            return _unpermute(tensor, self.config.num_kv_heads)
        return tensor


def _unpermute(rows: Tensor, heads: int) -> Tensor:
    """[heads * head_dim, ...] from pairs side by side to halves."""
    half = rows.shape[0] // heads // 2
    return rows.view(heads, half, 2, -1).transpose(1, 2).reshape(rows.shape)


def _published_name(name: str) -> str:
    """A tensor's name in Hugging Face's checkpoints; one that is not known keeps its own and will find no place."""
    block = _BLOCK.fullmatch(name)
    if block is None or block[2] not in _IN_LAYER:
        return _NAMES.get(name, name)
    return f"model.layers.{block[1]}.{_IN_LAYER[block[2]]}.{block[3]}"


def _file_name(published: str) -> str:
    """What a tensor that is missing would be called in a GGUF file."""
    layer = _LAYER.fullmatch(published)
    if layer is None:
        return next((name for name, known in _NAMES.items() if known == published), published)
    return next(f"blk.{layer[1]}.{name}.{layer[3]}" for name, known in _IN_LAYER.items() if known == layer[2])


def _config(file: GGUFFile) -> ModelConfig:
    """GGUF's keys said in Hugging Face's words, so that one place checks what is understood."""
    fields = Fields(file.metadata, str(file.path))
    architecture = fields.word("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{file.path}: architecture {architecture!r} is not supported; there are {known}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing")

    def whole(key: str, default: int | None = None) -> int:
        return fields.whole(f"{architecture}.{key}", default)

    heads, hidden = whole("attention.head_count"), whole("embedding_length")
    head_dim = whole("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if whole(key, head_dim) != head_dim:
            raise fields.wrong(f"{architecture}.{key}", f"the head's size, {head_dim}")
    values = {
        "model_type": architecture,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": whole("context_length"),
        "rms_norm_eps": fields.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_theta": fields.number(f"{architecture}.rope.freq_base", 10_000.0),
        "rope_scaling": _scaling(fields, architecture),
        **_biases(file),
        **_window(file, architecture),
    }
    config = ModelConfig.from_hf(values, str(file.path))
    return dataclasses.replace(config, rope=_with_divisors(file, config))


def _biases(file: GGUFFile) -> dict[str, bool]:
    """GGUF says nothing of biases but by having them."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
    }


def _window(file: GGUFFile, architecture: str) -> dict[str, Any]:
    window = file.metadata.get(f"{architecture}.attention.sliding_window")
    if window is None:
        return {}
    # A llama with a window is a mistral; a Qwen's window begins at a layer that GGUF does not write down.
    if architecture != "llama":
        raise ModelError(f"{file.path}: {architecture}.attention.sliding_window is not supported, got {window!r}")
    return {"model_type": "mistral", "sliding_window": window}


def _scaling(fields: Fields, architecture: str) -> dict[str, Any] | None:
    prefix = f"{architecture}.rope.scaling"
    for key in (f"{prefix}.attn_factor", f"{architecture}.rope.scale_linear"):
        if fields.values.get(key, 1.0) != 1.0:
            raise fields.wrong(key, "1.0")
    kind = fields.word(f"{prefix}.type", "none")
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": fields.number(f"{prefix}.factor")}
    original = fields.values.get(f"{prefix}.original_context_length")
    return scaling if original is None else {**scaling, "original_max_position_embeddings": original}


def _with_divisors(file: GGUFFile, config: ModelConfig) -> Rope:
    entry = file.tensors.get(_ROPE_DIVISORS)
    if entry is None:
        return config.rope
    if entry.shape != (config.head_dim // 2,):
        expected = (config.head_dim // 2,)
        raise ModelError(f"{file.path}: tensor {_ROPE_DIVISORS!r} has shape {entry.shape}, expected {expected}")
    if config.rope.scaling is not None:
        raise ModelError(f"{file.path}: tensor {_ROPE_DIVISORS!r} and rope.scaling.type together are not supported")
    divisors = unpack(file.raw(entry), entry.ggml_type, entry.shape)
    return Rope(config.rope.theta, DivisorScaling(tuple(divisors.tolist())))
