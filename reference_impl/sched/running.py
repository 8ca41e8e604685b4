"""The requests that run, in the order of the queue, without sorting them at every step.

Owns: which requests run, apart those with one token left to compute (decodes) from those with more (prefills), and
their order. Knows nothing of memory or budgets.
A request joins behind those that came before it, so the order keeps itself; only when one joins out of turn, because it
was preempted or its prefill took longer, is the next walk preceded by a sort. Joining and leaving are O(1).
"""

from __future__ import annotations

from collections.abc import Iterator

from reference_impl.sched.request import Request


def place_of(request: Request) -> tuple[int, int]:
    """Where the queue put it. The request must have been in a queue."""
    assert request.place is not None, f"request {request.request} was in no queue"
    return request.place


class Line:
    """Requests by id, walked by place."""

    def __init__(self) -> None:
        self._requests: dict[int, Request] = {}
        self._in_order = True

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: int) -> bool:
        return request in self._requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self.in_order())

    def join(self, request: Request) -> None:
        if self._in_order and self._requests:
            self._in_order = place_of(self._requests[next(reversed(self._requests))]) < place_of(request)
        self._requests[request.request] = request

    def leave(self, request: Request) -> None:
        """KeyError if it is not here."""
        del self._requests[request.request]

    def in_order(self) -> list[Request]:
        """The requests by place, in a list of the caller's own. O(n), and a sort if one joined out of turn."""
        if not self._in_order:
            self._requests = {request.request: request for request in sorted(self._requests.values(), key=place_of)}
            self._in_order = True
        return list(self._requests.values())


class Running:
    """Two lines: `decodes`, each with one token left, and `prefills`, each with more. O(1) but for walks."""

    def __init__(self) -> None:
        self.decodes = Line()
        self.prefills = Line()

    def __len__(self) -> int:
        return len(self.decodes) + len(self.prefills)

    def __contains__(self, request: int) -> bool:
        return request in self.decodes or request in self.prefills

    def join(self, request: Request) -> None:
        """By how many tokens are left to compute, whether or not they are scheduled."""
        left = request.num_tokens - request.num_computed
        (self.decodes if left == 1 else self.prefills).join(request)

    def leave(self, request: Request) -> None:
        line = self.decodes if request.request in self.decodes else self.prefills
        line.leave(request)

    def in_order(self) -> list[Request]:
        """All of them by place. O(n log n): for the step that has to preempt."""
        return sorted([*self.decodes.in_order(), *self.prefills.in_order()], key=place_of)

    def check_invariants(self) -> None:
        for request in self.decodes:
            left = request.num_tokens - request.num_computed
            assert left == 1, f"I9: request {request.request} decodes and has {left} tokens left"
        for line in (self.decodes, self.prefills):
            places = [place_of(request) for request in line]
            assert places == sorted(places), f"the line {places} is out of order"
