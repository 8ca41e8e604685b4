"""What a `config.json` says, and what it may not say."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.model.config import FAMILIES, ModelConfig
from reference_impl.model.errors import ModelError
from reference_impl.model.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from reference_impl.model.tiny import tiny_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ABSENT = object()


def config(**changes: Any) -> ModelConfig:
    values = {name: value for name, value in (LLAMA | changes).items() if value is not ABSENT}
    return ModelConfig.from_hf(values)


def test_a_llama_is_read_field_by_field() -> None:
    assert config(rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=True) == ModelConfig(
        architecture="llama",
        vocab_size=100,
        hidden_size=48,
        intermediate_size=80,
        num_layers=6,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        max_context_tokens=512,
        rope=Rope(5e5),
        rms_norm_eps=1e-5,
        tied_embeddings=True,
    )


def test_what_a_file_leaves_out_is_what_the_families_publish() -> None:
    found = config(num_key_value_heads=ABSENT)
    assert (found.num_kv_heads, found.head_dim, found.rope, found.rms_norm_eps) == (4, 12, Rope(10_000.0), 1e-6)
    assert not found.tied_embeddings
    assert config(num_key_value_heads=None).num_kv_heads == 4


@pytest.mark.parametrize(
    ("family", "attention", "output", "normed"),
    [("llama", False, False, False), ("qwen2", True, False, False), ("qwen3", False, False, True)],
)
def test_families_differ_in_biases_and_norms(family: str, attention: bool, output: bool, normed: bool) -> None:
    found = config(model_type=family)
    assert (found.attention_bias, found.output_bias, found.qk_norm) == (attention, output, normed)


def test_a_llamas_bias_is_on_the_output_too() -> None:
    found = config(attention_bias=True, mlp_bias=True)
    assert (found.attention_bias, found.output_bias, found.mlp_bias) == (True, True, True)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"model_type": "llama", "sliding_window": 9}, [None] * 6),
        ({"model_type": "mistral", "sliding_window": 9}, [9] * 6),
        ({"model_type": "mistral", "sliding_window": None}, [None] * 6),
        ({"model_type": "mistral"}, [4_096] * 6),
        ({"model_type": "qwen2", "sliding_window": 9}, [None] * 6),
        ({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True}, [None] * 6),
        (
            {"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True, "max_window_layers": 4},
            [None] * 4 + [9] * 2,
        ),
        (
            {
                "model_type": "qwen3",
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"] * 3,
            },
            [9, None] * 3,
        ),
    ],
)
def test_layers_have_the_windows_that_the_file_gives_them(changes: dict[str, Any], windows: list[int | None]) -> None:
    found = config(**changes)
    assert [found.window(layer) for layer in range(6)] == windows


def test_both_ways_of_writing_a_scaling_are_one() -> None:
    numbers = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    expected = Rope(5e5, Llama3Scaling(8.0, 1.0, 4.0, 64))
    assert config(rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **numbers}).rope == expected
    assert config(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **numbers}).rope == expected
    assert config(rope_theta=5e5, rope_scaling={"type": "llama3", **numbers}).rope == expected
    assert config(rope_scaling={"type": "linear", "factor": 2}).rope == Rope(10_000.0, LinearScaling(2.0))


def test_yarn_without_an_original_context_was_trained_for_the_whole_one() -> None:
    scaling = config(rope_scaling={"type": "yarn", "factor": 4.0}).rope.scaling
    assert isinstance(scaling, YarnScaling)
    assert (scaling.original_context_tokens, scaling.beta_fast, scaling.beta_slow) == (512, 32.0, 1.0)
    assert scaling.amplitude == pytest.approx(1.1386, abs=1e-4)


def test_kv_bytes_count_keys_and_values_of_all_layers() -> None:
    # 2 for key and value, 6 layers, 2 heads of 12.
    assert config().kv_bytes_per_token(2) == 2 * 6 * 2 * 12 * 2
    assert config().kv_bytes_per_token(4) == 2 * config().kv_bytes_per_token(2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt_neox"}, f"model_type 'gpt_neox' is not supported; there are {', '.join(FAMILIES)}"),
        ({"model_type": ABSENT}, "config.json: model_type is missing"),
        ({"hidden_size": ABSENT}, "config.json: hidden_size is missing"),
        ({"hidden_size": "48"}, "hidden_size must be a whole number of at least 1, got '48'"),
        ({"hidden_size": True}, "hidden_size must be a whole number of at least 1, got True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1, got 0"),
        ({"hidden_size": 50}, "head_dim is missing, and 50 (hidden_size) does not divide by 4"),
        ({"head_dim": 7}, "head_dim must be even, because positions turn pairs, got 7"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key and value heads evenly"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps must be a number above 0, got -1e-06"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number above 0, got nan"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported, only 'silu'"),
        ({"rope_interleaved": True}, "rope_interleaved True is not supported, only False"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported, only 1.0"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} is not supported"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type 'dynamic' is not supported; there are default",
        ),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "config.json: rope_scaling: factor is missing"),
        ({"rope_scaling": 2}, "rope_scaling must be an object, got 2"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "mscale must be left out"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor must be 1.0",
        ),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}},
            "low_freq_factor must be below high_freq_factor, 4.0, got 4",
        ),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "layer_types": ["chunked"] * 6},
            "layer_types must be a list of 6 words, each full_attention or sliding_attention",
        ),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be a whole number of at least 1, got 0"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError) as refused:
        config(**changes)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 600) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@given(changes=st.dictionaries(st.sampled_from([*LLAMA, "head_dim", "rope_scaling", "rope_theta"]), _JSON, max_size=3))
@settings(deadline=None)
def test_any_value_anywhere_is_a_configuration_or_one_line(changes: dict[str, Any]) -> None:
    said = ""
    try:
        config(**changes)
    except ModelError as refused:
        said = str(refused)
    assert "\n" not in said


def test_sizes_made_in_code_are_checked_too() -> None:
    with pytest.raises(ModelError, match="vocab_size must be at least 1, got 0"):
        tiny_config(vocab_size=0)
    with pytest.raises(ModelError, match="sliding_window must be at least 1, got 0"):
        tiny_config(sliding_window=0)
