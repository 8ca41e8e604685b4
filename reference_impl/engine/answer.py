"""One client's request inside the engine, and each of its answers.

Owns: what an answer has so far (tokens, text) and how it ends. Knows nothing of steps, blocks or logits.
A request asks for `n` answers to one prompt. Each is a request of its own for the scheduler; where memory can share,
all but the first begin as forks of it once the prompt is computed.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

from reference_impl.engine.detokenizer import Detokenizer
from reference_impl.engine.outputs import FinishReason, Piece, Usage
from reference_impl.model.sampler import Wish
from reference_impl.model.sampling import Sampled, SamplingParams
from reference_impl.sched.request import Request


@dataclass
class Group:
    """A client's request: its prompt, its wishes, and those of its answers that are not done."""

    request: int
    prompt: array[int]
    params: SamplingParams
    salt: str
    tenant: str
    priority: int
    deadline_s: float | None
    live: dict[int, Answer] = field(default_factory=dict)
    """Choice -> answer."""
    unforked: int = 0
    """Answers that begin when the first one has its first token."""
    cached_tokens: int | None = None
    """Of the prompt, found in the prefix cache when it was admitted first; None as long as nobody looked."""
    completion_tokens: int = 0

    def scheduler_request(self, identity: int, arrival_s: float = 0.0) -> Request:
        """A new request to the scheduler for one answer, with ids of its own to append to."""
        return Request(
            identity,
            len(self.prompt),
            self.params.max_tokens,
            token_ids=array("i", self.prompt),
            salt=self.salt,
            priority=self.priority,
            tenant=self.tenant,
            arrival_s=arrival_s,
        )

    @property
    def is_over(self) -> bool:
        """Whether all of its answers are done."""
        return not self.live and not self.unforked

    def usage(self) -> Usage:
        prompt = len(self.prompt)
        looked_up = 0 if self.cached_tokens is None else prompt
        return Usage(prompt, self.cached_tokens or 0, self.completion_tokens, looked_up)


class Answer:
    """One answer: `identity` is its id for the scheduler, `choice` its number in the group."""

    def __init__(self, group: Group, choice: int, identity: int, detokenizer: Detokenizer) -> None:
        self.group = group
        self.choice = choice
        self.identity = identity
        self.made: list[int] = []
        self.wish = Wish(group.params, group.prompt, self.made, choice)
        self.next_wish = replace(self.wish, awaited=1)
        """For the token after one that is chosen and was not taken yet."""
        self._detokenizer = detokenizer
        group.live[choice] = self

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.group.live.get(self.choice) is self

    @property
    def forks_now(self) -> bool:
        """Whether its next token is the first of others too: it is its group's first answer and has none yet."""
        return bool(self.group.unforked) and not self.choice and not self.made

    @property
    def lacks_one(self) -> bool:
        """Whether the next token is the last that it may have."""
        return len(self.made) + 1 == self.group.params.max_tokens

    def take(self, sampled: Sampled, ends: frozenset[int]) -> Piece:
        """The next token; `ends` are the model's own end tokens. The piece says whether the answer is done with it.

        The token that ends an answer counts as made and has no text.
        """
        params, token = self.group.params, sampled.token
        self.made.append(token)
        self.group.completion_tokens += 1
        finish: FinishReason | None = None
        stopped_by: str | int | None = None
        text = ""
        if token in params.stop_token_ids:
            finish, stopped_by = FinishReason.STOP, token
        elif token in ends and not params.ignore_eos:
            finish = FinishReason.STOP
        else:
            text = self._detokenizer.push(token)
            if self._detokenizer.stopped_by is not None:
                finish, stopped_by = FinishReason.STOP, self._detokenizer.stopped_by
            elif len(self.made) == params.max_tokens:
                finish = FinishReason.LENGTH
        if finish is None:
            return Piece(self.group.request, self.choice, text, (sampled,))
        return self.end(finish, text=text, tokens=(sampled,), stopped_by=stopped_by)

    def end(
        self,
        finish: FinishReason,
        *,
        text: str = "",
        tokens: tuple[Sampled, ...] = (),
        stopped_by: str | int | None = None,
        error: str | None = None,
    ) -> Piece:
        """The last piece: what was held back of the text comes with it."""
        text += self._detokenizer.flush()
        if finish is FinishReason.LENGTH and self._detokenizer.stopped_by is not None:
            # A stop string that ends in a character of which no more comes is complete only now.
            finish, stopped_by = FinishReason.STOP, self._detokenizer.stopped_by
        del self.group.live[self.choice]
        usage = self.group.usage() if self.group.is_over else None
        return Piece(self.group.request, self.choice, text, tokens, finish, stopped_by, usage, error)
