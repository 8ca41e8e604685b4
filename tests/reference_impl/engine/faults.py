"""Errors put into the parts of an engine, where and when a test says: for what must survive a step that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from reference_impl.engine.engine import Engine
from reference_impl.engine.generate import Told
from reference_impl.engine.outputs import FinishReason
from reference_impl.model.sampler import Choice, Wish


def no_memory() -> None:
    raise RuntimeError("out of memory\nbefore anything was computed")


class Faults:
    """Puts errors into an engine's parts: fails(what) says whether its next call of `what` does.

    goes_wrong: what happens before anything is computed.
    """

    def __init__(
        self, engine: Engine, fails: Callable[[str], bool], goes_wrong: Callable[[], object] = no_memory
    ) -> None:
        self._run, self._begin, self._fails = engine.runner.run, engine._sampler.begin, fails
        self._goes_wrong = goes_wrong
        engine.runner.run = self.run  # type: ignore[method-assign]
        engine._sampler.begin = self.begin  # type: ignore[method-assign]

    def run(self, *args: Any) -> Any:
        if self._fails("before"):
            self._goes_wrong()
        step = self._run(*args)
        if self._fails("behind"):
            raise RuntimeError("behind the model")
        return step

    def begin(self, logits: Tensor, wishes: Sequence[Wish]) -> Choice:
        choice, fails = self._begin(logits, wishes), self._fails("tokens")

        def sampled() -> Any:
            if fails:
                raise FloatingPointError("row 0 holds NaN")
            return choice.sampled()

        return replace(choice, sampled=sampled)


def once(what: str, at: int) -> Callable[[str], bool]:
    """The call of `what` with this number fails, and no other."""
    calls = iter(range(10**6))
    return lambda which: which == what and next(calls) == at


def heard_through(engine: Engine) -> tuple[dict[tuple[int, int], Told], list[Exception]]:
    """As `heard`, past the steps that fail; and what they raised."""
    told: dict[tuple[int, int], Told] = {}
    errors: list[Exception] = []
    while engine.has_work:
        try:
            pieces = engine.step()
        except (RuntimeError, FloatingPointError) as error:
            errors.append(error)
            continue
        for piece in pieces:
            told.setdefault((piece.request, piece.choice), Told()).hear(piece)
            assert (piece.error is not None) == (piece.finish is FinishReason.ERROR)
    return told, errors
