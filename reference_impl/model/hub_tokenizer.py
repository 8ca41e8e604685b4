"""A learned byte-level vocabulary, run by the `tokenizers` library.

Owns: which text may become a special token and which may not, and the bytes of each token. Knows nothing of files:
`folder_tokenizer.py` and `gguf_tokenizer.py` make the library's object. Two copies of it are kept, one that finds
special tokens in text and one that takes them for text: the library has a switch for this, but a switch between
two threads would be a race.
Source: byte-level BPE is Radford et al., 2019; its alphabet gives each of the 256 bytes a character that can be seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from reference_impl.model.chat import ChatTemplate, SpecialWords
from reference_impl.model.errors import ModelError
from reference_impl.model.messages import ChatError, check_messages
from reference_impl.model.tokenizer import TokenizerError, decode_bytes, not_negative, valid_utf8

_SHOWN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Bytes that are their own character, read as Latin-1. The others are given U+0100 and up, in order."""
_HIDDEN = tuple(byte for byte in range(256) if byte not in _SHOWN)
BYTE_OF: Mapping[str, int] = {
    **{chr(byte): byte for byte in _SHOWN},
    **{chr(0x100 + number): byte for number, byte in enumerate(_HIDDEN)},
}


class HubTokenizer:
    """A `Tokenizer` of a model with a byte-level vocabulary."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None,
        eos_token_ids: frozenset[int],
        chat_template: str | None,
        template_values: Mapping[str, str],
    ) -> None:
        """`backend` is this tokenizer's own from now on. template_values: see `ChatTemplate`.

        Raises: ModelError on a vocabulary that is not of bytes, and on a chat template that cannot be read.
        """
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            kind = type(backend.decoder).__name__
            raise ModelError(f"the tokenizer's decoder is {kind}; only byte-level vocabularies (ByteLevel) are read")
        # A file may say that long texts be cut: a prompt is cut by nobody without a word.
        backend.no_truncation()
        backend.no_padding()
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.vocab_size = max(backend.get_vocab().values(), default=-1) + 1
        self._special = _special_tokens(backend, eos_token_ids, bos_token_id)
        self._finds = backend
        self._plain = copy.deepcopy(backend)
        for each in (self._finds, self._plain):
            # Also those that the vocabulary has, but has not declared special.
            each.add_special_tokens(list(self._special.values()))
        self._plain.encode_special_tokens = True
        self._special_words = SpecialWords(self._special.values())
        self._template = None if chat_template is None else ChatTemplate(chat_template, dict(template_values))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """See `Tokenizer`. Raises: TokenizerError also if the vocabulary's own merges make a special token of text."""
        valid_utf8(text)
        encoding = (self._finds if special else self._plain).encode(text)
        if not special:
            self._check_plain(
                [token for token, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not added]
            )
        return list(encoding.ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        return decode_bytes(ids, self.token_bytes, {} if skip_special else self._special)

    def token_bytes(self, token_id: int) -> bytes:
        if not_negative(token_id) in self._special:
            return b""
        token = self._finds.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes([BYTE_OF[character] for character in token])
        except KeyError:
            # An added token is spelled as it is, and need not keep to the alphabet.
            return token.encode()

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        checked = check_messages(messages)
        if self._template is None:
            raise ChatError("this model has no chat template: use completions, with a prompt of your own form")
        text, mark = self._template.render_marked(
            checked, self._special_words, add_generation_prompt=add_generation_prompt
        )
        # The template writes BOS itself where the model wants one.
        found = self._finds.encode(text, add_special_tokens=False)
        return self._between_special(text, mark, found) if mark else list(found.ids)

    def _between_special(self, text: str, mark: str, found: tokenizers.Encoding) -> list[int]:
        """Ids of `text`: the special tokens that were `found` in it, and between two of them all that is text.

        A special token parts what is before from what is behind it, so the merges of ordinary text are as ever.
        """
        ids: list[int] = []
        done = 0
        for token, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if token in self._special:
                ids += [*self._text(text[done:start].replace(mark, "")), token]
                done = stop
        return ids + self._text(text[done:].replace(mark, ""))

    def _text(self, text: str) -> list[int]:
        ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        self._check_plain(ids)
        return ids

    def _check_plain(self, ids: Iterable[int]) -> None:
        if not self._special.keys().isdisjoint(ids):
            spelled = ", ".join(sorted(self._special[token] for token in self._special.keys() & set(ids)))
            raise TokenizerError(f"this vocabulary cannot write {spelled} as plain text: leave it out")


def _special_tokens(backend: tokenizers.Tokenizer, eos: Iterable[int], bos: int | None) -> dict[int, str]:
    """Text of every token that ends or begins something, declared special or not."""
    special = {token: added.content for token, added in backend.get_added_tokens_decoder().items() if added.special}
    for token in (*eos, *(() if bos is None else (bos,))):
        text = backend.id_to_token(token)
        if text is None:
            raise ModelError(f"the vocabulary has no token {token}, which is said to begin or end a text")
        special[token] = text
    return special
