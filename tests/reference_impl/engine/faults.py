"""Errors put into the parts of an engine, where and when a test says: for what must survive a step that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from reference_impl.engine.engine import Engine
from reference_impl.model.sampler import Choice, Wish


class Faults:
    """Puts errors into an engine's parts: fails(what) says whether its next call of `what` does."""

    def __init__(self, engine: Engine, fails: Callable[[str], bool]) -> None:
        self._run, self._begin, self._fails = engine.runner.run, engine._sampler.begin, fails
        engine.runner.run = self.run  # type: ignore[method-assign]
        engine._sampler.begin = self.begin  # type: ignore[method-assign]

    def run(self, *args: Any) -> Any:
        if self._fails("before"):
            raise RuntimeError("out of memory\nbefore anything was computed")
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
