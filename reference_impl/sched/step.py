"""A step while it is being made and while it is under way.

Owns: what is scheduled so far, and what of the budget is left. Knows nothing of why: a scheduler fills it in. A request
that is preempted leaves the step with all that was planned for it and gives its tokens back to the budget, so a plan
never names a request that does not run.
"""

from __future__ import annotations

from reference_impl.memory.kv_memory import BlockCopies
from reference_impl.memory.kv_policy import Refusal
from reference_impl.sched.plan import Plan, Rectangle
from reference_impl.sched.request import Request


class Step:
    """`decodes`: requests whose one token left is scheduled. `prefills`: the other requests that are scheduled."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.scheduled: dict[int, int] = {}
        self.computed: dict[int, int] = {}
        self.decodes: list[Request] = []
        self.prefills: list[Request] = []
        self.due: set[int] = set()
        """Requests that make their last token in this step."""
        self.preempted_any = False
        """Whether some request lost its memory, for good or to the host."""
        self.preempted: list[int] = []
        self.admitted: list[int] = []
        self.reused: dict[int, int] = {}
        self.swapped_out: dict[int, BlockCopies] = {}
        self.swapped_in: dict[int, BlockCopies] = {}
        self.copies: dict[int, BlockCopies] = {}
        """Request -> blocks that it needs copied, so that they leave with it."""
        self.refused: Refusal | None = None
        self.rectangle: Rectangle | None = None
        self.aborted: set[int] = set()
        """Requests that were aborted or retired while the step was under way; they end with it, and make nothing."""
        self.retired: set[int] = set()
        """Those of them whose answers are complete."""

    def __contains__(self, request: int) -> bool:
        return request in self.scheduled or request in self.swapped_in or request in self.swapped_out

    def schedule(self, request: Request, num_tokens: int) -> None:
        """The next `num_tokens` of `request`, which has the slots for them. Cost: O(1)."""
        identity = request.request
        request.num_scheduled = num_tokens
        self.scheduled[identity] = num_tokens
        self.computed[identity] = request.num_computed
        self.budget -= num_tokens
        left = request.num_tokens - request.num_computed
        if left == num_tokens and request.num_tokens == request.final_tokens:
            self.due.add(identity)
        (self.decodes if left == 1 else self.prefills).append(request)

    def leave(self, request: Request) -> None:
        """Whatever was planned for `request` is not done. Cost: O(requests in the step)."""
        identity = request.request
        self.swapped_in.pop(identity, None)
        self.swapped_out.pop(identity, None)
        self.copies.pop(identity, None)
        if identity not in self.scheduled:
            return
        del self.scheduled[identity], self.computed[identity]
        self.budget += request.num_scheduled
        request.num_scheduled = 0
        self.due.discard(identity)
        for line in (self.decodes, self.prefills):
            if request in line:
                line.remove(request)

    def drop_aborted(self) -> None:
        """The aborted requests make nothing of this step."""
        for request in [*self.decodes, *self.prefills]:
            if request.request in self.aborted:
                request.num_scheduled = 0
        self.decodes = [request for request in self.decodes if request.request not in self.aborted]
        self.prefills = [request for request in self.prefills if request.request not in self.aborted]

    def plan(self) -> Plan:
        """The step as plain data. Its mappings are the step's own: read them, never write."""
        copies = tuple(pair for pairs in self.copies.values() for pair in pairs) if self.copies else ()
        return Plan(
            scheduled=self.scheduled,
            preempted=tuple(self.preempted),
            admitted=tuple(self.admitted),
            computed=self.computed,
            reused=self.reused,
            swapped_out=self.swapped_out,
            swapped_in=self.swapped_in,
            copies=copies,
            refused=self.refused,
            rectangle=self.rectangle,
        )
