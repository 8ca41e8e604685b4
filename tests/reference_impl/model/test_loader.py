"""A model by its name: what is found, and one line for everything that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch
from safetensors.torch import save_file

from reference_impl.model.errors import ModelError
from reference_impl.model.loader import find_model, load_model
from reference_impl.model.packed import can_be_packed
from reference_impl.model.safetensors_folder import INDEX, SafetensorsFolder
from reference_impl.model.tiny import RandomCheckpoint, tiny_config
from reference_impl.model.transformer import Transformer
from reference_impl.model.weights import fill, load_weights, outline

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
QUERY = "model.layers.0.self_attn.q_proj.weight"

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2_048,
}


def tensors(**changes: Any) -> dict[str, torch.Tensor]:
    checkpoint = RandomCheckpoint(tiny_config(**changes))
    return {name: checkpoint.read(name) for name in checkpoint.shapes}


def write_folder(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(weights, folder / "model.safetensors")
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = SafetensorsFolder(folder)
    outline(checkpoint)
    model = Transformer(checkpoint.config)
    fill(model, checkpoint)
    return dict(model.weights())


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as refused:
        call()
    said = str(refused.value)
    assert "\n" not in said
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", tensors())


def test_every_tensor_of_a_folder_is_where_its_name_says(folder: Path) -> None:
    found = weights_of(folder)
    assert found.keys() == tensors().keys()
    for name, expected in tensors().items():
        assert torch.equal(found[name], expected), name


def test_weights_in_several_files_are_found_by_the_index(tmp_path: Path) -> None:
    whole = tensors()
    folder = write_folder(tmp_path / "model", whole)
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for file, inside in parts.items():
        save_file({name: whole[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    for written in (None, index):
        if written is not None:
            (folder / INDEX).write_text(json.dumps(written))
        found = weights_of(folder)
        assert all(torch.equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_type_are_read(kind: torch.dtype, tmp_path: Path) -> None:
    narrow = {name: weight.to(kind) for name, weight in tensors().items()}
    found = weights_of(write_folder(tmp_path / "model", narrow))
    assert all(torch.equal(found[name], narrow[name].float()) for name in narrow)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_a_narrower_dtype_is_near_the_same(dtype: torch.dtype) -> None:
    from tests.reference_impl.model.paged_batches import in_chunks, random_prompts

    checkpoint = RandomCheckpoint(tiny_config(qk_norm=True, attention_bias=True))
    prompts = random_prompts((1, 30), 258)
    exact = in_chunks(load_weights(checkpoint, dtype=torch.float32, device=CPU), prompts, 8)
    narrow = in_chunks(load_weights(checkpoint, dtype=dtype, device=CPU), prompts, 8)
    for mine, theirs in zip(narrow, exact, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - theirs).square().mean().sqrt()) < 0.05 * float(theirs.std())


def test_a_tied_head_that_was_written_all_the_same_must_be_the_embedding(tmp_path: Path) -> None:
    whole = tensors(tied_embeddings=True)
    same = whole | {"lm_head.weight": whole["model.embed_tokens.weight"].clone()}
    weights_of(write_folder(tmp_path / "same", same, tie_word_embeddings=True))
    other = whole | {"lm_head.weight": whole["model.embed_tokens.weight"] + 1}
    said = refusal(lambda: weights_of(write_folder(tmp_path / "other", other, tie_word_embeddings=True)))
    assert "tensor 'lm_head.weight' differs from the embedding" in said


def test_frequencies_that_old_checkpoints_carry_are_no_weights(tmp_path: Path) -> None:
    old = tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    weights_of(write_folder(tmp_path / "model", old))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    whole = tensors()
    del whole[QUERY]
    said = refusal(lambda: weights_of(write_folder(tmp_path / "model", whole)))
    assert said.endswith(f"tensor '{QUERY}' is missing")


def test_layers_that_are_not_there_are_missed_before_anything_is_made(tmp_path: Path) -> None:
    said = refusal(lambda: weights_of(write_folder(tmp_path / "model", tensors(), num_hidden_layers=10**9)))
    assert "model.layers.999999999.input_layernorm.weight' is missing, and there should be 1000000000 layers" in said


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    whole = tensors() | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    said = refusal(lambda: weights_of(write_folder(tmp_path / "model", whole)))
    assert said.endswith(
        "model.safetensors: tensor 'model.layers.0.self_attn.q_proj.bias' has no place in a llama model"
    )


def test_another_shape_is_named_with_the_expected_one(tmp_path: Path) -> None:
    whole = tensors() | {QUERY: torch.ones(60, 64)}
    said = refusal(lambda: weights_of(write_folder(tmp_path / "model", whole)))
    assert said.endswith(f"tensor '{QUERY}' has shape (60, 64), expected (64, 64)")


def test_a_dtype_that_is_no_number_to_compute_with_is_named(tmp_path: Path) -> None:
    whole = tensors() | {QUERY: torch.ones(64, 64, dtype=torch.int8)}
    said = refusal(lambda: weights_of(write_folder(tmp_path / "model", whole)))
    assert said.endswith(f"tensor '{QUERY}' has dtype I8; F32, F16, BF16, F64 are read")


@pytest.mark.parametrize("kept", [0, 4, 300, -1])
def test_a_file_cut_off_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors is cut off or damaged" in refusal(lambda: weights_of(folder))


def test_a_tensor_in_two_files_is_named(folder: Path) -> None:
    save_file({QUERY: torch.ones(64, 64)}, folder / "more.safetensors")
    assert f"more.safetensors: tensor '{QUERY}' is in model.safetensors too" in refusal(lambda: weights_of(folder))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object, got list"),
        ('{"weight_map": {}}', "weight_map must be an object that names files"),
        ('{"weight_map": {"x": "../x.safetensors"}}', "names '../x.safetensors', which is no file of this folder"),
        ('{"weight_map": {"x": "gone.safetensors"}}', "gone.safetensors is missing, though"),
        ('{"weight_map": {"x": "model.safetensors"}}', "names tensor 'x', which no file has"),
    ],
)
def test_an_index_that_cannot_be_is_named(folder: Path, index: str, words: str) -> None:
    (folder / INDEX).write_text(index)
    assert words in refusal(lambda: weights_of(folder))


def test_a_folder_without_configuration_or_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has no .safetensors file; pickled weights are not read" in refusal(lambda: find_model(str(folder)))
    (folder / "config.json").unlink()
    assert "config.json cannot be read: No such file" in refusal(lambda: find_model(str(folder)))


def test_weights_without_a_tokenizer_are_no_model(folder: Path) -> None:
    pytest.importorskip("tokenizers")
    assert "tokenizer.json is missing" in refusal(lambda: load_model(str(folder)))


def test_a_tokenizer_of_more_tokens_than_the_model_is_of_another(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({f"t{place}": place for place in range(259)}, []))
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    said = refusal(lambda: load_model(str(folder)))
    assert "the tokenizer has 259 tokens, the model 258 (vocab_size); they are not of one model" in said


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nobody", "no model 'nobody'; give tiny, smollm2, a Hugging Face folder or a .gguf file"),
        ("nobody.gguf", "nobody.gguf cannot be read: No such file or directory"),
        ("smollm2", "is not there: run `engine model get smollm2` first"),
    ],
)
def test_a_source_that_is_not_there_is_named(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert words in refusal(lambda: load_model(source))


def test_a_dtype_or_device_that_is_not_there_is_named() -> None:
    assert refusal(lambda: load_model("tiny", dtype="int4")) == "no dtype 'int4'; there are float32, bfloat16, float16"
    assert refusal(lambda: load_model("tiny", device="abacus")).startswith("device 'abacus' cannot be used: ")
    if not torch.cuda.is_available():
        assert refusal(lambda: load_model("tiny", device="cuda")).endswith("; try cpu")


def test_a_model_that_no_memory_holds_is_refused_with_its_size() -> None:
    checkpoint = RandomCheckpoint(tiny_config(vocab_size=2**42))
    said = refusal(lambda: load_weights(checkpoint, dtype=torch.float32, device=CPU))
    assert "GiB, which cpu does not have; try a narrower dtype or a smaller model" in said


def test_the_built_in_model_is_the_same_every_time_and_ties_hardly_ever() -> None:
    from tests.reference_impl.model.paged_batches import in_chunks, random_prompts

    first, second = load_model("tiny"), load_model("tiny")
    prompts = random_prompts((300,), 258)
    (logits,), (again,) = (in_chunks(model.transformer, prompts, 64) for model in (first, second))
    assert torch.equal(logits, again)
    assert 1 < float(logits.std()) < 10
    top = logits.topk(2).values
    assert float((top[:, 0] - top[:, 1]).min()) > 1e-3
    assert len(set(logits.argmax(1).tolist())) > 50
    assert (first.name, first.tokenizer.vocab_size, first.config.vocab_size) == ("tiny", 258, 258)
    assert first.eos_token_ids == first.tokenizer.eos_token_ids


def test_every_token_of_the_context_matters_to_the_built_in_model() -> None:
    from tests.reference_impl.model.paged_batches import in_chunks, random_prompts

    model = load_model("tiny").transformer
    (prompt,) = random_prompts((40,), 258)
    (logits,) = in_chunks(model, [prompt], 40)
    for place in range(39):
        changed = [*prompt]
        changed[place] = (changed[place] + 1) % 258
        (other,) = in_chunks(model, [changed], 40)
        assert float((other[-1] - logits[-1]).abs().max()) > 1e-3, place


def test_packing_changes_no_more_than_the_rounding() -> None:
    from tests.reference_impl.model.paged_batches import in_chunks, random_prompts

    checkpoint = RandomCheckpoint(tiny_config(attention_bias=True, output_bias=True, mlp_bias=True, qk_norm=True))
    plain = Transformer(checkpoint.config)
    fill(plain, checkpoint)
    prompts = random_prompts((1, 30, 65), 258)
    packed = load_weights(checkpoint, dtype=torch.float32, device=CPU)
    for mine, theirs in zip(in_chunks(packed, prompts, 16), in_chunks(plain, prompts, 16), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)


def test_bytes_of_weights_count_the_copy_of_a_packed_tied_head() -> None:
    checkpoint = RandomCheckpoint(tiny_config(tied_embeddings=True))
    plain = Transformer(checkpoint.config)
    packed = load_weights(checkpoint, dtype=torch.float32, device=CPU)
    assert plain.weight_bytes == 4 * plain.num_parameters
    assert packed.weight_bytes - plain.weight_bytes == (258 * 64 * 4 if can_be_packed(plain.embedding) else 0)


def test_a_packed_model_has_nothing_to_fill_any_more() -> None:
    model = load_model("tiny").transformer
    if not can_be_packed(model.embedding):
        pytest.skip("this torch packs no matrices")
    before = model.num_parameters
    with pytest.raises(RuntimeError, match="packed"):
        dict(model.weights())
    assert model.num_parameters == before == sum(weight.numel() for weight in tensors().values())
