"""Prefill first: a step computes prompts or decodes, never both, and prompts go first.

Owns: that order. Knows nothing else that `scheduler.py` does not. As engines were before chunks of prompts shared a
budget with decodes: whoever waits gets its first token soon, and everybody who decodes stands still meanwhile. It is
here because the effect of chunked prefill is measured against it.
Source: vLLM before its version 1; the stall is figure 1 of Agrawal et al. (Sarathi-Serve), OSDI 2024.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference_impl.memory.kv_memory import Grant, KVMemory
from reference_impl.sched.plan import Plan
from reference_impl.sched.preemption import RecoveryRule, Victim, Way
from reference_impl.sched.queues import WaitingQueue
from reference_impl.sched.request import Request
from reference_impl.sched.scheduler import ContinuousBatching
from reference_impl.sched.step import Step
from reference_impl.sched.surface import Limits

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog


class PrefillFirst(ContinuousBatching):
    """Not chunked unless asked for; then a prompt takes several steps, and decodes wait for all of them."""

    def __init__(
        self,
        memory: KVMemory,
        limits: Limits | None = None,
        queue: WaitingQueue | None = None,
        *,
        chunked: bool = False,
        recovery: Way | RecoveryRule = "recompute",
        victim: str | Victim = "last",
        log: EventLog | None = None,
    ) -> None:
        """As `ContinuousBatching`."""
        super().__init__(memory, limits, queue, chunked=chunked, recovery=recovery, victim=victim, log=log)

    def schedule(self) -> Plan:
        step = self._open_step()
        if not self._swapped:
            self._prefill(step)
            self._take_in(step)
        if not step.scheduled:
            self._decode(step)
            self._after_decodes(step)
        return self._close_step(step)

    def _make_room(self, step: Step, request: Request, num_tokens: int) -> Grant | None:
        # A prompt preempts nobody while there are decodes: it stands still until they leave. Else two prompts could
        # take each other's memory for ever, and the decodes that hold the rest of it would never have a step.
        if request.num_left > 1 and len(self.running.decodes):
            grant = self.memory.grow(request.request, num_tokens)
            return grant if isinstance(grant, Grant) else None
        return super()._make_room(step, request, num_tokens)

    def _after_decodes(self, step: Step) -> None:
        """Those on the host come back among the decodes; with nothing scheduled, whoever can start does."""
        if not self._is_short(step):
            self._bring_back(step)
        if not step.scheduled:
            self._prefill(step)
        if not step.scheduled and not self._swapped:
            self._admit(step)

    def _resume(self, step: Step, request: Request) -> None:
        # A prompt that was cut in the middle waits for a step of prefills, and a decode for one of decodes.
        if not (step.prefills if request.num_left == 1 else step.decodes):
            super()._resume(step, request)
