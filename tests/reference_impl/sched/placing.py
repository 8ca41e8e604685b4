"""A driver with a runner in it: marks in the place of keys and values, moved as the plans say and looked for later.

Owns: one cell for every slot of the memory, and the blocks on the host. Knows nothing of how a memory chooses its
slots: it reads `Plan` and `PlacedMemory.block_table`, as a runner does, and nothing else.
The mark of a token is all that its KV depends on: the salt and every token up to it, or where there are no ids, whose
token it is. So a slot that was given to two, a copy that came too late and a prefix that is another's are all the same
failure: a computed token is not in its slot.
"""

from __future__ import annotations

from reference_impl.memory.kv_memory import PlacedMemory
from reference_impl.sched import EngineScheduler, Plan, Request, State
from tests.reference_impl.sched.driving import Driver


class PlacedDriver(Driver):
    """`Driver`, and before every step each computed token of each request that runs is found in its slot."""

    def __init__(self, scheduler: EngineScheduler) -> None:
        super().__init__(scheduler)
        assert isinstance(scheduler.memory, PlacedMemory)
        self.memory: PlacedMemory = scheduler.memory
        assert self.memory.num_blocks * self.memory.block_size == self.memory.capacity
        self.cells: list[object] = [None] * self.memory.capacity
        self.host: dict[int, list[object]] = {}
        self.everyone: dict[int, Request] = {}
        self.is_computed = True

    def _know(self, request: Request, makes: int, made: int) -> None:
        super()._know(request, makes, made)
        self.everyone[request.request] = request

    def schedule(self) -> Plan:
        plan = super().schedule()
        self.is_computed = self.plan is None
        return plan

    def finish(self) -> set[int]:
        if not self.is_computed:
            self.compute()
        return super().finish()

    def compute(self) -> None:
        """Run the plan as `Plan` says: out, in, copies, and only then the tokens."""
        plan, size = self.plan, self.memory.block_size
        assert plan is not None
        self.is_computed = True
        for pairs in plan.swapped_out.values():
            for src, dst in pairs:
                self.host[dst] = self.cells[src * size : (src + 1) * size]
        for pairs in plan.swapped_in.values():
            for src, dst in pairs:
                self.cells[dst * size : (dst + 1) * size] = self.host[src]
        written = [dst for _, dst in plan.copies]
        held = {block for identity in plan.scheduled for block in self.memory.block_table(identity)}
        assert len(set(written)) == len(written), f"two copies go to one block: {plan.copies}"
        assert held.issuperset(written), f"copies for somebody who is not in the step: {plan.copies}"
        read = [self.cells[src * size : (src + 1) * size] for src, _ in plan.copies]
        for (_, dst), block in zip(plan.copies, read, strict=True):
            self.cells[dst * size : (dst + 1) * size] = block
        self._look(plan, {})
        for identity, tokens in plan.scheduled.items():
            slots = self._slots(identity)
            for token in range(plan.computed[identity], plan.computed[identity] + tokens):
                self.cells[slots[token]] = self.mark(identity, token)
        self._look(plan, plan.scheduled)

    def mark(self, identity: int, token: int) -> object:
        """What stands for the KV of a token."""
        request = self.everyone[identity]
        if request.token_ids is not None:
            return request.salt, request.token_ids[: token + 1].tobytes()
        return (self.origin.get(identity, identity) if token < request.prompt_tokens else identity), token

    def _look(self, plan: Plan, written: dict[int, int]) -> None:
        """Every computed token of all that run, those too that were aborted in this step, and what was `written`."""
        running = {
            identity: self.everyone[identity].num_computed
            for identity in self.requests
            if self.everyone[identity].state is State.RUNNING
        }
        for identity, computed in (running | dict(plan.computed)).items():
            tokens = computed + written.get(identity, 0)
            slots = self._slots(identity) if tokens else []
            for token in range(tokens):
                found = self.cells[slots[token]]
                assert found == self.mark(identity, token), (
                    f"token {token} of request {identity} is not in slot {slots[token]}: {found} stands there"
                )

    def _slots(self, identity: int) -> list[int]:
        size, table = self.memory.block_size, self.memory.block_table(identity)
        assert all(0 <= block < self.memory.num_blocks for block in table), table
        return [block * size + offset for block in table for offset in range(size)]
