"""The KV manager under any sequence of calls: what a request reads back is what it wrote, and the invariants hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference_impl.memory.eviction import FIFO, LFU, LRU, SLRU, EvictionPolicy
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand
from reference_impl.memory.prefix_cache import HashIndex, chain_hash
from tests.reference_impl.memory.manager_model import Model, Told, demand_of

POLICIES: list[Callable[[], EvictionPolicy]] = [LRU, FIFO, LFU, partial(SLRU, 3)]


def one_bit_index() -> HashIndex:
    return HashIndex(lambda parent, tokens, salt: bytes([chain_hash(parent, tokens, salt)[0] & 1]))


class ManagerMachine(RuleBasedStateMachine):
    """Small pools, small alphabets: hits, forks, evictions and refusals all the time."""

    @initialize(
        num_blocks=st.integers(1, 12),
        block_size=st.integers(1, 4),
        finds=st.sampled_from([True, True, True, False]),
        policy=st.integers(0, 3),
        watermark=st.sampled_from([0.0, 0.0, 0.1, 0.4]),
        full_fit=st.booleans(),
        num_host_blocks=st.integers(0, 8),
    )
    def build(
        self,
        num_blocks: int,
        block_size: int,
        finds: bool,
        policy: int,
        watermark: float,
        full_fit: bool,
        num_host_blocks: int,
    ) -> None:
        kinds = ["hash", one_bit_index, "radix"] if finds else ["none"]
        managers = [
            KVManager(
                num_blocks,
                block_size,
                prefix_cache=kind,  # type: ignore[arg-type]
                eviction=POLICIES[policy],
                watermark=watermark,
                full_fit=full_fit,
                num_host_blocks=num_host_blocks,
            )
            for kind in kinds
        ]
        self.model = Model(managers, finds=finds)
        self.next_request = 0
        self.past: list[tuple[str, list[int]]] = []

    def live(self, choice: int) -> Told:
        return list(self.model.live.values())[choice % len(self.model.live)]

    def new_truth(self, tokens: int, like: int) -> tuple[str, list[int]]:
        """Tokens for a request: most begin as an earlier one did. The length covers whatever it may ever write."""
        dice = random.Random(tokens)
        salt, start = "other" if tokens % 5 == 0 else "", list[int]()
        if self.past and like % 4:
            salt, earlier = self.past[like % len(self.past)]
            start = earlier[: 1 + like % 13]
        truth = start + [dice.randrange(2) for _ in range(80)]
        self.past.append((salt, truth))
        return salt, truth

    @rule(
        tokens=st.integers(0, 9_999),
        like=st.integers(0, 999),
        prompt=st.integers(1, 14),
        max_new=st.integers(1, 6),
        chunk=st.integers(1, 14),
        told_ids=st.sampled_from([True, True, True, False]),
        compute=st.booleans(),
    )
    def admit(
        self, tokens: int, like: int, prompt: int, max_new: int, chunk: int, told_ids: bool, compute: bool
    ) -> None:
        salt, truth = self.new_truth(tokens, like)
        if not told_ids:
            truth = [1_000 + self.next_request, *truth]
        told = demand_of(self.next_request, truth, prompt, max_new, told_ids=told_ids, salt=salt)
        self.next_request += 1
        if self.model.admit(told, chunk) and compute:
            self.model.commit(told, told.slots)

    @precondition(lambda self: self.model.live)
    @rule(
        choice=st.integers(0, 99), more=st.integers(-2, 6), lag=st.sampled_from([0, 0, 0, 1, 3]), compute=st.booleans()
    )
    def step(self, choice: int, more: int, lag: int, compute: bool) -> None:
        told = self.live(choice)
        target = max(1, min(told.slots + more, 60))
        self.tell(told, target - lag)
        if self.model.grow(told, target) and compute:
            self.model.commit(told, told.slots)

    def tell(self, told: Told, known: int) -> None:
        ids = told.demand.token_ids
        if ids is not None and known > len(ids):
            ids.extend(told.truth[len(ids) : known])

    @precondition(lambda self: self.model.live)
    @rule(choice=st.integers(0, 99), share=st.integers(0, 4))
    def commit_some(self, choice: int, share: int) -> None:
        told = self.live(choice)
        self.model.commit(told, told.slots * share // 4)

    @precondition(lambda self: self.model.live)
    @rule(choice=st.integers(0, 99), drafted=st.integers(1, 5), accepted=st.integers(0, 5))
    def speculate(self, choice: int, drafted: int, accepted: int) -> None:
        """Draft tokens are written; those that are rejected are taken back before anything is committed."""
        told = self.live(choice)
        base = told.slots
        if base + drafted > 60 or not self.model.grow(told, base + drafted, wrong=True):
            return
        accepted = min(accepted, drafted)
        self.model.truncate(told, base + accepted)
        self.model.write(told, base, base + accepted)
        self.tell(told, base + accepted)
        self.model.commit(told, base + accepted)

    @precondition(lambda self: self.model.live)
    @rule(choice=st.integers(0, 99), more=st.integers(0, 2), max_new=st.integers(1, 5), tokens=st.integers(0, 9_999))
    def fork(self, choice: int, more: int, max_new: int, tokens: int) -> None:
        parent = self.live(choice)
        if parent.slots == 0:
            return
        dice = random.Random(tokens)
        truth = parent.truth[: parent.slots] + [dice.randrange(2) for _ in range(80)]
        told_ids = parent.demand.token_ids is not None
        child = demand_of(
            self.next_request, truth, parent.slots + more, max_new, told_ids=told_ids, salt=parent.demand.salt
        )
        self.next_request += 1
        self.tell(parent, parent.slots)
        if parent.committed != parent.slots:
            self.model.refuses(ValueError, "before it is forked", "fork", parent.request, child.demand)
            return
        self.model.fork(parent, child)

    @precondition(lambda self: self.model.live)
    @rule(choice=st.integers(0, 99), share=st.integers(0, 3))
    def truncate(self, choice: int, share: int) -> None:
        told = self.live(choice)
        self.model.truncate(told, told.committed + (told.slots - told.committed) * share // 3)

    @precondition(lambda self: self.model.live)
    @rule(choice=st.integers(0, 99))
    def swap_out(self, choice: int) -> None:
        self.model.swap_out(self.live(choice))

    @precondition(lambda self: self.model.swapped)
    @rule(choice=st.integers(0, 99))
    def swap_in(self, choice: int) -> None:
        self.model.swap_in(list(self.model.swapped.values())[choice % len(self.model.swapped)])

    @precondition(lambda self: self.model.live or self.model.swapped)
    @rule(choice=st.integers(0, 99))
    def free(self, choice: int) -> None:
        requests = [*self.model.live, *self.model.swapped]
        self.model.free_request(requests[choice % len(requests)])

    @precondition(lambda self: self.model.live)
    @rule(choice=st.integers(0, 99))
    def wrong_calls(self, choice: int) -> None:
        told, model = self.live(choice), self.model
        model.refuses(ValueError, "in memory already", "admit", told.demand, 1)
        model.refuses(ValueError, "is not swapped out", "swap_in", told.request)
        model.refuses(ValueError, "slots of", "commit", told.request, told.slots + 1)
        model.refuses(ValueError, "slots", "truncate", told.request, told.slots + 1)
        if told.committed:
            model.refuses(ValueError, "computed", "truncate", told.request, told.committed - 1)
        for name, *rest in (("grow", 1), ("commit", 0), ("free",), ("truncate", 0), ("swap_out",), ("swap_in",)):
            model.refuses(KeyError, f"no request {self.next_request}", name, self.next_request, *rest)
        model.refuses(KeyError, "no request", "fork", self.next_request, Demand(self.next_request + 1, 1, 1))
        for request in list(model.swapped)[:1]:
            model.refuses(ValueError, f"request {request} is swapped out", "grow", request, 1)
            model.refuses(ValueError, f"request {request} is swapped out", "swap_out", request)
            model.refuses(ValueError, "in memory already", "admit", Demand(request, 1, 1), 1)

    @invariant()
    def everything_reads_back(self) -> None:
        if hasattr(self, "model"):
            self.model.check()


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
