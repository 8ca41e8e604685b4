"""What every way to keep KV promises, as one program of calls with a model beside it.

Owns: the program (random, by a seed) and the model: what each request holds, as plain numbers. Knows nothing of the
policy but `KVPolicy`, and of the allocator inside `PagedBlocks` the contract of lab 3. So one suite serves paging, the
ways before it, and anybody's allocator behind them.
Two memories are driven in turns: what is kept in a class or a module shows in the other one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import astuple

from reference_impl.memory.kv_policy import BlockCopies, KVPolicy, Refusal
from reference_impl.memory.paged_blocks import PagedBlocks

MakePolicy = Callable[[], KVPolicy]
CALLS = 250


class _Model:
    """One policy and what its requests should hold: request -> [held, final, limit]."""

    def __init__(self, policy: KVPolicy, dice: random.Random) -> None:
        self.policy = policy
        self.dice = dice
        self.live: dict[int, list[int]] = {}
        self.ended: set[int] = set()

    def step(self) -> None:
        {"admit": self._admit, "append": self._append, "finish": self._finish}[
            self.dice.choices(("admit", "append", "finish"), (3, 5, 2))[0]
        ]()
        self._check()

    def _admit(self) -> None:
        # Few ids, so that they come back, and one beyond any list.
        request = self.dice.choice([*range(9), 70_000])
        prompt, true_new, spare = self.dice.randint(1, 12), self.dice.randint(1, 9), self.dice.randint(0, 3)
        if request in self.live:
            _raises(ValueError, lambda: self.policy.admit(request, prompt, true_new, true_new))
            return
        never = self.policy.never_fits(prompt, true_new + spare, true_new)
        if self._accepted(lambda: self.policy.admit(request, prompt, true_new + spare, true_new)):
            assert never is None, f"request {request} was admitted, though never to fit: {never}"
            self.live[request] = [prompt, prompt + true_new, prompt + true_new + spare]
        elif not self.live:
            assert never is not None, f"an empty memory refused request {request}, which was to fit"

    def _append(self) -> None:
        growing = [request for request, (held, final, _) in sorted(self.live.items()) if held < final]
        if not growing:
            return
        request = self.dice.choice(growing)
        held, final, _ = self.live[request]
        # One token at a time, as an engine does, and now and then all that is left.
        num_tokens = self.dice.choice((1, 1, 1, final - held))
        if self._accepted(lambda: self.policy.append(request, num_tokens)):
            self.live[request][0] += num_tokens

    def _finish(self) -> None:
        gone = sorted(self.ended - self.live.keys())
        if gone:
            _raises(KeyError, lambda: self.policy.finish(gone[0]))
            _raises(KeyError, lambda: self.policy.append(gone[0]))
        if self.live:
            request = self.dice.choice(sorted(self.live))
            self.policy.finish(request)
            del self.live[request]
            self.ended.add(request)

    def _accepted(self, call: Callable[[], BlockCopies | Refusal | None]) -> bool:
        """Whether the call did what it was asked for. A refusal tells the truth and changes nothing."""
        before = (self.policy.account(), _tables(self.policy, self.live))
        refusal = call()
        if not isinstance(refusal, Refusal):
            assert self._is_paged is False or not refusal, f"copies, and nothing is shared: {refusal}"
            return True
        assert (self.policy.account(), _tables(self.policy, self.live)) == before, (
            f"a refusal changed something: {refusal}"
        )
        assert refusal.free == before[0].free, f"{refusal}: {before[0].free} slots are free"
        assert refusal.reason.is_final or refusal.needed > refusal.largest or not self._is_paged, (
            f"refused with room: {refusal}"
        )
        return False

    @property
    def _is_paged(self) -> bool:
        return isinstance(self.policy, PagedBlocks)

    def _check(self) -> None:
        account = self.policy.account()
        held = sum(held for held, _, _ in self.live.values())
        assert account.held == held, f"{account.held} tokens held, {held} were kept"
        assert account.capacity == self.policy.capacity, f"the columns make {account.capacity} slots"
        assert min(astuple(account)) >= 0, f"a column is below 0: {account}"
        if isinstance(self.policy, PagedBlocks):
            _check_slots(self.policy, self.live)


def _raises(error: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"a call that must raise {error.__name__} did not")


def _tables(policy: KVPolicy, live: dict[int, list[int]]) -> list[list[int]]:
    return [list(policy.blocks.block_table(request)) for request in live] if isinstance(policy, PagedBlocks) else []


def _check_slots(policy: PagedBlocks, live: dict[int, list[int]]) -> None:
    """Every token of every request has a slot of its own, where its table says."""
    seen: set[int] = set()
    for request, (held, _, _) in live.items():
        table, size = list(policy.blocks.block_table(request)), policy.block_size
        assert len(table) == -(-held // size), f"request {request} holds {len(table)} blocks for {held} tokens"
        assert policy.blocks.num_tokens(request) == held, f"request {request} counts other tokens than it has"
        slots = list(policy.blocks.slot_mapping(request, 0, held))
        assert slots == [table[token // size] * size + token % size for token in range(held)], (
            f"the slots of request {request} are not where its table leads"
        )
        # The end alone too: an engine asks for the slots of the tokens that it writes next.
        assert list(policy.blocks.slot_mapping(request, held - 1, held)) == slots[-1:], "one token, another slot"
        assert list(policy.blocks.slot_mapping(request, held, held)) == [], "no token has no slot"
        for start, stop in ((held, held + 1), (-1, held)):
            _raises(ValueError, lambda: policy.blocks.slot_mapping(request, start, stop))  # noqa: B023 - called at once
        # The table is the caller's own copy, so this must not be seen again.
        policy.blocks.block_table(request).append(-1)
        assert all(0 <= slot < policy.capacity for slot in slots), f"request {request} lies outside of the memory"
        assert not seen & set(slots), f"request {request} writes where another one does"
        seen.update(slots)


def drive(make: MakePolicy, seed: int) -> None:
    """Random calls on two memories in turns, then all requests end and all memory is there again.

    Raises: AssertionError, or whatever the policy raises. Cost: O(CALLS * capacity).
    """
    dice = random.Random(seed)
    models = [_Model(make(), dice), _Model(make(), dice)]
    for _ in range(CALLS):
        dice.choice(models).step()
    for model in models:
        for request in list(model.live):
            model.policy.finish(request)
        account = model.policy.account()
        assert account.free == model.policy.capacity, f"all requests ended, and {account.free} slots are free"
