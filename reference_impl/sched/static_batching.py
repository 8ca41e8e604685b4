"""Static batching: requests run in batches, and a batch runs until its last row is done.

Owns: the batch and its rectangle. Knows nothing of how padded memory is kept: give it `PaddedBatch`, and memory refuses
whoever comes while a batch runs, as this scheduler would anyway.
A batch is taken from the queue when the one before is done: as many rows as fit. Its prompts are padded to the longest
and computed in one step; then every row is given a step for every token that the longest answer needs. A row that is
done keeps its place: it makes nothing and is computed all the same (`Plan.rectangle`).
Where the memory gives blocks as tokens come, a batch may outgrow it; the last row is preempted then and joins the next.
Source: the baseline of Yu et al. (Orca), OSDI 2022, section 2, and of Kwon et al., SOSP 2023, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference_impl.memory.kv_memory import KVMemory
from reference_impl.memory.kv_policy import Refusal
from reference_impl.sched.plan import Plan, Rectangle
from reference_impl.sched.queues import WaitingQueue
from reference_impl.sched.request import Request
from reference_impl.sched.scheduler import ContinuousBatching
from reference_impl.sched.step import Step
from reference_impl.sched.surface import Limits

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog


class StaticBatching(ContinuousBatching):
    """`Limits.max_tokens_per_step` limits the rectangle, pads included; `max_running` its rows."""

    def __init__(
        self,
        memory: KVMemory,
        limits: Limits | None = None,
        queue: WaitingQueue | None = None,
        *,
        log: EventLog | None = None,
    ) -> None:
        """As `ContinuousBatching`. Without a budget, memory and `max_running` alone limit a batch."""
        super().__init__(memory, limits, queue, chunked=False, log=log)
        self._rows = 0
        self._width = 0

    def schedule(self) -> Plan:
        step = self._open_step()
        self._decode(step)
        if step.scheduled:
            self._head_waits = "a batch runs"
            step.rectangle = Rectangle(self._rows, 1, self._width)
            self._width += 1
        else:
            self._gather(step)
        return self._close_step(step)

    def _shares(self, parent: Request, child: Request) -> bool:
        # Nobody joins a batch that runs, a fork neither: it waits for the next one.
        return False

    def _gather(self, step: Step) -> None:
        """The next batch, and its prompts in one step."""
        self._rows = self._width = 0
        new_tokens = context = 0
        self._head_waits = ""
        while len(self.queue) and self._rows < self.limits.max_running:
            head = self.queue.peek()
            width = max(self._width, head.num_tokens)
            if (self._rows + 1) * width > self.limits.budget:
                self._head_waits = f"the rectangle has its {self.limits.budget} tokens"
                break
            grant = self.memory.admit(head.demand(), head.num_tokens)
            if isinstance(grant, Refusal):
                step.refused = grant
                self._head_waits = grant.reason.value
                break
            self._rows, self._width = self._rows + 1, width
            self._start(step, self.queue.pop(), grant, head.num_tokens)
            new_tokens, context = max(new_tokens, head.num_scheduled), max(context, grant.num_reused)
        if len(self.queue) and not self._head_waits:
            self._head_waits = "as many run as may"
        if self._rows:
            step.rectangle = Rectangle(self._rows, new_tokens, context)
