"""What is asked of the choice of tokens, and what comes of it: plain data, checked when it is made.

Owns: the parameters, their ranges and their defaults, and a chosen token. Knows nothing of logits (`sampler.py`) or of
text: the engine looks for stop strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """One request's wishes.

    max_tokens: new tokens at most. temperature: 0 takes the most likely token and looks at no random number. top_k:
    only the k most likely tokens, 0 for all. top_p: only the smallest set of most likely tokens whose share is at least
    top_p. min_p: only tokens at least min_p times as likely as the most likely one. seed: None draws one; the same seed
    gives the same tokens in whatever batch. n: how many answers, each with a seed of its own derived from `seed`.
    logprobs: report the chosen token's log-probability and those of so many most likely tokens; None reports none.
    presence_penalty, frequency_penalty: subtracted from the logit of each token made so far, once and for each time it
    was made. repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt or made so
    far. logit_bias: token id -> what is added to its logit. stop: strings; the answer ends before the first of them.
    stop_token_ids: the answer ends with such a token, which is not part of its text. ignore_eos: the model's own end
    token is a token like any other.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError, naming the parameter and its value, on one out of its range."""
        ranges: tuple[tuple[str, float | None, float, float], ...] = (
            ("max_tokens", self.max_tokens, 1, math.inf),
            ("temperature", self.temperature, 0, 1e6),
            ("top_k", self.top_k, 0, math.inf),
            ("min_p", self.min_p, 0, 1),
            ("seed", self.seed, 0, MAX_SEED),
            ("n", self.n, 1, math.inf),
            ("logprobs", self.logprobs, 0, MAX_LOGPROBS),
            ("presence_penalty", self.presence_penalty, -2, 2),
            ("frequency_penalty", self.frequency_penalty, -2, 2),
        )
        for name, value, least, most in ranges:
            # Written so that a NaN, which is in no range, is refused too.
            if value is not None and not least <= value <= most:
                bound = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise ValueError(f"{name} must be {bound}, got {value}")
        for name, value in (("top_p", self.top_p), ("repetition_penalty", self.repetition_penalty)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.top_p > 1:
            raise ValueError(f"top_p must be at most 1, got {self.top_p}")
        self._check_stops()

    def _check_stops(self) -> None:
        for text in self.stop:
            if not text:
                raise ValueError("stop holds an empty string, which every answer begins with")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                # Half of a character, which no answer could ever contain.
                raise ValueError(f"stop holds {text!r}, which is not valid UTF-8: {error.reason}") from None
        for token in (*self.stop_token_ids, *self.logit_bias):
            if token < 0:
                raise ValueError(f"token ids are at least 0, got {token}")
        for token, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise ValueError(f"logit_bias of token {token} must be -100 to 100, got {bias}")

    @property
    def greedy(self) -> bool:
        """Whether no random number is looked at."""
        return self.temperature == 0

    # What is asked for every token of every answer is found out once.

    @cached_property
    def looks_back(self) -> bool:
        """Whether the choice depends on which tokens were made before."""
        return bool(self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty)

    @cached_property
    def temperature_alone(self) -> bool:
        """Whether logits and temperature are all that the choice depends on, and nothing is reported of it."""
        filtered = self.top_k or self.top_p < 1 or self.min_p > 0
        return not (filtered or self.logprobs is not None or self.logit_bias or self.looks_back)


class Sampled(NamedTuple):
    """A chosen token. `logprob` and `top` are there only if they were asked for.

    A named tuple: one is made for every token, and a frozen dataclass takes twice as long to make.

    logprob: natural logarithm of its share under the model, before penalties, temperature and filters. top: the most
    likely tokens with theirs, most likely first, as many as were asked for.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
