"""An engine whose host makes the next step ready while the device computes the last one.

Owns: the step in flight, and the guess that lets the next one follow it. Knows nothing of devices, kernels or threads.
A step on a fast GPU takes as long as Python takes to plan it, so one after the other costs twice. What a plan needs of
the step before is who goes on, not which token was chosen. So all whose length allows it are said to go on; the
scheduler is told a guess in place of each token, and the device puts the token it chose where the guess stands:

    host     launch 1 | guess 1, launch 2 | land 1 | guess 2, launch 3 | land 2 | ...
    device            |        step 1     |      step 2          |       step 3

    landing  the true token takes the guess's place, before anybody computes with it, publishes it or looks at it
    wrong    an answer that ends, by an end token or a stop string, has a step too many in flight: it is retired, its
             blocks are free when that step is done, and what the step made for it is dropped

The next step is not launched ahead where it must know the tokens: of wishes that count what was made (penalties), of
those that the host chooses itself (top_p, logprobs and their like, on a GPU), and where answers fork. Those steps land
first, as in `Engine`. Tokens are the same either way. Pieces come a step later. A step that cannot be launched ends
those who were to be in it, behind what they made in the one before; one whose tokens are no good, those in it.
Cost: O(1) more a token; an answer that ends early computes one token in vain.
Invariants: those of `Engine`; a step that was guessed about has landed before the scheduler hears of the next.
Source: the asynchronous scheduling of SGLang and vLLM, told in their papers and documents.
"""

from __future__ import annotations

from collections.abc import Mapping

from reference_impl.engine.engine import Engine
from reference_impl.engine.flight import Flight
from reference_impl.engine.outputs import Piece
from reference_impl.engine.runner import Awaited
from reference_impl.sched.lifecycle import Lifecycle

GUESS = 0
"""Any token that there is: it is never computed with."""


class PipelinedEngine(Engine):
    """See the module. The arguments are those of `Engine`; the scheduler is one of ours, whose requests can retire."""

    scheduler: Lifecycle

    def _advance(self, started_s: float) -> None:
        """As `Engine._advance`, but that what lands is the step before the one that is launched."""
        flight, self._flight = self._flight, None
        if flight is None:
            flight = self._launch()
        if not self._may_guess(flight):
            self._say(flight, self._land(flight), started_s)
            return
        guessed = self._guess(flight)
        try:
            if self._answers:
                tokens = flight.choice.tokens if flight.choice is not None else None
                self._flight = self._launch(None if tokens is None else Awaited(guessed, tokens))
        except BaseException:
            # What this step made is there all the same.
            self._land_behind_an_error(flight, guessed, started_s)
            raise
        self._say(flight, self._land_guessed(flight, guessed), started_s)

    def _land_behind_an_error(self, flight: Flight, guessed: Mapping[int, int], started_s: float) -> None:
        """If this goes wrong too, both errors must be somebody's, or the engine cannot be trusted any more."""
        concerned = self._blame.taken()
        try:
            self._say(flight, self._land_guessed(flight, guessed), started_s)
        except BaseException:
            others = self._blame.taken()
            self._blame.again([*concerned, *others] if concerned and others else [])
            raise
        self._blame.again(concerned)

    def _may_guess(self, flight: Flight) -> bool:
        if flight.choice is not None and not flight.choice.complete:
            return False
        return not flight.forked and not any(
            answer.group.params.looks_back and answer.is_live for answer in flight.answers
        )

    def _guess(self, flight: Flight) -> dict[int, int]:
        """Tell the scheduler who ends and, for all it knows, who goes on; these, and their places in the choice."""
        last: set[int] = set()
        going_on: dict[int, int] = {}
        for place, answer in enumerate(flight.answers):
            if not answer.is_live:
                continue
            if answer.lacks_one:
                last.add(answer.identity)
            else:
                going_on[answer.identity] = place
        self.scheduler.finish_step(last, dict.fromkeys(going_on, GUESS))
        for identity in last:
            self._forget(self._answers[identity])
        return going_on

    def _land_guessed(self, flight: Flight, guessed: Mapping[int, int]) -> list[Piece]:
        """Each answer gets its token, and each guess makes room for the truth."""
        chosen, ends, pieces = self._chosen(flight), self.loaded.eos_token_ids, []
        for answer, sampled in zip(flight.answers, chosen, strict=True):
            identity, group = answer.identity, answer.group
            if not answer.is_live:
                continue
            if identity in guessed:
                self._token_ids[identity][len(group.prompt) + len(answer.made)] = sampled.token
            piece = answer.take(sampled, ends)
            pieces.append(piece)
            if piece.finish is None:
                continue
            if identity in guessed:
                self.scheduler.retire(identity)
                self._forget(answer)
            if group.is_over:
                self._groups.pop(group.request, None)
        return pieces
