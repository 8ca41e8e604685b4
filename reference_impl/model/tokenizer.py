"""Text to token ids and back: what the engine asks of a tokenizer.

Owns: the contract, and what all implementations share. Knows nothing of vocabularies (`byte_tokenizer.py`,
`hub_tokenizer.py`) or of the files that they come in (`folder_tokenizer.py`, `gguf_tokenizer.py`). All decode alike:
tokens stand for bytes, bytes are joined, and the whole is read as UTF-8 with U+FFFD for what is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol


class TokenizerError(ValueError):
    """A text that has no tokens, in one line."""


class Tokenizer(Protocol):
    """vocab_size: ids are below it. eos_token_ids: tokens that end an answer, unless they are to be ignored."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, with BOS where the model's own tokenizer puts one.

        special: text that spells a special token becomes that token. Else it stays text, so that no user can forge the
        end of a turn. Raises: TokenizerError on text that is not valid Unicode.
        """
        ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`. Special tokens are spelled out only if asked for. Errors as `token_bytes`."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for: b"" for special ones, and for ids that the model has and the vocabulary has not.

        Raises: ValueError below 0.
        """
        ...

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, and of the beginning of the next answer if asked for.

        No content becomes a special token. Raises: ChatError on messages that cannot be said, and without a template.
        """
        ...


def valid_utf8(text: str) -> bytes:
    """`text` in UTF-8. Raises: TokenizerError on half of a character (a lone surrogate), which UTF-8 cannot hold."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text holds {text[error.start]!r}, half of a character: send valid UTF-8") from None


def decode_bytes(ids: Iterable[int], token_bytes: Callable[[int], bytes], spelled: Mapping[int, str]) -> str:
    """`Tokenizer.decode`. spelled: the special tokens to be written out, by id."""
    return b"".join(spelled[token].encode() if token in spelled else token_bytes(token) for token in ids).decode(
        errors="replace"
    )


def not_negative(token_id: int) -> int:
    if token_id < 0:
        raise ValueError(f"token ids are at least 0, got {token_id}")
    return token_id
