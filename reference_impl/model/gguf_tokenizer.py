"""The tokenizer that a GGUF file describes in its metadata.

Owns: what the keys `tokenizer.*` mean, and the four ways of splitting text before merging that are known by name. Knows
nothing of the file's bytes: the metadata come as a mapping. A GGUF holds tokens, merges and a name for the rest, so the
rest, how text is split, stands here; a name that is not known is refused, because a wrong split gives tokens that look
right and that the model has seldom seen.
Source: GGUF's specification (ggml), and the tokenizer.json files of the model families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from reference_impl.model.errors import ModelError
from reference_impl.model.hub_tokenizer import HubTokenizer, put_ends

_CONTROL, _USER_DEFINED = 3, 4
"""Types of tokens that are looked for in text before it is split; the first are special."""
_MORE_ENDS = ("eot", "eom")
"""Ends of a turn and of a message, which also end an answer."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Splitting:
    """How a family splits text. digits: each by itself, first. pattern: None for GPT-2's. whole_words: a piece that is
    a token is that token, whatever the merges say. add_bos: unless the file says otherwise. composed: text is first
    brought into Unicode's composed form (NFC).
    """

    digits: bool = False
    pattern: str | None = None
    whole_words: bool = False
    add_bos: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        if self.digits:
            return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
        if self.pattern is not None:
            return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(self.pattern), "isolated"), by_bytes])
        return by_bytes


_GPT2 = _Splitting()
_SMOLLM = _Splitting(digits=True)
_LLAMA3 = _Splitting(pattern=_WORDS + r"\p{N}{1,3}" + _REST, whole_words=True, add_bos=True)
_QWEN2 = _Splitting(pattern=_WORDS + r"\p{N}" + _REST, composed=True)
SPLITTINGS: Mapping[str, _Splitting] = {
    "gpt-2": _GPT2,
    "gpt2": _GPT2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def from_gguf(metadata: Mapping[str, Any]) -> HubTokenizer:
    """The tokenizer that `metadata` (GGUF's keys, arrays as lists) describe.

    Raises: ModelError naming the key on one that is missing, and on a kind of vocabulary or splitting not known here.
    Cost: about 0.3 s for 49,152 tokens.
    """
    splitting = _splitting(metadata)
    tokens, types = _array(metadata, "tokens", str), _array(metadata, "token_type", int)
    if len(types) != len(tokens):
        raise ModelError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    backend = tokenizers.Tokenizer(_bpe(metadata, tokens, splitting))
    backend.normalizer = normalizers.NFC() if splitting.composed else None
    backend.pre_tokenizer = splitting.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    # In order of their ids, which are those of the vocabulary that has them all.
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            backend.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    ids = {name: _id(metadata, f"tokenizer.ggml.{name}_token_id", len(tokens)) for name in ("bos", "eos", *_MORE_ENDS)}
    put_ends(backend, *_ends(metadata, splitting, ids))
    return HubTokenizer(
        backend,
        bos_token_id=ids["bos"],
        eos_token_ids=frozenset(token for name in ("eos", *_MORE_ENDS) if (token := ids[name]) is not None),
        chat_template=metadata.get("tokenizer.chat_template"),
        template_values={f"{name}_token": tokens[token] for name in ("bos", "eos") if (token := ids[name]) is not None},
    )


def _splitting(metadata: Mapping[str, Any]) -> _Splitting:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ModelError(f"tokenizer.ggml.model {kind!r} is not known: only gpt2 (byte-level BPE) is read")
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in SPLITTINGS:
        raise ModelError(f"tokenizer.ggml.pre {name!r} is not known, only {', '.join(SPLITTINGS)}")
    return SPLITTINGS[name]


def _array(metadata: Mapping[str, Any], name: str, kind: type) -> Sequence[Any]:
    key = f"tokenizer.ggml.{name}"
    values = metadata.get(key)
    if values is None:
        raise ModelError(f"{key} is missing, without which there is no vocabulary")
    if isinstance(values, str) or not all(isinstance(value, kind) for value in values):
        raise ModelError(f"{key} must be an array of {kind.__name__}")
    result: Sequence[Any] = values
    return result


def _bpe(metadata: Mapping[str, Any], tokens: Sequence[str], splitting: _Splitting) -> models.BPE:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError(f"tokenizer.ggml.tokens has {len(tokens) - len(vocabulary)} tokens twice")
    merges = [tuple(merge.split(" ")) for merge in _array(metadata, "merges", str)]
    try:
        return models.BPE(vocabulary, merges, ignore_merges=splitting.whole_words)
    except Exception as error:  # The library raises nothing more special.
        raise ModelError(f"tokenizer.ggml.merges do not fit the tokens: {error}") from None


def _id(metadata: Mapping[str, Any], key: str, vocab_size: int) -> int | None:
    token = metadata.get(key)
    if token is None:
        return None
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise ModelError(f"{key} must be a token id, 0 to {vocab_size - 1}, got {token!r}")
    return token


def _ends(metadata: Mapping[str, Any], splitting: _Splitting, ids: Mapping[str, int | None]) -> list[int | None]:
    """BOS and EOS, where the file or, if it is silent, the family puts them around a text."""
    ends: list[int | None] = []
    for name, default in (("bos", splitting.add_bos), ("eos", False)):
        wanted = bool(metadata.get(f"tokenizer.ggml.add_{name}_token", default))
        if wanted and ids[name] is None:
            raise ModelError(f"tokenizer.ggml.{name}_token_id is missing, and texts are to have this token added")
        ends.append(ids[name] if wanted else None)
    return ends
