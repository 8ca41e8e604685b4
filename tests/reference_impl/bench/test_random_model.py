"""A model of random weights: the published sizes, the same numbers every time, and text that means its tokens."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.bench.random_model import SHAPES, NumberTokenizer, random_model
from reference_impl.engine.build import build_engine
from reference_impl.engine.detokenizer import Detokenizer
from reference_impl.engine.options import EngineSettings
from reference_impl.model.errors import ModelError
from reference_impl.model.messages import ChatError
from reference_impl.model.sampling import SamplingParams
from reference_impl.model.tokenizer import TokenizerError
from reference_impl.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("shape", "parameters", "kv_bytes"),
    [
        ("qwen3-0.6b", 596_049_920, 114_688),
        ("llama-3.2-1b", 1_235_814_400, 32_768),
        ("smollm2-135m", 134_515_008, 23_040),
    ],
)
def test_a_shape_has_as_many_numbers_as_its_publisher_counts(shape: str, parameters: int, kv_bytes: int) -> None:
    model = Transformer(SHAPES[shape], device="meta")
    assert model.num_parameters == parameters
    assert SHAPES[shape].kv_bytes_per_token(2) == kv_bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_seed_gives_the_same_numbers_and_another_gives_others(dtype: str) -> None:
    def embedding(seed: int) -> torch.Tensor:
        return random_model("tiny", dtype, DEVICE, seed).transformer.embedding

    first = embedding(3)
    assert first.device.type == DEVICE
    assert str(first.dtype) == f"torch.{dtype}"
    assert torch.equal(first, embedding(3))
    assert not torch.equal(first, embedding(4))


def test_sums_keep_the_size_of_their_terms() -> None:
    transformer = random_model("tiny", device=DEVICE).transformer
    config = SHAPES["tiny"]
    assert transformer.embedding.std().item() == pytest.approx(config.hidden_size**-0.5, rel=0.05)
    assert torch.equal(transformer.norm.weight, torch.ones(config.hidden_size, device=DEVICE))


def test_no_token_ends_an_answer_and_its_text_is_its_tokens() -> None:
    loaded = random_model("tiny", device=DEVICE)
    settings = EngineSettings("tiny", device=DEVICE, kv_memory_bytes=1 << 20, debug=True)
    engine = build_engine(settings, loaded=loaded).engine
    engine.add([1, 2, 3], SamplingParams(max_tokens=200, temperature=1.0, seed=0))
    pieces = []
    while engine.has_work:
        pieces += engine.step()
    made = [sampled.token for piece in pieces for sampled in piece.tokens]
    assert len(made) == 200
    assert len(set(made)) > 50, "one token again and again would be a model that ignores its input"
    assert "".join(piece.text for piece in pieces) == "".join(f" {token}" for token in made)


@given(st.lists(st.integers(0, 999)))
def test_numbers_go_to_text_and_back(ids: list[int]) -> None:
    tokenizer = NumberTokenizer(1_000)
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text) == ids
    detokenizer = Detokenizer(tokenizer)
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == text


@pytest.mark.parametrize("word", ["1000", "-1", "1.0", "x", "²", "9" * 5_000])
def test_a_word_that_is_no_token_is_named(word: str) -> None:
    with pytest.raises(TokenizerError, match=re.escape(f"{word!r:.40} is no token of this vocabulary")):
        NumberTokenizer(1_000).encode(f"17 {word} 18")


def test_what_it_cannot_do_is_said_in_one_line() -> None:
    with pytest.raises(ChatError, match="no chat template"):
        NumberTokenizer(10).chat([{"role": "user", "content": "1"}])
    with pytest.raises(ValueError, match="token ids are at least 0"):
        NumberTokenizer(10).token_bytes(-1)
    assert NumberTokenizer(10).token_bytes(10) == b"", "the model may have more ids than the vocabulary"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gpt-5",), "no shape 'gpt-5'; there are qwen3-0.6b, llama-3.2-1b, smollm2-135m, tiny"),
        (("tiny", "int8"), "no dtype 'int8'; there are float32"),
        (("tiny", "float32", "warp"), "device 'warp' cannot be used"),
    ],
)
def test_what_is_not_there_is_named(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)):
        random_model(*arguments)
