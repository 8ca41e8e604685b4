"""A model of a published model's sizes with random numbers for weights: what a benchmark needs and no download gives.

Owns: the sizes, the numbers, and a tokenizer whose text is the tokens' numbers. Knows nothing of training or of files:
what such a model says is noise, but it takes the memory, the products and the bytes of the real one. No token ends an
answer, so that answers are as long as was asked for.
The numbers are drawn where they are used, one call for each matrix. Cost: seconds on a CPU for the larger ones.
Source: the configurations that Qwen, Meta and Hugging Face published with their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from reference_impl.model.config import ModelConfig
from reference_impl.model.errors import ModelError
from reference_impl.model.loader import DTYPES, LoadedModel, usable_device
from reference_impl.model.messages import ChatError
from reference_impl.model.rope import Llama3Scaling, Rope
from reference_impl.model.tiny import tiny_config
from reference_impl.model.tokenizer import TokenizerError, decode_bytes, not_negative
from reference_impl.model.transformer import Transformer

QWEN3_600M = ModelConfig(
    architecture="qwen3",
    vocab_size=151_936,
    hidden_size=1_024,
    intermediate_size=3_072,
    num_layers=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    max_context_tokens=40_960,
    rope=Rope(1_000_000.0),
    tied_embeddings=True,
    qk_norm=True,
)
LLAMA32_1B = ModelConfig(
    architecture="llama",
    vocab_size=128_256,
    hidden_size=2_048,
    intermediate_size=8_192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    max_context_tokens=131_072,
    rope=Rope(500_000.0, Llama3Scaling(32.0, 1.0, 4.0, 8_192)),
    rms_norm_eps=1e-5,
    tied_embeddings=True,
)
SMOLLM2_135M = ModelConfig(
    architecture="llama",
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_context_tokens=8_192,
    rope=Rope(100_000.0),
    rms_norm_eps=1e-5,
    tied_embeddings=True,
)
SHAPES = {
    "qwen3-0.6b": QWEN3_600M,
    "llama-3.2-1b": LLAMA32_1B,
    "smollm2-135m": SMOLLM2_135M,
    "tiny": tiny_config(),
}
"""Name -> sizes. `tiny` is for tests."""


def random_model(shape: str, dtype: str = "float32", device: str = "cpu", seed: int = 0) -> LoadedModel:
    """A model with the sizes of `shape` on `device`; the same seed gives the same numbers on one kind of device.

    dtype: float32, bfloat16 or float16. A matrix is normal with variance 1 / columns, so that sums keep the size of
    their terms and logits spread by about 1; norms are 1.
    Raises: ModelError, one line, on a shape, dtype or device that is not there, or without the memory for it.
    """
    if shape not in SHAPES:
        raise ModelError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}; there are {', '.join(DTYPES)}")
    config, where = SHAPES[shape], usable_device(device)
    try:
        transformer = Transformer(config, dtype=DTYPES[dtype], device=where)
    except (RuntimeError, MemoryError):
        raise ModelError(f"{device} has not the memory for {shape} in {dtype}; try a smaller shape") from None
    _draw(transformer, torch.Generator(device=where).manual_seed(seed))
    transformer.pack()
    return LoadedModel(shape, config, transformer, NumberTokenizer(config.vocab_size), frozenset())


def _draw(transformer: Transformer, generator: torch.Generator) -> None:
    for _, weight in transformer.weights():
        if weight.ndim == 1:
            # Norms: none of the shapes has a bias.
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)


class NumberTokenizer:
    """A `Tokenizer` in which token 17 is the text " 17". Nothing is special, nothing ends an answer."""

    bos_token_id: int | None = None
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Numbers between blanks. `special` changes nothing, as there are no such tokens.

        Raises: TokenizerError naming the first word that is no token.
        """
        words = text.split()
        known = [self._is_token(word) for word in words]
        if not all(known):
            wrong = words[known.index(False)]
            raise TokenizerError(f"{wrong!r:.40} is no token of this vocabulary: write numbers below {self.vocab_size}")
        return [int(word) for word in words]

    def _is_token(self, word: str) -> bool:
        # Ten digits are more than any vocabulary, and Python refuses to read some thousands.
        return word.isascii() and word.isdigit() and len(word) < 10 and int(word) < self.vocab_size

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return decode_bytes(ids, self.token_bytes, {})

    def token_bytes(self, token_id: int) -> bytes:
        return b" %d" % token_id if not_negative(token_id) < self.vocab_size else b""

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        raise ChatError("a model of random weights has no chat template: send a prompt of numbers")
