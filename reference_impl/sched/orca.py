"""Iteration-level scheduling as it was first published: whole prompts join the decodes, whatever that costs the step.

Owns: the configuration. It is `ContinuousBatching` without its two later additions, chunks of prompts and a budget of
tokens: a step holds every request that runs, and the whole prompt of each that joins, so its length varies with them.
Orca also reserved the memory of a whole request at admission; that is the memory's affair: give it `reserve_max`,
`pow2` or `oracle` of `memory/policies.py`.
Source: Yu et al. (Orca), OSDI 2022, section 3.1 and algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reference_impl.memory.kv_memory import KVMemory
from reference_impl.sched.queues import WaitingQueue
from reference_impl.sched.scheduler import ContinuousBatching
from reference_impl.sched.surface import Limits

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog


def orca(
    memory: KVMemory,
    max_running: int = 256,
    max_request_tokens: int | None = None,
    queue: WaitingQueue | None = None,
    *,
    log: EventLog | None = None,
) -> ContinuousBatching:
    """A scheduler that computes prompts whole and knows no budget but `max_running` requests and the memory."""
    return ContinuousBatching(memory, Limits(None, max_running, max_request_tokens), queue, chunked=False, log=log)
