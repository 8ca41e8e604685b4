"""A step under way: who is in it, what it did, and whose affair it is if it fails.

Owns: plain data of one step, and the names of those whose computation raised an error. Knows nothing of how a step is
launched or landed (`engine.py`, `pipelined.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from reference_impl.engine.answer import Answer, Group
from reference_impl.engine.outputs import Piece
from reference_impl.model.sampler import Choice
from reference_impl.sched.plan import Plan


@dataclass(frozen=True)
class StepReport:
    """What the last step did: tokens computed, prompts' and others, requests in it, and tokens made."""

    prefill_tokens: int = 0
    decode_tokens: int = 0
    requests: int = 0
    made_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, plan: Plan, pieces: Sequence[Piece], seconds: float) -> StepReport:
        """A step that landed with these pieces."""
        decodes = sum(1 for tokens in plan.scheduled.values() if tokens == 1)
        made = sum(len(piece.tokens) for piece in pieces)
        return cls(plan.num_tokens - decodes, decodes, len(plan.scheduled), made, seconds)


@dataclass(frozen=True)
class Flight:
    """A step that was launched. answers: each gets a token, in the order of `choice`. forked: those among them that
    begin with it, by the answer whose prompt was computed.
    """

    plan: Plan
    answers: list[Answer]
    forked: dict[int, list[Answer]]
    choice: Choice | None

    @property
    def unborn(self) -> set[int]:
        """Answers that are known to their group alone until it lands."""
        return {child.identity for children in self.forked.values() for child in children}


class Blame:
    """Whose computation raised the error that is on its way; nobody's, if it was raised elsewhere."""

    def __init__(self) -> None:
        self._groups: dict[int, Group] = {}

    @contextmanager
    def computing(self, answers: Iterable[Answer]) -> Iterator[None]:
        """What is raised within it is the affair of the requests of these answers, and of no other's."""
        try:
            yield
        except BaseException:
            self.again(answer.group for answer in answers)
            raise

    def taken(self) -> list[Group]:
        """Those it concerns, and from now on nobody."""
        groups, self._groups = list(self._groups.values()), {}
        return groups

    def again(self, groups: Iterable[Group]) -> None:
        """It concerns them, as somebody found out who took them."""
        self._groups |= {group.request: group for group in groups}

    def check_invariants(self) -> None:
        """Between two steps nobody is to blame. AssertionError names who is."""
        assert not self._groups, f"requests {sorted(self._groups)} failed, and nobody was told"
