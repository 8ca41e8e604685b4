"""The chapter "KV-cache arithmetic": its bytes are the engine's, its times the records', its words hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from labkit.budget_bar import BudgetBar
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.bench.random_model import LLAMA32_1B, QWEN3_600M, SMOLLM2_135M
from reference_impl.padding import ModelShape
from tests.chapters.reading import number

CHAPTER = "arithmetic"
ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reference_impl" / "bench" / "results"
SCRIPT_STEPS = 1_024
LLAMA3 = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
"""The sizes that the chapter on paging has."""


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    return {suite: json.loads((RESULTS / f"{suite}.json").read_text("utf-8")) for suite in ("kernels", "offline")}


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_formula_of_the_page_is_the_engines_for_the_models_that_it_runs(chapter: Any) -> None:
    models, formula = chapter.names["models"], chapter.names["kv_bytes_per_token"]
    for name, config in (("Qwen3 0.6B", QWEN3_600M), ("Llama 3.2 1B", LLAMA32_1B), ("SmolLM2 135M", SMOLLM2_135M)):
        assert models[name]["kv_bytes_per_token"] == config.kv_bytes_per_token(2)
        for size in (1, 2, 4):
            assert formula(config.num_layers, config.num_kv_heads, config.head_dim, size) == config.kv_bytes_per_token(
                size
            )
    assert number(chapter.glued["by_all"]) == LLAMA3.kv_bytes_per_token == 131_072
    assert number(chapter.glued["by_layer"]) * number(chapter.glued["by_layers"]) == 131_072


def test_the_weights_are_those_that_the_makers_and_the_records_state(chapter: Any, records: dict[str, Any]) -> None:
    published = {
        "SmolLM2 135M": 134_515_008,
        "Qwen3 0.6B": 596_049_920,
        "Llama 3.2 1B": 1_235_814_400,
        "Llama 2 7B": 6_738_415_616,
        "Mistral 7B": 7_241_732_096,
        "Llama 3 8B": 8_030_261_248,
        "Qwen3 8B": 8_190_735_360,
        "Llama 3 70B": 70_553_706_496,
    }
    models = chapter.names["models"]
    assert {name: model["weights"] for name, model in models.items()} == published
    for name, model in (("Qwen3 0.6B", "qwen3-0.6b"), ("Llama 3.2 1B", "llama-3.2-1b")):
        (run,) = (run for run in records["offline"]["runs"] if run["model"] == model and run["lengths"] == "script")
        assert run["weight_bytes"] == SCRIPT_STEPS * 2 * models[name]["read_weights"]


def test_sizes_agree_with_the_defaults_of_the_transformers_library_where_a_model_is_the_default(chapter: Any) -> None:
    transformers = pytest.importorskip("transformers")
    for name, config in (("Llama 2 7B", transformers.LlamaConfig()), ("Mistral 7B", transformers.MistralConfig())):
        model = chapter.names["models"][name]
        assert (model["layers"], model["hidden"], model["heads"], model["kv_heads"]) == (
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        assert model["window"] == getattr(config, "sliding_window", None)
    latent, mla = transformers.DeepseekV3Config(), chapter.names["mla"]
    assert (mla["layers"], mla["heads"], mla["head_dim"]) == (
        latent.num_hidden_layers,
        latent.num_attention_heads,
        latent.v_head_dim,
    )
    assert number(chapter.glued["mla_numbers"]) == latent.kv_lora_rank + latent.qk_rope_head_dim
    assert number(chapter.glued["mla_times"]) > 50


def test_the_smaller_model_of_the_opening_is_the_slower_one_and_has_more_to_read(
    chapter: Any, records: dict[str, Any]
) -> None:
    runs = {run["model"]: run for run in records["offline"]["runs"] if run["lengths"] == "script"}
    small, large = runs["qwen3-0.6b"], runs["llama-3.2-1b"]
    assert number(chapter.glued["small_gb"]) * 2 < number(chapter.glued["large_gb"]) + 0.1, "more than twice"
    assert 2 * small["weight_bytes"] < large["weight_bytes"]
    assert small["tokens_per_s"] < large["tokens_per_s"]
    assert small["kv_bytes"] > large["kv_bytes"]
    for run, step in ((small, chapter.names["slow"]), (large, chapter.names["fast"])):
        read_bytes = step["weight_bytes"] + step["kv_bytes"]
        assert step["floor_ms"] == pytest.approx(1e3 * read_bytes / (1e9 * records["offline"]["read_gb_s"]))
        assert step["floor_ms"] < step["wall_ms"] == run["step"]["wall_ms"]
        assert step["requests"] == run["requests"]


def test_one_token_more_than_fit_does_not_fit(chapter: Any) -> None:
    tokens, weights = int(number(chapter.glued["fit_tokens"])), 2 * 8_030_261_248
    assert weights + tokens * 131_072 <= 72e9 < weights + (tokens + 1) * 131_072
    assert int(number(chapter.glued["fit_longest"])) == tokens // 8_192
    requests = workload("azure_conv")
    mean = float((requests.prompt_tokens + requests.output_tokens).mean())
    assert number(chapter.glued["fit_mean"]) == round(tokens / mean)
    assert number(chapter.glued["fit_mean"]) > 3 * number(chapter.glued["fit_longest"]), (
        "the gap that the page speaks of"
    )
    assert number(chapter.glued["narrow_tokens"]) in (2 * tokens, 2 * tokens + 1)
    assert number(chapter.glued["narrow_tokens"]) > number(chapter.glued["narrow_weights"]) > tokens


def test_the_figure_opens_on_a_state_that_fits_and_its_limit_is_the_pages(chapter: Any) -> None:
    (bar,) = (shown for shown in chapter.shown if isinstance(shown, BudgetBar))
    assert bar.models[0].name == "Llama 3 8B"
    assert bar.most(bar.models[0], 16, 8_192) == number(chapter.glued["fit_longest"]) > bar.requests
    assert "It fits." in repr(bar)
    assert all(bar.most(model, 16, 512) > 0 for model in bar.models), "a model that cannot run is not offered"


def test_what_was_measured_of_groups_and_windows_is_in_the_record(chapter: Any, records: dict[str, Any]) -> None:
    took = {row["name"]: row["results"]["ours"]["median_us"] for row in records["kernels"]["decode"]}
    grouped, every = 1e3 * took["64 x 2k, 32/8, 128"] / (64 * 2_048), 1e3 * took["32 x 2k, 32/32, 128"] / (32 * 2_048)
    assert number(chapter.glued["gqa_times"]) == round(every / grouped, 1) > 3
    assert number(chapter.glued["window_us"]) == round(took["64 x 8k, window 1024, 32/8, 128"])
    assert number(chapter.glued["window_whole"]) == pytest.approx(64 * 8_192 * 4_096 / 1e6, abs=0.5)
    assert number(chapter.glued["window_read"]) == pytest.approx(64 * 1_024 * 4_096 / 1e6, abs=0.5)
    assert number(chapter.glued["window_sequences"]) == 64


def test_the_floor_flattens_where_the_page_says(chapter: Any) -> None:
    rate, limit = chapter.names["rate"], number(chapter.glued["step_limit"])
    assert rate(48, 8_192) < limit < rate(48, 1_024)
    assert rate(10**6, 8_192) == pytest.approx(limit, rel=0.01)
    even = int(number(chapter.glued["even"]))
    cache, weights = 8_192 * 131_072, 2 * chapter.names["llama"]["read_weights"]
    assert (even - 1) * cache < weights <= even * cache
    assert number(chapter.glued["read_gb"]) == 15.0, "the visible cell has it written out"


def test_intensity_of_attention_is_that_of_the_engines_own_counts(chapter: Any) -> None:
    flops, read_bytes = LLAMA3.attention_flops(1), LLAMA3.kv_bytes_per_token
    assert number(chapter.glued["intensity"]) == flops / read_bytes
    assert number(chapter.glued["narrow_intensity"]) == 2 * flops / read_bytes
    tokens = 2_048
    counted = LLAMA3.linear_flops(tokens) + LLAMA3.attention_flops(tokens * (tokens + 1) // 2)
    assert number(chapter.glued["prompt_tflop"]) == round(counted / 1e12)
    assert number(chapter.glued["prompt_ms"]) > number(chapter.glued["prompt_read"]), "prompts are bound by arithmetic"


def test_the_three_quizzes_have_their_answers_and_the_bug_overwrites_weights(chapter: Any) -> None:
    quizzes = [shown for shown in chapter.shown if isinstance(shown, Quiz)]
    assert [quiz.answer for quiz in quizzes] == ["Llama 3.2 1B", "23,040", "It stays the same"]
    assert number(chapter.glued["bug_lost"]) == 4 * (128 - 64) == 300 - number(chapter.glued["bug_left"])


def test_the_folded_answer_to_build_counts_both_kinds_of_layers(chapter: Any) -> None:
    body = re.search(r"^    def kv_bytes\(.*?full_layers\) \* seen\)$", chapter.source, re.MULTILINE | re.DOTALL)
    assert body is not None
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in body[0].splitlines()), names)
    kv_bytes = names["kv_bytes"]
    assert kv_bytes(32, 8, 128, 2, 1) == 131_072
    assert kv_bytes(32, 8, 128, 2, 5_000, window=4_096) == 4_096 * 131_072
    assert kv_bytes(32, 8, 128, 2, 5_000, window=4_096, full_layers=8) == 4_096 * (8 * 5_000 + 24 * 4_096)


def test_the_answers_for_instructors_are_computed_right(chapter: Any) -> None:
    answer = (ROOT / "solutions" / "chapters" / "arithmetic.md").read_text(encoding="utf-8")
    big, small = 2 * chapter.names["models"]["Llama 3 70B"]["weights"], 2 * chapter.names["llama"]["weights"]
    assert f"{2 * 80 * 2 * 128 * 2:,} bytes on each GPU, {2 * 80 * 8 * 128 * 2:,} on all" in answer
    assert f"{big / 1e9:.1f} GB, {big / 4e9:.1f} GB on each GPU" in answer
    assert f"{72 - big / 4e9:.1f} GB are left" in answer
    assert f"about {round((72e9 - big / 4) / 81_920, -3):,.0f} tokens" in answer
    for weights, token in ((small, 131_072), (small, 65_536), (small // 2, 131_072), (small // 2, 65_536)):
        tokens = int((21.6e9 - weights) // token)
        assert f"| {tokens:,} | {tokens // 4_096} |" in answer


def test_the_chapter_is_at_most_2500_words(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
