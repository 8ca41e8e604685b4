"""Many prompts through one engine, from the first to the last answer: what a batch job, a chat and a test do alike.

Owns: the loop around `Engine.step` for a caller who waits for the answers, and what it adds up. Knows nothing of
files, terminals or threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from reference_impl.engine.engine import Engine, RequestRefused
from reference_impl.engine.outputs import FinishReason, Piece, Usage
from reference_impl.model.sampling import Sampled, SamplingParams


@dataclass(frozen=True)
class Ask:
    """A prompt as token ids, what is wished of its answer, and the salt of what it may find in the prefix cache."""

    prompt: list[int]
    params: SamplingParams
    salt: str = ""


@dataclass
class Told:
    """One answer, whole."""

    text: str = ""
    tokens: list[Sampled] = field(default_factory=list)
    finish: FinishReason | None = None
    stopped_by: str | int | None = None

    @property
    def token_ids(self) -> list[int]:
        """The ids of the tokens made, the one that ended it included."""
        return [sampled.token for sampled in self.tokens]

    def hear(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        if piece.finish is not None:
            self.finish, self.stopped_by = piece.finish, piece.stopped_by


@dataclass
class Reply:
    """What became of an ask: its answers, or why it was refused."""

    answers: list[Told] = field(default_factory=list)
    usage: Usage | None = None
    refused: str = ""


@dataclass
class Totals:
    """What a run came to. prompt_tokens: of asks that were taken; cached_tokens: found in the prefix cache of these."""

    seconds: float = 0.0
    steps: int = 0
    most_running: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    made_tokens: int = 0
    refused: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Tokens made a second."""
        return self.made_tokens / self.seconds if self.seconds else 0.0


Hear = Callable[[Piece], None]


def generate(
    engine: Engine, asks: Iterable[Ask], *, hear: Hear | None = None, after_step: Callable[[], None] | None = None
) -> tuple[list[Reply], Totals]:
    """Answer all of `asks`, in their order; one that is refused as busy is asked again when there is room.

    hear: is given each piece as it comes. after_step: is called after each step. The engine must be idle, and is again.
    """
    run = _Run(engine, asks)
    started_s = time.monotonic()
    while run.feed() or engine.has_work:
        for piece in engine.step():
            run.take(piece)
            if hear is not None:
                hear(piece)
        run.count_step()
        if after_step is not None:
            after_step()
    run.totals.seconds = time.monotonic() - started_s
    return run.replies, run.totals


class _Run:
    """The replies so far, and which of them belongs to which request."""

    def __init__(self, engine: Engine, asks: Iterable[Ask]) -> None:
        self.replies: list[Reply] = []
        self.totals = Totals()
        self._engine = engine
        self._asks: Iterator[Ask] = iter(asks)
        self._held: Ask | None = None
        self._replies: dict[int, Reply] = {}

    def feed(self) -> bool:
        """Add what the engine takes; whether any ask is left to be added later."""
        while (ask := self._held or next(self._asks, None)) is not None:
            self._held = None
            try:
                request = self._engine.add(ask.prompt, ask.params, salt=ask.salt)
            except RequestRefused as refused:
                if refused.kind == "busy":
                    self._held = ask
                    return True
                self.replies.append(Reply(refused=str(refused)))
                self.totals.refused += 1
                continue
            reply = Reply([Told() for _ in range(ask.params.n)])
            self.replies.append(reply)
            self._replies[request] = reply
        return False

    def take(self, piece: Piece) -> None:
        reply = self._replies[piece.request]
        reply.answers[piece.choice].hear(piece)
        self.totals.made_tokens += len(piece.tokens)
        if piece.usage is not None:
            reply.usage = piece.usage
            self.totals.prompt_tokens += piece.usage.prompt_tokens
            self.totals.cached_tokens += piece.usage.cached_tokens
            del self._replies[piece.request]

    def count_step(self) -> None:
        self.totals.steps += 1
        self.totals.most_running = max(self.totals.most_running, self._engine.last_step.requests)
