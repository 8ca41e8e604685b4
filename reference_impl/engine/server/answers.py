"""What the answers of both APIs have in common: usage, and tokens as text.

Owns: the shapes, and what a token is called in a list of log-probabilities. Knows nothing of calls.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from typing_extensions import TypedDict

from reference_impl.engine.outputs import FinishReason, Piece, Usage
from reference_impl.model.tokenizer import Tokenizer


class PromptTokensDetails(TypedDict):
    """cached_tokens: of the prompt, found in the prefix cache."""

    cached_tokens: int


class UsageBody(TypedDict):
    """Tokens of one call, all of its prompts and answers together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_body(usages: Sequence[Usage]) -> UsageBody:
    """The sum of the requests of one call."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return UsageBody(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(usage.cached_tokens for usage in usages)),
    )


Finish = Literal["stop", "length", "abort", "timeout"]


def finish_of(piece: Piece) -> Finish | None:
    """Why an answer ended, None if it goes on. An error ends the whole call, and no answer (`stream.py`)."""
    return None if piece.finish is None or piece.finish is FinishReason.ERROR else piece.finish.value


class Head:
    """What every body and every chunk of one answer begins with."""

    def __init__(self, prefix: str, model: str) -> None:
        self.id = f"{prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = model


class Writer(Protocol):
    """How one API writes answers. `index` counts prompts times n; a piece may be a part of an answer or all of it."""

    def chunks(self, index: int, piece: Piece) -> Sequence[Mapping[str, Any]]:
        """What a stream says of a piece: no chunk if there is nothing to say yet."""

    def usage_chunk(self, usage: UsageBody) -> Mapping[str, Any]:
        """The chunk of usage at the end of a stream."""

    def body(self, pieces: Sequence[tuple[int, Piece]], usage: UsageBody) -> Mapping[str, Any]:
        """All answers at once, each whole and with its index."""


def finite(logprob: float | None) -> float:
    """A log-probability that was asked for, as JSON can hold it: at least -9,999, as in OpenAI's answers."""
    assert logprob is not None, "log-probabilities were asked for"
    return max(logprob, -9_999.0)


class TokenNames:
    """Tokens as text. A token may be a part of a character, and then it has no text of its own."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def raw(self, token: int) -> bytes:
        """Its bytes; b"" if it is special."""
        return self._tokenizer.token_bytes(token)

    def text(self, token: int) -> str:
        """As it is read, with U+FFFD for a part of a character; a special token is spelled out."""
        return self._tokenizer.decode([token], skip_special=False)

    def key(self, token: int) -> str:
        """Unlike `text` different for different bytes: "bytes:\\xe2\\x82" for a part of a character."""
        raw = self.raw(token)
        try:
            return raw.decode() if raw else self.text(token)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
