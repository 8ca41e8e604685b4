"""`/v1/completions`: prompts as they are, in text or in tokens.

Owns: the call and its answers, in the form that OpenAI gave them. Knows nothing of HTTP or of the engine.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from reference_impl.engine.outputs import Piece
from reference_impl.engine.server.answers import Finish, Head, TokenNames, UsageBody, finish_of, finite
from reference_impl.engine.server.call import DEFAULT_MAX_TOKENS, Call, Logprobs, MaxTokens, Token, one_of
from reference_impl.model.sampling import SamplingParams
from reference_impl.model.tokenizer import Tokenizer

Ids = Annotated[list[Token], Field(min_length=1)]
Prompt = Annotated[
    str | Ids | Annotated[list[str], Field(min_length=1)] | Annotated[list[Ids], Field(min_length=1)],
    one_of("a text, a list of texts, a list of token ids or a list of such lists, none of the lists empty"),
]


class CompletionCall(Call):
    """The body of a call."""

    prompt: Prompt
    max_tokens: MaxTokens | None = Field(
        None, description=f"New tokens at most ({DEFAULT_MAX_TOKENS}, or what the context leaves)."
    )
    echo: bool | None = Field(None, description="The text begins with the prompt.")
    logprobs: Logprobs | None = Field(None, description="Log-probabilities of the tokens and of so many likeliest.")

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Token ids of each prompt. Raises: ValueError on text that is not valid. Cost: O(text)."""
        try:
            return [tokenizer.encode(item) if isinstance(item, str) else item for item in self._items()]
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from None

    def characters(self) -> int:
        """How much text there is to read."""
        return sum(len(item) for item in self._items() if isinstance(item, str))

    def _items(self) -> Sequence[str | list[int]]:
        """The prompts as they were sent, one or many."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        ids = [item for item in given if isinstance(item, int)]
        return [ids] if ids else [item for item in given if not isinstance(item, int)]

    def texts(self, tokenizer: Tokenizer) -> list[str]:
        """Each prompt as text: as it was sent, or decoded."""
        return [item if isinstance(item, str) else tokenizer.decode(item, skip_special=False) for item in self._items()]

    def params(self, longest_prompt: int, max_context_tokens: int) -> SamplingParams:
        """Raises: ValueError, naming the field."""
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs: those of a prompt are not computed, leave one of the two out")
        unless_told = min(DEFAULT_MAX_TOKENS, max(1, max_context_tokens - longest_prompt))
        return self.sampling(self.max_tokens or unless_told, self.logprobs)


class CompletionLogprobs(TypedDict):
    """One entry a token. text_offset: where its text begins, in characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """finish_reason: stop, length, abort or timeout; null in chunks but the last. stop_reason: what stopped it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None
    stop_reason: str | int | None


class Completion(TypedDict):
    """The body of an answer; a chunk of a stream looks the same, with usage only in the last one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | None


class CompletionWriter:
    """See `Writer`."""

    def __init__(self, call: CompletionCall, tokenizer: Tokenizer) -> None:
        self._head = Head("cmpl", call.model)
        self._names = TokenNames(tokenizer)
        self._logprobs = call.logprobs is not None
        self._n = call.n or 1
        self._echo = call.texts(tokenizer) if call.echo else None
        self._begun: set[int] = set()
        self._offsets: dict[int, Offsets] = {}

    def chunks(self, index: int, piece: Piece) -> Sequence[Mapping[str, Any]]:
        choice = self._choice(index, piece)
        if not (choice["text"] or choice["logprobs"] or choice["finish_reason"]):
            return ()
        return (self._completion([choice], None),)

    def usage_chunk(self, usage: UsageBody) -> Mapping[str, Any]:
        return self._completion([], usage)

    def body(self, pieces: Sequence[tuple[int, Piece]], usage: UsageBody) -> Mapping[str, Any]:
        return self._completion([self._choice(index, piece) for index, piece in pieces], usage)

    def _completion(self, choices: list[CompletionChoice], usage: UsageBody | None) -> Completion:
        head = self._head
        return Completion(
            id=head.id,
            object="text_completion",
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
        )

    def _choice(self, index: int, piece: Piece) -> CompletionChoice:
        text = piece.text
        if self._echo is not None and index not in self._begun:
            self._begun.add(index)
            text = self._echo[index // self._n] + text
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs_of(index, piece) if self._logprobs else None,
            finish_reason=finish_of(piece),
            stop_reason=piece.stopped_by,
        )

    def _logprobs_of(self, index: int, piece: Piece) -> CompletionLogprobs | None:
        if not piece.tokens:
            return None
        names = self._names
        offsets = self._offsets.setdefault(index, Offsets())
        return CompletionLogprobs(
            tokens=[names.key(sampled.token) for sampled in piece.tokens],
            token_logprobs=[finite(sampled.logprob) for sampled in piece.tokens],
            top_logprobs=[
                {names.key(token): finite(logprob) for token, logprob in sampled.top} for sampled in piece.tokens
            ],
            text_offset=[offsets.next(names.raw(sampled.token)) for sampled in piece.tokens],
        )


class Offsets:
    """Where tokens begin in their text; one that goes on with a character begins where that does."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def next(self, raw: bytes) -> int:
        begun, _ = self._utf8.getstate()
        begins = self._characters
        if begun and raw and not _goes_on(begun, raw[:1]):
            # What does not go on, although bytes follow, is shown before them: U+FFFD once, or for every byte of it.
            begins += len(begun.decode("utf-8", "replace"))
        self._characters += len(self._utf8.decode(raw))
        return begins


def _goes_on(begun: bytes, byte: bytes) -> bool:
    """Whether `byte` belongs to the character of which `begun` is the beginning."""
    try:
        return len((begun + byte).decode()) == 1
    except UnicodeDecodeError as error:
        # Python's own incremental decoder also waits behind half of a surrogate, which no character begins with.
        return error.start == 0 and error.reason == "unexpected end of data"
