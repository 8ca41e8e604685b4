"""`/v1/chat/completions`: a conversation, and its next turn.

Owns: the call and its answers, in the form that OpenAI gave them. Knows nothing of HTTP, of the engine, or of how a
conversation becomes tokens (`model/chat.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from reference_impl.engine.outputs import Piece
from reference_impl.engine.server.answers import Finish, Head, TokenNames, UsageBody, finish_of, finite
from reference_impl.engine.server.call import Call, Fields, Logprobs, MaxTokens, one_of
from reference_impl.model.sampling import Sampled, SamplingParams
from reference_impl.model.tokenizer import Tokenizer


class TextPart(Fields):
    """A part of a content."""

    type: Literal["text"]
    text: str


Content = Annotated[
    str | Annotated[list[TextPart], Field(min_length=1)],
    one_of('a text or a list of {"type": "text", "text": ...}; this model reads nothing else'),
]


class Message(Fields):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: Content


class ChatCall(Call):
    """The body of a call."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: MaxTokens | None = Field(None, description="New tokens at most (what the context leaves).")
    max_completion_tokens: MaxTokens | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens.")
    top_logprobs: Logprobs | None = Field(None, description="And those of so many likeliest.")

    def prompts(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The conversation as token ids. Raises: ValueError if the model's template refuses it. Cost: O(text)."""
        return [tokenizer.chat([message.model_dump() for message in self.messages])]

    def characters(self) -> int:
        """How much text there is to read."""
        contents = [message.content for message in self.messages]
        return sum(
            len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
            for content in contents
        )

    def params(self, longest_prompt: int, max_context_tokens: int) -> SamplingParams:
        """Raises: ValueError, naming the field."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are two names of one field: leave one out")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs without logprobs: set logprobs to true or leave it out")
        max_tokens = self.max_tokens or self.max_completion_tokens or max(1, max_context_tokens - longest_prompt)
        return self.sampling(max_tokens, (self.top_logprobs or 0) if self.logprobs else None)


class ChatLogprob(TypedDict):
    """A token; bytes is null for special ones."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(ChatLogprob):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[ChatLogprob]


class ChatLogprobs(TypedDict):
    """One entry a token."""

    content: list[ChatTokenLogprob]


class AssistantMessage(TypedDict):
    """The answer."""

    role: Literal["assistant"]
    content: str


class Delta(TypedDict):
    """What is new of the answer. The role comes once, before all text."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class _Ending(TypedDict):
    """finish_reason: null in chunks that are not the last. stop_reason: the stop string or token that ended it."""

    index: int
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    stop_reason: str | int | None


class ChatChoice(_Ending):
    """One answer."""

    message: AssistantMessage


class ChunkChoice(_Ending):
    """What is new of one answer."""

    delta: Delta


class ChatCompletion(TypedDict):
    """The body of an answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class ChatChunk(TypedDict):
    """A chunk of a stream; usage is in the last one only."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None


class ChatWriter:
    """See `Writer`."""

    def __init__(self, call: ChatCall, tokenizer: Tokenizer) -> None:
        self._head = Head("chatcmpl", call.model)
        self._names = TokenNames(tokenizer)
        self._logprobs = bool(call.logprobs)
        self._begun: set[int] = set()

    def chunks(self, index: int, piece: Piece) -> Sequence[Mapping[str, Any]]:
        chunks = []
        if index not in self._begun:
            self._begun.add(index)
            chunks.append(self._chunk([self._said(index, Delta(role="assistant", content=""))], None))
        logprobs = self._logprobs_of(piece)
        if piece.text or logprobs or piece.finish:
            delta = Delta(content=piece.text) if piece.text or logprobs else Delta()
            chunks.append(self._chunk([self._said(index, delta, piece, logprobs)], None))
        return chunks

    def usage_chunk(self, usage: UsageBody) -> Mapping[str, Any]:
        return self._chunk([], usage)

    def body(self, pieces: Sequence[tuple[int, Piece]], usage: UsageBody) -> Mapping[str, Any]:
        head = self._head
        return ChatCompletion(
            id=head.id,
            object="chat.completion",
            created=head.created,
            model=head.model,
            choices=[self._choice(index, piece) for index, piece in pieces],
            usage=usage,
        )

    def _chunk(self, choices: list[ChunkChoice], usage: UsageBody | None) -> ChatChunk:
        head = self._head
        return ChatChunk(
            id=head.id,
            object="chat.completion.chunk",
            created=head.created,
            model=head.model,
            choices=choices,
            usage=usage,
        )

    def _choice(self, index: int, piece: Piece) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(role="assistant", content=piece.text),
            logprobs=self._logprobs_of(piece),
            finish_reason=finish_of(piece),
            stop_reason=piece.stopped_by,
        )

    def _said(
        self, index: int, delta: Delta, piece: Piece | None = None, logprobs: ChatLogprobs | None = None
    ) -> ChunkChoice:
        return ChunkChoice(
            index=index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=None if piece is None else finish_of(piece),
            stop_reason=None if piece is None else piece.stopped_by,
        )

    def _logprobs_of(self, piece: Piece) -> ChatLogprobs | None:
        if not self._logprobs or not piece.tokens:
            return None
        return ChatLogprobs(content=[self._of_token(sampled) for sampled in piece.tokens])

    def _of_token(self, sampled: Sampled) -> ChatTokenLogprob:
        mine = self._entry(sampled.token, sampled.logprob)
        return ChatTokenLogprob(**mine, top_logprobs=[self._entry(token, logprob) for token, logprob in sampled.top])

    def _entry(self, token: int, logprob: float | None) -> ChatLogprob:
        raw = self._names.raw(token)
        return ChatLogprob(token=self._names.text(token), logprob=finite(logprob), bytes=list(raw) or None)
