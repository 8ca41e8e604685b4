"""Whom to preempt, and how the victim comes back: the two choices of a scheduler that runs out of memory.

Owns: the named choices. Knows nothing of queues or of how memory is freed.
A victim is chosen among the requests that run, in the order of the queue; the scheduler leaves the first of them out
unless it runs alone. So the first one never loses what it computed, reaches its end, and the next becomes the first:
whatever the choice, no request is preempted for ever.
Source: Kwon et al., SOSP 2023, section 4.5 (last come, first preempted; recomputation and swapping).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from reference_impl.memory.swap import Recovery
from reference_impl.sched.request import Request

Victim = Callable[[Sequence[Request]], Request]
"""One of the requests given, in the order of the queue; at least one is given."""

Way = Recovery | Literal["recompute", "swap"]
RecoveryRule = Callable[[Request], Way]
"""How this victim is to come back: computed again from its tokens, or from a copy on the host."""


def last_in_order(running: Sequence[Request]) -> Request:
    """The one that the queue would serve last: the order of the queue holds in memory too."""
    return running[-1]


def fewest_to_recompute(running: Sequence[Request]) -> Request:
    """The one that loses the fewest computed tokens, the last of equals."""
    return min(reversed(running), key=lambda request: request.num_computed)


def most_freed(running: Sequence[Request]) -> Request:
    """The one that holds the most tokens, the last of equals: the fewest preemptions, and the dearest.

    Blocks that others share stay where they are, and a scheduler does not see which: it counts tokens.
    """
    return max(reversed(running), key=lambda request: request.num_computed + request.num_scheduled)


VICTIMS: dict[str, Victim] = {
    "last": last_in_order,
    "fewest_tokens": fewest_to_recompute,
    "most_freed": most_freed,
}
"""Name -> the choice."""
