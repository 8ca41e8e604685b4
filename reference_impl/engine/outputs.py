"""What comes out of the engine: pieces of answers, as plain data.

Owns: the pieces, why an answer ends, what is said of an error, and what a request used. Knows nothing of steps or of
protocols (`server/app.py` translates).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from reference_impl.model.sampling import Sampled

_LONGEST = 240
"""Characters that are said of an error: torch's go on for lines."""


class FinishReason(Enum):
    """Why an answer ended. The values are those of the OpenAI API, which has no word for the last three."""

    STOP = "stop"
    """The model's end token, a stop token or a stop string."""
    LENGTH = "length"
    """`max_tokens`, or the longest context."""
    ABORT = "abort"
    """The client went away, or said so."""
    TIMEOUT = "timeout"
    """Its deadline passed."""
    ERROR = "error"
    """The step that computed it went wrong."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request: its prompt, how much of that was found in the prefix cache, and all of its answers.

    looked_up_tokens: of the prompt, whether found or not; none if it was never admitted or there is no prefix cache.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    looked_up_tokens: int = 0


class Piece(NamedTuple):
    """What one step added to one answer.

    A named tuple: one is made for every token, and a frozen dataclass takes more than twice as long to make.

    request: as `Engine.add` returned it. choice: which of its `n` answers. text: complete characters only, and never
    part of a stop string; it may be empty. tokens: those made, whose text may come later. finish: set on an answer's
    last piece, with stopped_by the stop string or token id that ended it, if one did, or error what went wrong, in one
    line. usage: set on the last piece of the last answer.
    """

    request: int
    choice: int
    text: str
    tokens: tuple[Sampled, ...]
    finish: FinishReason | None = None
    stopped_by: str | int | None = None
    usage: Usage | None = None
    error: str | None = None


def in_one_line(error: BaseException) -> str:
    """What `error` is and says, cut where it gets long."""
    said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
