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
from tokenizers.processors import TemplateProcessing

from reference_impl.model.errors import ModelError
from reference_impl.model.fields import Fields
from reference_impl.model.hub_tokenizer import HubTokenizer

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


def from_gguf(metadata: Mapping[str, Any], where: str) -> HubTokenizer:
    """The tokenizer that `metadata` (GGUF's keys, arrays as lists) describe. where: the file's name, for messages.

    Raises: ModelError naming the key on one that is missing, and on a kind of vocabulary or splitting not known here.
    Cost: about 0.2 s for 49,152 tokens.
    """
    fields = Fields(metadata, where)
    splitting = _splitting(fields)
    tokens, types = _array(fields, "tokens", str), _array(fields, "token_type", int)
    if len(types) != len(tokens):
        raise ModelError(f"{where}: tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    backend = tokenizers.Tokenizer(_bpe(fields, tokens, splitting))
    backend.normalizer = normalizers.NFC() if splitting.composed else None
    backend.pre_tokenizer = splitting.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    # At the ids that they have: all of them are in the vocabulary.
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            backend.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    ids = {name: _id(fields, f"tokenizer.ggml.{name}_token_id", len(tokens)) for name in ("bos", "eos", *_MORE_ENDS)}
    _put_ends(backend, *_ends(fields, splitting, ids))
    try:
        return HubTokenizer(
            backend,
            bos_token_id=ids["bos"],
            eos_token_ids=frozenset(token for name in ("eos", *_MORE_ENDS) if (token := ids[name]) is not None),
            chat_template=fields.word("tokenizer.chat_template", "") or None,
            template_values={f"{end}_token": tokens[id_] for end in ("bos", "eos") if (id_ := ids[end]) is not None},
        )
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None


def _splitting(fields: Fields) -> _Splitting:
    kind = fields.word("tokenizer.ggml.model")
    if kind != "gpt2":
        raise fields.wrong("tokenizer.ggml.model", "gpt2 (byte-level BPE), the only kind that is read")
    name = fields.word("tokenizer.ggml.pre")
    if name not in SPLITTINGS:
        raise fields.wrong("tokenizer.ggml.pre", f"one of {', '.join(SPLITTINGS)}")
    return SPLITTINGS[name]


def _array(fields: Fields, name: str, kind: type) -> Sequence[Any]:
    key = f"tokenizer.ggml.{name}"
    values = fields.values.get(key)
    if values is None:
        raise ModelError(f"{fields.where}: {key} is missing, without which there is no vocabulary")
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, kind) for v in values):
        raise ModelError(f"{fields.where}: {key} must be an array of {kind.__name__}")
    return values


def _bpe(fields: Fields, tokens: Sequence[str], splitting: _Splitting) -> models.BPE:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ModelError(f"{fields.where}: tokenizer.ggml.tokens has {len(tokens) - len(vocabulary)} tokens twice")
    pairs = []
    for merge in _array(fields, "merges", str):
        first, _, second = merge.partition(" ")
        if not {first, second, first + second} <= vocabulary.keys():
            raise ModelError(f"{fields.where}: tokenizer.ggml.merges has {merge!r}, of which not all are tokens")
        pairs.append((first, second))
    return models.BPE(vocabulary, pairs, ignore_merges=splitting.whole_words)


def _id(fields: Fields, key: str, vocab_size: int) -> int | None:
    token = fields.values.get(key)
    if token is None:
        return None
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise fields.wrong(key, f"a token id, 0 to {vocab_size - 1}")
    return token


def _ends(fields: Fields, splitting: _Splitting, ids: Mapping[str, int | None]) -> list[int | None]:
    """BOS and EOS, where the file or, if it is silent, the family puts them around a text."""
    ends: list[int | None] = []
    for name, default in (("bos", splitting.add_bos), ("eos", False)):
        wanted = fields.flag(f"tokenizer.ggml.add_{name}_token", default)
        if wanted and ids[name] is None:
            raise ModelError(f"{fields.where}: tokenizer.ggml.{name}_token_id is missing, and is to be added to texts")
        ends.append(ids[name] if wanted else None)
    return ends


def _put_ends(backend: tokenizers.Tokenizer, first: int | None, last: int | None) -> None:
    """Let `backend` put these tokens in front of a text and behind it, and no others."""
    ends = [token for token in (first, last) if token is not None]
    special = [(backend.id_to_token(token), token) for token in ends]
    before, behind = ([] if token is None else [backend.id_to_token(token)] for token in (first, last))
    backend.post_processor = TemplateProcessing(single=[*before, "$A", *behind], special_tokens=special)
