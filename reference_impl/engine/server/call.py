"""What a call of either API may ask for: the fields that completions and chats share.

Owns: their names, types and ranges, which are also those of the OpenAPI document, and how they become
`SamplingParams`. Knows nothing of HTTP or of the engine. Every field here has an effect; any other is refused by its
name. null is the same as leaving a field out.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from reference_impl.model.sampling import MAX_LOGPROBS, MAX_SEED, SamplingParams

MAX_ANSWERS = 128
"""Of one call: prompts times n."""
MAX_STOPS = 16
MAX_STOP_TOKENS = 128
DEFAULT_MAX_TOKENS = 16
_LARGE = 2**31 - 1
_PLAIN = (
    "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p",
    "repetition_penalty", "ignore_eos",
)  # fmt: skip
"""Fields with the name and the meaning of a sampling parameter."""
_NOT_DONE = frozenset(
    {
        "audio", "best_of", "custom_params", "enable_thinking", "function_call", "functions", "guided_choice",
        "guided_grammar", "guided_json", "guided_regex", "metadata", "min_tokens", "modalities", "parallel_tool_calls",
        "prediction", "prompt_cache_key", "reasoning_effort", "response_format", "safety_identifier", "service_tier",
        "store", "suffix", "tool_choice", "tools", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Fields that other servers of this API know."""


def one_of(words: str) -> WrapValidator:
    """For a field that takes values of several types: one message instead of one for each type."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValueError:
            raise ValueError(f"must be {words}") from None

    return WrapValidator(check)


Number = Annotated[float, Field(allow_inf_nan=False)]
Token = Annotated[int, Field(ge=0, le=_LARGE)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=1_000)]
Stops = Annotated[
    Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)],
    one_of(f"a text or up to {MAX_STOPS} of them, each of 1 to 1,000 valid characters"),
]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[Number, Field(ge=-100, le=100)]


class Fields(BaseModel):
    """Strict: "5" is no number, and true is none either."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(Fields):
    """Of a stream."""

    include_usage: bool | None = Field(None, description="One more chunk before the end, with the usage of the call.")


class Call(Fields):
    """The fields that both APIs have. The second half are no fields of OpenAI's."""

    model: str = Field(description="The name that /v1/models gives.")
    temperature: Annotated[Number, Field(ge=0, le=1e6)] | None = Field(None, description="0 takes the likeliest token.")
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = Field(None, description="Answers to each prompt.")
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(None, description="The same seed, the same tokens.")
    stop: Stops | None = Field(None, description="The answer ends before the first of them.")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenKey, Bias] | None = Field(None, description="Token id -> added to its logit.")
    stream: bool | None = Field(None, description="Server-sent events, as the tokens are made.")
    stream_options: StreamOptions | None = None

    top_k: Token | None = Field(None, description="Only the k likeliest tokens; 0 for all.")
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = Field(None, description="The model's end token is a token like any other.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Prefixes are found again only by calls with the same salt."
    )
    timeout_s: Annotated[Number, Field(gt=0, le=86_400)] | None = Field(None, description="What is not done then ends.")

    def sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Raises: ValueError, naming the field."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options without stream: set stream to true or leave them out")
        given = {name: value for name in _PLAIN if (value := getattr(self, name)) is not None}
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            **given,
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


FIELDS = (
    *Call.model_fields, "prompt", "messages", "max_tokens", "max_completion_tokens", "echo", "logprobs", "top_logprobs"
)  # fmt: skip
"""Of both calls."""
MaxTokens = Annotated[int, Field(ge=1, le=_LARGE)]
Logprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def explain_unknown(names: Sequence[str]) -> str:
    """Why a call with fields of these names is refused, and what to do."""
    said = []
    for name in names:
        # A name with a path before it is a field of a message, or of something else within.
        close = difflib.get_close_matches(name, FIELDS, n=1) if name.isidentifier() else []
        if name in _NOT_DONE or name in FIELDS:
            said.append(f"{name} is not supported by this call; leave it out")
        elif close:
            said.append(f"{name} is no field of this call; did you mean {close[0]}?")
        else:
            said.append(f"{name} is no field of this call; leave it out")
    return "; ".join(said)
