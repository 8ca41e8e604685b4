"""Requests that wait, and whose turn it is: first come, by priority with aging, shortest first, fair between tenants.

Owns: the order of the requests that wait, and what it takes to keep it. Knows nothing of memory, budgets or steps:
whether the head is admitted is for the scheduler to say. A request gets its `place` when it is pushed first and keeps
it, so a preempted one comes back to where it stood. A place is (rank, arrival number), lowest first; no two are equal.
Every operation is O(log n) amortised over n waiting requests: removal marks the entry in the heap as dead, and dead
entries are dropped when they reach the top, or all at once when they are the greater part.
Source: fairness, Sheng et al. (Virtual Token Counter), OSDI 2024, algorithm 2.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from reference_impl.sched.request import Request

_DEAD_SLACK = 64
"""Dead entries that are never worth a new heap."""


class WaitingQueue(Protocol):
    """What a scheduler asks of the requests that wait. One queue serves one scheduler."""

    def __len__(self) -> int:
        """Requests that wait."""

    def push(self, request: Request) -> None:
        """`request` waits, for the first time or again. ValueError if it waits already."""

    def peek(self) -> Request:
        """The request whose turn it is. IndexError if none waits."""

    def pop(self) -> Request:
        """That request, which waits no more: it runs. IndexError if none waits."""

    def remove(self, request: int) -> Request:
        """Take a request out wherever it stands, because it was aborted. KeyError if it does not wait."""

    def served(self, requests: Iterable[Request]) -> None:
        """Each of these, waiting or not, made one token. Called once a step."""

    def check_invariants(self) -> None:
        """AssertionError if the books do not agree."""


class _Entry:
    """A request in the heap; None in place of the request once it is dead."""

    __slots__ = ("place", "request")

    def __init__(self, place: tuple[int, int], request: Request) -> None:
        self.place = place
        self.request: Request | None = request

    def __lt__(self, other: _Entry) -> bool:
        return self.place < other.place


class _Heap:
    """Requests by their place. One that is pushed must have a place."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._entries: dict[int, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        return (entry.request for entry in self._heap if entry.request is not None)

    def push(self, request: Request) -> None:
        if request.request in self._entries:
            raise ValueError(f"request {request.request} waits already")
        assert request.place is not None, f"request {request.request} has no place"
        entry = _Entry(request.place, request)
        self._entries[request.request] = entry
        heapq.heappush(self._heap, entry)

    def peek(self) -> Request:
        while True:
            if not self._heap:
                raise IndexError("no request waits")
            if (request := self._heap[0].request) is not None:
                return request
            heapq.heappop(self._heap)

    def pop(self) -> Request:
        request = self.peek()
        heapq.heappop(self._heap)
        del self._entries[request.request]
        return request

    def remove(self, request: int) -> Request:
        entry = self._entries.pop(request, None)
        if entry is None:
            raise KeyError(f"request {request} does not wait")
        removed, entry.request = entry.request, None
        assert removed is not None, f"request {request} is dead and in the books"
        if len(self._heap) - len(self._entries) > max(_DEAD_SLACK, len(self._entries)):
            self._heap = [entry for entry in self._heap if entry.request is not None]
            heapq.heapify(self._heap)
        return removed

    def check_invariants(self) -> None:
        live = {request.request for request in self}
        assert live == self._entries.keys(), (
            f"requests {live ^ self._entries.keys()} are in the heap or the books alone"
        )


class _ByRank(ABC):
    """One heap; a queue adds the rank that a request gets when it comes first."""

    def __init__(self) -> None:
        self._heap = _Heap()
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._heap)

    @abstractmethod
    def _rank(self, request: Request, arrival: int) -> int:
        """Where a request that arrives as number `arrival` stands for good; the lowest goes first."""

    def push(self, request: Request) -> None:
        if request.place is None:
            request.place = (self._rank(request, self._arrivals), self._arrivals)
            self._arrivals += 1
        self._heap.push(request)

    def peek(self) -> Request:
        return self._heap.peek()

    def pop(self) -> Request:
        return self._heap.pop()

    def remove(self, request: int) -> Request:
        return self._heap.remove(request)

    def served(self, requests: Iterable[Request]) -> None:  # noqa: B027 - nothing to do is the behaviour
        """The order does not depend on what was made."""

    def check_invariants(self) -> None:
        self._heap.check_invariants()


class FirstCome(_ByRank):
    """In order of arrival."""

    def _rank(self, request: Request, arrival: int) -> int:
        return 0


class ByPriority(_ByRank):
    """Lower `priority` first, but a request gains one level for every `aging_steps` requests that arrive after it.

    After t arrivals a request of number n has aged to `priority - (t - n) / aging_steps`. That falls for all of them at
    the same pace, so t makes no difference between any two: the order is that of `priority * aging_steps + n`, which
    never changes, and a heap is enough. Nobody starves: a request waits for those before it and for at most
    `aging_steps` arrivals for each level between its priority and theirs.
    """

    def __init__(self, aging_steps: int = 256) -> None:
        """Raises: ValueError on `aging_steps` below 1."""
        if aging_steps < 1:
            raise ValueError(f"aging_steps must be at least 1, got {aging_steps}")
        super().__init__()
        self.aging_steps = aging_steps

    def _rank(self, request: Request, arrival: int) -> int:
        return arrival + request.priority * self.aging_steps


class ShortestFirst(_ByRank):
    """The shortest prompt first: the best mean wait, and no promise at all to a long one while short ones arrive."""

    def _rank(self, request: Request, arrival: int) -> int:
        return request.prompt_tokens


class FairShare:
    """The tenant that was served least goes next; the requests of one tenant in order of arrival.

    Every tenant has a counter of what it was served, in tokens divided by its weight: a prompt counts when its request
    is taken in, `prompt_price` a token, an output token `output_price` when it is made. A tenant that comes back to an
    empty line is lifted to the least counter among those that wait (or, if none waits, to that of the tenant that left
    the line last), because idleness is no credit. Two tenants that always wait differ by a bound that does not grow
    with time. What a preemption makes the engine compute again is the engine's affair and costs the tenant nothing; the
    preempted request goes first when it returns, its turn was taken and paid for.
    """

    def __init__(
        self, weights: Mapping[str, float] | None = None, *, prompt_price: float = 1.0, output_price: float = 2.0
    ) -> None:
        """`weights`: tenant -> share, 1 for those not named. Raises: ValueError on a weight or a price not above 0."""
        self.weights = dict(weights or {})
        for name, value in [*self.weights.items(), ("prompt_price", prompt_price), ("output_price", output_price)]:
            if not value > 0:
                raise ValueError(f"{name!r} must be above 0, got {value}")
        self.prompt_price = prompt_price
        self.output_price = output_price
        self.counters: dict[str, float] = {}
        """Tenant -> what it was served, divided by its weight."""
        self._lines: dict[str, _Heap] = {}
        self._opened: dict[str, tuple[int, int]] = {}
        """Tenant that waits -> the place of the request that opened its line: its turn is the one with that place."""
        self._turns: list[tuple[float, tuple[int, int], str]] = []
        self._returned = _Heap()
        self._where: dict[int, _Heap] = {}
        self._arrivals = 0
        self._last_tenant: str | None = None

    def __len__(self) -> int:
        return len(self._where)

    def push(self, request: Request) -> None:
        if request.request in self._where:
            raise ValueError(f"request {request.request} waits already")
        if request.place is None:
            request.place = (0, self._arrivals)
            self._arrivals += 1
            if request.tenant not in self._lines:
                self._open(request.tenant, request.place)
            line = self._lines[request.tenant]
            line.push(request)
        else:
            line = self._returned
            line.push(request)
        self._where[request.request] = line

    def peek(self) -> Request:
        return self._next_line().peek()

    def pop(self) -> Request:
        line = self._next_line()
        request = line.pop()
        del self._where[request.request]
        if line is not self._returned:
            self._charge(request.tenant, self.prompt_price * request.prompt_tokens)
            if not line:
                self._close(request.tenant)
        return request

    def remove(self, request: int) -> Request:
        line = self._where.pop(request, None)
        if line is None:
            raise KeyError(f"request {request} does not wait")
        removed = line.remove(request)
        if line is not self._returned and not line:
            self._close(removed.tenant)
        return removed

    def served(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._charge(request.tenant, self.output_price)

    def check_invariants(self) -> None:
        for line in (self._returned, *self._lines.values()):
            line.check_invariants()
        waiting = {request.request for line in (self._returned, *self._lines.values()) for request in line}
        assert waiting == self._where.keys(), (
            f"requests {waiting ^ self._where.keys()} are in a line or the books alone"
        )
        turns = sorted(tenant for _, place, tenant in self._turns if self._opened.get(tenant) == place)
        assert turns == sorted(self._lines), f"tenants {sorted(self._lines)} wait, those with a turn are {turns}"
        for counter, _, tenant in self._turns:
            assert counter <= self.counters[tenant], f"the turn of tenant {tenant!r} stands too late"

    def _open(self, tenant: str, place: tuple[int, int]) -> None:
        first = self._first_tenant()
        if first is None:
            first = self._last_tenant
        floor = 0.0 if first is None else self.counters[first]
        self.counters[tenant] = max(self.counters.get(tenant, 0.0), floor)
        self._lines[tenant] = _Heap()
        self._opened[tenant] = place
        heapq.heappush(self._turns, (self.counters[tenant], place, tenant))

    def _close(self, tenant: str) -> None:
        del self._lines[tenant], self._opened[tenant]
        self._last_tenant = tenant
        if len(self._turns) - len(self._opened) > max(_DEAD_SLACK, len(self._opened)):
            self._turns = [turn for turn in self._turns if self._opened.get(turn[2]) == turn[1]]
            heapq.heapify(self._turns)

    def _charge(self, tenant: str, price: float) -> None:
        self.counters[tenant] = self.counters.get(tenant, 0.0) + price / self.weights.get(tenant, 1.0)

    def _next_line(self) -> _Heap:
        if self._returned:
            return self._returned
        tenant = self._first_tenant()
        if tenant is None:
            raise IndexError("no request waits")
        return self._lines[tenant]

    def _first_tenant(self) -> str | None:
        """Who was served least of those that wait. A turn charged since moves back; none ever moves forward."""
        while self._turns:
            counter, place, tenant = self._turns[0]
            if self._opened.get(tenant) != place:
                heapq.heappop(self._turns)
            elif counter < self.counters[tenant]:
                heapq.heapreplace(self._turns, (self.counters[tenant], place, tenant))
            else:
                return tenant
        return None
