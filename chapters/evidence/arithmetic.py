"""Evidence for "KV-cache arithmetic": what published models keep and weigh, and measured steps beside it.

Owns: the models' sizes and which records the chapter may show. Knows nothing of how they are shown; bytes are counted
by the engine's own classes, and what was timed was timed by `engine bench` on the machine that the records name.
Source: Touvron et al. (Llama 2, table 1), Grattafiori et al. (Llama 3, table 3), Jiang et al. (Mistral 7B, table 1),
Yang et al. (Qwen3, table 1), DeepSeek-AI (DeepSeek-V3, section 4.2), and the configurations published with the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reference_impl import bench
from reference_impl.bench.kernel_cases import DECODE_CASES
from reference_impl.bench.kernels import OURS
from reference_impl.bench.random_model import SHAPES
from reference_impl.model.config import ModelConfig
from reference_impl.padding import ModelShape

RESULTS = Path(bench.__file__).parent / "results"
PROMPT_TOKENS = 2_048
# Dense bfloat16 products of an H100 SXM: NVIDIA's data sheet, not a record.
PEAK_FLOPS_PER_S = 989.4e12
GROUPED, EVERY_HEAD, WINDOWED = "64 x 2k, 32/8, 128", "32 x 2k, 32/32, 128", "64 x 8k, window 1024, 32/8, 128"


def build() -> dict[str, Any]:
    """All of the chapter's evidence as plain JSON."""
    kernels, offline = (json.loads((RESULTS / f"{suite}.json").read_text("utf-8")) for suite in ("kernels", "offline"))
    return {
        "models": {name: _counted(config) for name, config in models().items()},
        "mla": {"name": "DeepSeek-V3", "layers": 61, "heads": 128, "head_dim": 128, "latent": 512, "rope": 64},
        "steps": [_step(run, offline["read_gb_s"]) for run in offline["runs"] if run["step"]],
        "steps_where": f"{offline['machine']['device']}, {offline['date']}",
        "read_gb_s": offline["read_gb_s"],
        "kernels": {
            key: _kernel(kernels, name)
            for key, name in (("grouped", GROUPED), ("every_head", EVERY_HEAD), ("windowed", WINDOWED))
        },
        "kernels_where": f"{kernels['machine']['gpu']}, {kernels['date']}",
        "prompt": _prompt(models()["Llama 3 8B"]),
        "peak_flops_per_s": PEAK_FLOPS_PER_S,
    }


def models() -> dict[str, ModelConfig]:
    """Name -> sizes, smallest first; three of them are the engine's own."""
    return {
        "SmolLM2 135M": SHAPES["smollm2-135m"],
        "Qwen3 0.6B": SHAPES["qwen3-0.6b"],
        "Llama 3.2 1B": SHAPES["llama-3.2-1b"],
        "Llama 2 7B": _config("llama", 32_000, 4_096, 11_008, 32, 32, 32),
        "Mistral 7B": _config("mistral", 32_000, 4_096, 14_336, 32, 32, 8, sliding_window=4_096),
        "Llama 3 8B": _config("llama", 128_256, 4_096, 14_336, 32, 32, 8),
        "Qwen3 8B": _config("qwen3", 151_936, 4_096, 12_288, 36, 32, 8, qk_norm=True),
        "Llama 3 70B": _config("llama", 128_256, 8_192, 28_672, 80, 64, 8),
    }


def _config(
    architecture: str, vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> ModelConfig:
    """A model with heads of 128 whose input and output embedding are two matrices."""
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        max_context_tokens=8_192,
        tied_embeddings=False,
        **more,
    )


def _shape(config: ModelConfig) -> ModelShape:
    return ModelShape(
        layers=config.num_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype_bytes=2,
    )


def _counted(config: ModelConfig) -> dict[str, Any]:
    """Sizes, bytes of cache a token at 16 bits, and the number of weights: matrices, embeddings, norms.

    A step reads `read_weights` of them. Of an input embedding that is not the output matrix too, it reads single rows.
    """
    norms = (2 * config.num_layers + 1) * config.hidden_size + 2 * config.num_layers * config.head_dim * config.qk_norm
    embedding = config.vocab_size * config.hidden_size
    read = _shape(config).linear_weights + embedding + norms
    return {
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "window": config.sliding_window,
        "kv_bytes_per_token": config.kv_bytes_per_token(2),
        "weights": read if config.tied_embeddings else read + embedding,
        "read_weights": read,
    }


def _step(run: dict[str, Any], read_gb_s: float) -> dict[str, Any]:
    """A job's rate, and the bytes and the time of its step of all requests."""
    config, step = SHAPES[run["model"]], run["step"]
    weights, kv = 2 * _counted(config)["read_weights"], step["context_tokens"] * config.kv_bytes_per_token(2)
    return {
        "model": run["model"],
        "tokens_per_s": run["tokens_per_s"],
        "requests": step["requests"],
        "context_tokens": step["context_tokens"],
        "weight_bytes": weights,
        "kv_bytes": kv,
        "floor_ms": (weights + kv) / read_gb_s / 1e6,
        "wall_ms": step["wall_ms"],
    }


def _kernel(record: dict[str, Any], name: str) -> dict[str, Any]:
    """One measured batch: attention of one layer."""
    row = next(row for row in record["decode"] if row["name"] == name)
    case = next(case for case in DECODE_CASES if case.name == name)
    return {
        "name": name,
        "tokens": sum(case.lengths),
        "heads": case.heads,
        "kv_heads": case.kv_heads,
        "window": case.window,
        "kv_bytes": row["kv_bytes"],
        "us": row["results"][OURS]["median_us"],
    }


def _prompt(config: ModelConfig) -> dict[str, int]:
    """What a prompt costs in products: all its tokens at once, each looking at those before it and at itself."""
    shape, pairs = _shape(config), PROMPT_TOKENS * (PROMPT_TOKENS + 1) // 2
    return {
        "tokens": PROMPT_TOKENS,
        "flops": shape.linear_flops(PROMPT_TOKENS) + shape.attention_flops(pairs),
        "weight_bytes": 2 * _counted(config)["read_weights"],
        "kv_bytes": PROMPT_TOKENS * config.kv_bytes_per_token(2),
    }
