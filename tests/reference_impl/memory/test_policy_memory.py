"""Every policy behind the scheduler's interface, beside the policy itself: the same answers and the same account."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference_impl.memory.kv_memory import Demand, Grant, KVMemory, SwappingMemory
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.memory.paged_blocks import PagedBlocks
from reference_impl.memory.policies import POLICIES, ReservedRanges, Sizes, reserve_oracle
from reference_impl.memory.policy_memory import PolicyMemory

SIZES = Sizes(48, 32, 4)


class PolicyMemoryMachine(RuleBasedStateMachine):
    """A twin policy is told the same by hand; the model is the slots of each request."""

    @initialize(name=st.sampled_from(sorted(POLICIES)))
    def build(self, name: str) -> None:
        self.memory, self.twin = PolicyMemory(POLICIES[name](SIZES)), POLICIES[name](SIZES)
        self.slots: dict[int, int] = {}
        self.ends: dict[int, int] = {}

    @rule(request=st.integers(0, 5), prompt=st.integers(1, 20), true=st.integers(1, 9), spare=st.integers(0, 30))
    def admit(self, request: int, prompt: int, true: int, spare: int) -> None:
        demand = Demand(request, prompt, true + spare, true)
        if request in self.slots:
            with pytest.raises(ValueError, match=f"request {request} is in memory already"):
                self.memory.admit(demand, 1)
            return
        never = self.memory.never_fits(demand)
        answer = self.memory.admit(demand, 1)
        refusal = self.twin.admit(request, prompt, true + spare, true)
        assert answer == (Grant() if refusal is None else refusal)
        assert (never is not None) == (refusal is not None and refusal.reason.is_final)
        if refusal is None:
            self.slots[request], self.ends[request] = prompt, prompt + true
        elif not self.slots:
            assert never is not None, "an empty memory refuses only what it can never take"

    @precondition(lambda self: self.slots)
    @rule(choice=st.integers(0, 9), more=st.integers(-2, 3))
    def grow(self, choice: int, more: int) -> None:
        request = list(self.slots)[choice % len(self.slots)]
        # The scheduler never asks for the slot of a request's last token.
        target = min(self.slots[request] + more, self.ends[request] - 1)
        answer = self.memory.grow(request, target)
        if target <= self.slots[request]:
            assert answer == Grant()
            return
        same = self.twin.append(request, target - self.slots[request])
        assert answer == (same if isinstance(same, Refusal) else Grant(copies=same))
        if isinstance(answer, Grant):
            self.slots[request] = target

    @rule(request=st.integers(0, 5))
    def free(self, request: int) -> None:
        if request not in self.slots:
            for call in (self.memory.free, lambda request: self.memory.grow(request, 1)):
                with pytest.raises(KeyError, match=f"no request {request}"):
                    call(request)
            return
        self.memory.commit(request, self.slots[request])
        self.twin.commit(request, self.slots[request])
        with pytest.raises(ValueError, match=f"0 to the {self.slots[request]} slots of request {request}"):
            self.memory.commit(request, self.slots[request] + 1)
        self.memory.free(request)
        self.twin.finish(request)
        del self.slots[request]

    @invariant()
    def has_the_account_of_the_policy(self) -> None:
        if hasattr(self, "memory"):
            self.memory.check_invariants()
            assert self.memory.account(5) == self.twin.account(5)


TestPolicyMemory = PolicyMemoryMachine.TestCase
TestPolicyMemory.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_it_is_a_memory_that_cannot_swap(name: str) -> None:
    memory = PolicyMemory(POLICIES[name](SIZES))
    assert isinstance(memory, KVMemory)
    assert not isinstance(memory, SwappingMemory)
    assert memory.capacity == 48


def test_the_whole_prompt_gets_its_slots_however_small_the_first_chunk() -> None:
    memory = PolicyMemory(PagedBlocks(48, 4))
    assert memory.admit(Demand(1, 10, 5), 3) == Grant()
    assert memory.account().held == 10
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        memory.admit(Demand(2, 10, 5), 0)


def test_who_does_not_say_how_much_it_will_make_is_taken_to_make_all_it_may() -> None:
    for true_new, reserved in ((None, 20), (6, 6)):
        memory = PolicyMemory(ReservedRanges(48, reserve_oracle))
        memory.admit(Demand(1, 10, 20, true_new), 10)
        assert memory.account().reserved == reserved


def test_what_could_never_fit_is_known_in_a_full_memory_too() -> None:
    memory = PolicyMemory(PagedBlocks(16, 4))
    memory.admit(Demand(1, 16 - 4, 4), 12)
    assert memory.never_fits(Demand(2, 8, 8)) is None
    assert memory.never_fits(Demand(2, 8, 9)) == Refusal(Reason.NEVER_FITS, 17, 4, 4)


def test_a_policy_that_is_in_use_is_refused() -> None:
    policy = PagedBlocks(16, 4)
    policy.admit(1, 5, 1, 1)
    with pytest.raises(ValueError, match="the policy must be empty, 8 tokens of it are in use"):
        PolicyMemory(policy)


def test_slots_and_tokens_held_must_agree() -> None:
    policy = PagedBlocks(16, 4)
    memory = PolicyMemory(policy)
    memory.admit(Demand(1, 5, 5), 5)
    policy.append(1)
    with pytest.raises(AssertionError, match="I5: the policy holds 6 tokens, 5 were asked for"):
        memory.check_invariants()
