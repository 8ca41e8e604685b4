"""What is checked of a request before it is taken, and how a refusal reads.

Owns: `RequestRefused` and its words. Knows nothing of who asks or of what becomes of a request that is taken.
Cost: O(prompt).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.model.sampling import SamplingParams


class RequestRefused(ValueError):  # noqa: N818 - an answer to the client, as a Refusal is
    """A request that is not taken, in one line. kind: "invalid", "too_long", "never_fits" or "busy"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def checked_prompt(
    prompt: Sequence[int],
    params: SamplingParams,
    timeout_s: float | None,
    *,
    vocab_size: int,
    max_context_tokens: int,
    max_running: int,
) -> array[int]:
    """The ids, ours to keep. Raises: RequestRefused, naming the value."""
    if not len(prompt):
        raise RequestRefused("invalid", "the prompt is empty: give at least one token")
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise RequestRefused("invalid", f"prompt holds token {token}; this model has 0 to {vocab_size - 1}")
    if len(prompt) + params.max_tokens > max_context_tokens:
        room = max_context_tokens - len(prompt)
        advice = f"ask for at most {room}" if room > 0 else "shorten the prompt"
        asked = f"{len(prompt)} prompt tokens and max_tokens {params.max_tokens}"
        raise RequestRefused("too_long", f"{asked} are more than the context of {max_context_tokens}: {advice}")
    for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
        if unknown := [token for token in ids if token >= vocab_size]:
            raise RequestRefused("invalid", f"{name} has {unknown[0]}; this model has 0 to {vocab_size - 1}")
    if params.n > max_running:
        raise RequestRefused("invalid", f"n is {params.n}; at most {max_running} run at once")
    if timeout_s is not None and not timeout_s > 0:
        raise RequestRefused("invalid", f"timeout_s must be above 0, got {timeout_s}")
    return array("i", prompt)


def refused(refusal: Refusal) -> RequestRefused:
    """What a client is told of the scheduler's refusal."""
    kind = "too_long" if refusal.reason is Reason.TOO_LONG else "never_fits"
    advice = "ask for fewer tokens, or start the engine with more KV memory"
    said = f"{refusal.needed} tokens needed, {refusal.free} free: {refusal.reason.value}"
    return RequestRefused(kind, f"{said}; {advice}")
