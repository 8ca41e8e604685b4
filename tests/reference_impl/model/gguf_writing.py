"""GGUF files as converters write them, by the package's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, kind = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_IN_LAYER[inner]}.{kind}"


def permuted(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Halves of each head -> pairs side by side, which is how files of the architecture llama have them."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, model: Any, *, kind: str = "F32", extra: dict[str, Any] | None = None) -> None:
    """A model of transformers as GGUF; matrices quantised to `kind`. extra: more tensors, name -> array."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, "llama" if family == "mistral" else family)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    if family == "mistral" and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    writer.add_array("tokenizer.ggml.tokens", [f"t{place}" for place in range(config.vocab_size)])
    writer.add_array("tokenizer.ggml.token_type", [1] * config.vocab_size)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads is not None and family in ("llama", "mistral"):
            array = permuted(array, heads)
        add_tensor(writer, gguf_name(name), array, kind if array.ndim == 2 else "F32")
    for name, array in (extra or {}).items():
        add_tensor(writer, name, array, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer: Any, name: str, array: NDArray[np.float32], kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    ggml = gguf.GGMLQuantizationType[kind]
    packed = gguf.quantize(np.ascontiguousarray(array), ggml)
    if kind in ("F32", "F16"):
        writer.add_tensor(name, packed)
    else:
        writer.add_tensor(name, packed, raw_dtype=ggml)
