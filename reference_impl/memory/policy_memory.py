"""Any way of `policies.py` as the KV memory of a scheduler.

Owns: how many slots each request has, and the translation of a scheduler's calls into a policy's. Knows nothing of how
the policy keeps its memory; through `PagedBlocks` that may be any allocator of lab 3, a student's too.
A policy knows no partial prompt: `admit` takes slots for all tokens known, whatever part of them is computed first. It
finds no KV again and moves nothing to the host. Blocks can be forked; a range refuses that, and its fork waits instead.
A policy is told how many tokens a request will make. Where `Demand.true_new_tokens` is None, as on a real server, it is
told the most that the request may make: the oracle is one no longer, and `Account` counts slots as reserved that a
simulator would know to be wasted.
A policy counts a slot for every token, the last one too, although that one is returned and never computed. So a request
alone needs one slot more here than in `kv_manager.py`.
"""

from __future__ import annotations

from operator import index

from reference_impl.memory.accounting import Account
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import KVPolicy, Refusal

_NOTHING_NEW = Grant()


class PolicyMemory:
    """`PlacedMemory` and `ForkingMemory` by a policy, which must be empty and called by nobody else.

    A range is placed as blocks of one token each.
    """

    def __init__(self, policy: KVPolicy) -> None:
        """Raises: ValueError if something is in the policy's memory."""
        account = policy.account()
        if account.free + account.external != policy.capacity:
            raise ValueError(f"the policy must be empty, {policy.capacity - account.free} tokens of it are in use")
        self.policy = policy
        self.capacity = policy.capacity
        self.block_size = policy.block_size
        self.num_blocks = policy.capacity // policy.block_size
        self._slots: dict[int, int] = {}
        self._family: set[int] = set()
        """Requests in memory that were forked, or from which one was: what they share is held once."""

    def never_fits(self, demand: Demand) -> Refusal | None:
        return self.policy.never_fits(demand.num_tokens, demand.max_new_tokens, _true_new_tokens(demand))

    def admit(self, demand: Demand, num_tokens: int) -> Grant | Refusal:
        request = index(demand.request)
        if request in self._slots:
            raise ValueError(f"request {request} is in memory already")
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
        refusal = self.policy.admit(request, demand.num_tokens, demand.max_new_tokens, _true_new_tokens(demand))
        if refusal is not None:
            return refusal
        self._slots[request] = demand.num_tokens
        return _NOTHING_NEW

    def grow(self, request: int, num_tokens: int) -> Grant | Refusal:
        more = num_tokens - self._known(request)
        if more <= 0:
            return _NOTHING_NEW
        answer = self.policy.append(request, more)
        if isinstance(answer, Refusal):
            return answer
        self._slots[request] = num_tokens
        return Grant(copies=answer) if answer else _NOTHING_NEW

    def commit(self, request: int, num_tokens: int) -> None:
        self.policy.commit(request, num_tokens)

    def free(self, request: int) -> None:
        self._known(request)
        self.policy.finish(request)
        del self._slots[request]
        self._family.discard(request)

    def fork(self, parent: int, demand: Demand) -> Refusal | None:
        true_new_tokens = _true_new_tokens(demand)
        refusal = self.policy.fork(parent, demand.request, demand.num_tokens, demand.max_new_tokens, true_new_tokens)
        if refusal is None:
            self._slots[demand.request] = self._slots[parent]
            self._family |= {parent, demand.request}
        return refusal

    def block_table(self, request: int) -> list[int]:
        return self.policy.block_table(request)

    def account(self, wanted: int = 1) -> Account:
        return self.policy.account(wanted)

    def _known(self, request: int) -> int:
        slots = self._slots.get(request)
        if slots is None:
            raise KeyError(f"no request {request}")
        return slots

    def check_invariants(self) -> None:
        """Every slot in one column, and as many tokens held as slots were asked for. Cost: that of the account."""
        account = self.policy.account()
        assert account.capacity == self.capacity, f"I1: {account.capacity} slots accounted for, of {self.capacity}"
        asked = sum(self._slots.values())
        once = account.held < asked and self._family
        assert once or account.held == asked, f"I5: the policy holds {account.held} tokens, {asked} were asked for"


def _true_new_tokens(demand: Demand) -> int:
    return demand.max_new_tokens if demand.true_new_tokens is None else demand.true_new_tokens
