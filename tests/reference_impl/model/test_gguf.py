"""GGUF: what the package writes is read back number for number, and what is damaged is named in one line."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")

import gguf
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.model.errors import ModelError
from reference_impl.model.ggml_types import GGML_TYPES, unpack
from reference_impl.model.gguf_checkpoint import GGUFCheckpoint
from reference_impl.model.gguf_file import GGUFFile
from reference_impl.model.transformer import Transformer
from reference_impl.model.weights import fill, load_weights, outline
from tests.reference_impl.model.gguf_writing import write_gguf
from tests.reference_impl.model.paged_batches import in_chunks, random_prompts
from tests.reference_impl.model.published import (
    CPU,
    MOST_DIFFERENCE,
    VOCAB,
    published_logits,
    published_model,
    worst,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (1, 21, 9)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, published_model("llama", num_hidden_layers=1))
    return path


def _filled(path: Path) -> Transformer:
    """The model before its matrices are packed."""
    checkpoint = GGUFCheckpoint(path)
    model = Transformer(checkpoint.config)
    fill(model, checkpoint)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_a_written_model_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    family, changes = FAMILIES[name]
    theirs = published_model(family, **changes)
    path = tmp_path / "model.gguf"
    write_gguf(path, theirs)
    model = load_weights(GGUFCheckpoint(path), dtype=torch.float32, device=CPU)
    state = theirs.state_dict()
    for weight_name, weight in _filled(path).weights():
        assert torch.equal(weight, state[weight_name]), weight_name
    prompts = random_prompts(LENGTHS, VOCAB)
    assert worst(in_chunks(model, prompts, 6), published_logits(theirs, prompts)) < MOST_DIFFERENCE


def test_divisors_of_the_frequencies_are_what_llama_3_computes(tmp_path: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    theirs = published_model("llama", rope_parameters={"rope_type": "llama3", "rope_theta": 10_000.0, **scaling})
    plain = 1.0 / 10_000.0 ** (np.arange(0, 12, 2, dtype=np.float32) / 12)
    divisors = (plain / theirs.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert divisors.max() > 2 > divisors.min()
    path = tmp_path / "model.gguf"
    write_gguf(path, theirs, extra={"rope_freqs.weight": divisors})
    model = load_weights(GGUFCheckpoint(path), dtype=torch.float32, device=CPU)
    prompts = random_prompts(LENGTHS, VOCAB)
    assert worst(in_chunks(model, prompts, 6), published_logits(theirs, prompts)) < MOST_DIFFERENCE


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_matrices_are_what_the_package_says_they_are(kind: str, tmp_path: Path) -> None:
    theirs = published_model("qwen2", hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    path = tmp_path / "model.gguf"
    write_gguf(path, theirs, kind=kind)
    ggml = gguf.GGMLQuantizationType[kind]
    state = theirs.state_dict()
    for name, weight in _filled(path).weights():
        exact = state[name].numpy()
        expected = exact if exact.ndim == 1 else gguf.dequantize(gguf.quantize(exact, ggml), ggml)
        assert np.array_equal(weight.numpy(), expected), name


@pytest.mark.parametrize("ggml_type", GGML_TYPES)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 3))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_bytes_are_the_numbers_that_the_package_reads(ggml_type: int, seed: int, rows: int, blocks: int) -> None:
    kind = GGML_TYPES[ggml_type]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, blocks * kind.block_bytes), dtype=np.uint8)
    if kind.name in ("F32", "F16"):
        expected = raw.view(np.float32 if kind.name == "F32" else np.float16).astype(np.float32)
    else:
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(raw, gguf.GGMLQuantizationType(ggml_type))
    found = unpack(torch.from_numpy(raw).flatten(), ggml_type, (rows, blocks * kind.block_numbers))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_every_kind_of_metadata_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "meta.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    written: dict[str, Any] = {
        "a.u8": 200,
        "a.i8": -3,
        "a.u64": 2**60,
        "a.i64": -(2**60),
        "a.f64": 0.1,
        "a.text": "Ünï",
    }
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint64("a.u64", 2**60)
    writer.add_int64("a.i64", -(2**60))
    writer.add_float64("a.f64", 0.1)
    writer.add_string("a.text", "Ünï")
    for name, value in (("a.yes", True), ("a.no", False)):
        writer.add_bool(name, value)
        written[name] = value
    for name, values in (("a.words", ["one", "", "zwei"]), ("a.ints", [1, -2]), ("a.flags", [True, False])):
        writer.add_array(name, values)
        written[name] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert GGUFFile(path).metadata == {"general.architecture": "llama", **written}


def test_a_file_cut_off_anywhere_is_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    reader = gguf.GGUFReader(tiny)
    last = max(entry.data_offset + entry.n_bytes for entry in reader.tensors)
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, reader.data_offset, 37), reader.data_offset, last - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf") as refused:
            GGUFCheckpoint(cut)
        assert "\n" not in str(refused.value)
    cut.write_bytes(whole[:last])
    outline(GGUFCheckpoint(cut))


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_damaged_head_is_refused_in_one_line_or_changes_no_shape(tiny: Path, data: st.DataObject) -> None:
    contents = bytearray(tiny.read_bytes())
    place = data.draw(st.integers(0, gguf.GGUFReader(tiny).data_offset - 1))
    contents[place] = data.draw(st.integers(0, 255))
    damaged = tiny.with_name("damaged.gguf")
    damaged.write_bytes(contents)
    said = ""
    try:
        outline(GGUFCheckpoint(damaged))
    except ModelError as refused:
        said = str(refused)
    assert "\n" not in said


def _rewritten(tiny: Path, target: Path, old: bytes, new: bytes) -> Path:
    contents = tiny.read_bytes()
    assert contents.count(old) == 1
    target.write_bytes(contents.replace(old, new))
    return target


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"GGUF\x03", b"GGML\x03", "is not a GGUF file: it begins with b'GGML'"),
        (b"GGUF\x03", b"GGUF\x01", "has GGUF version 1; versions 2 and 3 are read"),
        (b"blk.0.attn_q.weight", b"blk.0.attn_x.weight", "tensor 'blk.0.attn_q.weight' is missing"),
        (b"blk.0.attn_q.weight", b"blk.0.attn_k.weight", "tensor 'blk.0.attn_k.weight' is there twice"),
        (b"token_embd.weight", b"token_embx.weight", "tensor 'token_embd.weight' is missing"),
        (b"llama.embedding_length", b"llama.embedding_width_", "llama.embedding_length is missing"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00gemma", "architecture 'gemma'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tiny: Path, tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)) as refused:
        outline(GGUFCheckpoint(_rewritten(tiny, tmp_path / "wrong.gguf", old, new)))
    assert "wrong.gguf" in str(refused.value)


def test_a_type_that_is_not_read_is_named_with_those_that_are(tiny: Path, tmp_path: Path) -> None:
    name = b"blk.0.attn_q.weight"
    entry = name + struct.pack("<IQQI", 2, 48, 48, 0)
    wrong = _rewritten(tiny, tmp_path / "wrong.gguf", entry, name + struct.pack("<IQQI", 2, 48, 48, 16))
    with pytest.raises(ModelError, match=r"'blk\.0\.attn_q\.weight' has the ggml type 16, .* read are F32, F16, Q4_0"):
        GGUFCheckpoint(wrong)


def test_a_tensor_of_another_shape_is_named_with_both(tiny: Path, tmp_path: Path) -> None:
    name = b"blk.0.attn_q.weight"
    entry = name + struct.pack("<IQQI", 2, 48, 48, 0)
    wrong = _rewritten(tiny, tmp_path / "wrong.gguf", entry, name + struct.pack("<IQQI", 2, 48, 40, 0))
    with pytest.raises(ModelError, match=r"'blk\.0\.attn_q\.weight' has shape \(40, 48\), expected \(48, 48\)"):
        outline(GGUFCheckpoint(wrong))


def test_divisors_for_heads_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    extra = {"rope_freqs.weight": np.ones(5, np.float32)}
    write_gguf(path, published_model("llama", num_hidden_layers=1), extra=extra)
    with pytest.raises(ModelError, match=r"'rope_freqs\.weight' has shape \(5,\), expected \(6,\)"):
        GGUFCheckpoint(path)


def test_a_tensor_without_a_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    write_gguf(path, published_model("llama", num_hidden_layers=1), extra=extra)
    with pytest.raises(ModelError, match=r"'blk\.0\.attn_sinks\.weight' has no place in a llama model"):
        outline(GGUFCheckpoint(path))


def test_a_file_that_is_empty_or_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.gguf cannot be read: No such file"):
        GGUFCheckpoint(tmp_path / "absent.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelError, match=r"empty\.gguf is empty"):
        GGUFCheckpoint(tmp_path / "empty.gguf")
