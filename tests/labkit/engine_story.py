"""A log of the engine's own memory in which everything happens that a player can show."""

from __future__ import annotations

from array import array

from labkit.event_log import Event
from reference_impl.memory.events import EventLog
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand


def wants(request: int, *tokens: int, more: int = 4) -> Demand:
    return Demand(request, len(tokens), more, token_ids=array("i", tokens))


def engine_story() -> list[Event]:
    """Six blocks of four slots, four on the host: found again, copied, refused, preempted, swapped, evicted."""
    log = EventLog()
    memory = KVManager(6, 4, prefix_cache="hash", num_host_blocks=4, log=log)
    system = (1, 2, 3, 4, 5, 6, 7, 8)
    memory.admit(wants(1, *system, 9), 9)
    memory.commit(1, 9)
    memory.fork(1, wants(2, *system, 9))
    memory.grow(2, 10)
    memory.commit(2, 10)
    memory.free(1)
    log.waits([3, 4])
    memory.admit(wants(3, *system, 10, 11, 12, 13, 14), 5)
    memory.commit(3, 13)
    log.waits([4])
    memory.admit(wants(4, *range(20, 30)), 10)
    log.preempted(3, "request 2 needs a block")
    memory.swap_out(3)
    log.preempted(2, "its turn was last")
    log.waits([2, 4])
    memory.free(2)
    log.waits([4, 2])
    memory.admit(wants(4, *range(20, 36)), 16)
    memory.commit(4, 16)
    log.waits([2])
    log.finished(4, "it has all its tokens")
    memory.free(4)
    memory.swap_in(3)
    log.waits([])
    log.finished(3, "its client hung up")
    memory.free(3)
    return log.events
