"""Every policy under any sequence of requests: the account adds up, refusals say the truth and change nothing."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference_impl.memory.accounting import Account, split_free
from reference_impl.memory.kv_policy import KVPolicy, Reason, Refusal
from reference_impl.memory.paged_blocks import PagedBlocks
from reference_impl.memory.policies import (
    POLICIES,
    GrowingRanges,
    PaddedBatch,
    ReservedRanges,
    Sizes,
    reserve_max,
    reserve_oracle,
    reserve_power_of_two,
)


class PolicyMachine(RuleBasedStateMachine):
    """The model of a request is [held, final, limit]; what the policy gives it is seen through the account alone."""

    ids = st.integers(0, 5)

    @initialize(
        name=st.sampled_from(sorted(POLICIES)),
        blocks=st.integers(1, 16),
        block_size=st.integers(1, 5),
        max_length=st.integers(2, 24),
        placement=st.sampled_from(["first", "best", "buddy"]),
    )
    def build(self, name: str, blocks: int, block_size: int, max_length: int, placement: str) -> None:
        self.name = name
        self.sizes = Sizes(blocks * block_size, max_length, block_size, placement)  # type: ignore[arg-type]
        self.policy = POLICIES[name](self.sizes)
        self.live: dict[int, list[int]] = {}

    def check_refusal(self, refusal: Refusal, before: Account) -> None:
        assert self.policy.account() == before
        assert refusal.free == before.free
        assert 0 <= refusal.largest <= refusal.free
        if refusal.reason is Reason.NO_RANGE:
            assert refusal.largest < refusal.needed <= refusal.free
            assert self.name not in ("paged", "padded")
        elif refusal.reason is Reason.NO_ROOM:
            assert refusal.needed > refusal.free
        elif refusal.reason is Reason.BATCH_RUNS:
            assert self.name == "padded"

    @rule(request=ids, prompt=st.integers(1, 15), true_new=st.integers(1, 9), spare=st.integers(0, 9))
    def admit(self, request: int, prompt: int, true_new: int, spare: int) -> None:
        before = self.policy.account()
        if request in self.live:
            with pytest.raises(ValueError, match=f"request {request} is in memory already"):
                self.policy.admit(request, prompt, true_new + spare, true_new)
            assert self.policy.account() == before
            return
        refusal = self.policy.admit(request, prompt, true_new + spare, true_new)
        if refusal is None:
            self.live[request] = [prompt, prompt + true_new, prompt + true_new + spare]
            return
        self.check_refusal(refusal, before)
        if not self.live:
            # An empty memory refuses only what it can never take: whoever waits for room can rely on getting it.
            assert refusal.reason.is_final

    @precondition(lambda self: any(held < final for held, final, _ in self.live.values()))
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        growing = sorted(request for request, (held, final, _) in self.live.items() if held < final)
        request = data.draw(st.sampled_from(growing))
        held, final, _ = self.live[request]
        num_tokens = data.draw(st.integers(1, final - held))
        before = self.policy.account()
        answer = self.policy.append(request, num_tokens)
        if isinstance(answer, Refusal):
            assert self.name in ("grow", "paged")
            self.check_refusal(answer, before)
        else:
            assert not answer or self.name == "grow"
            self.live[request][0] += num_tokens

    @rule(request=ids)
    def finish(self, request: int) -> None:
        if request not in self.live:
            for call in (lambda: self.policy.finish(request), lambda: self.policy.append(request)):
                with pytest.raises(KeyError, match=f"no request {request}"):
                    call()
            return
        self.policy.finish(request)
        del self.live[request]

    @rule(request=ids, extra=st.integers(1, 3))
    def append_too_much(self, request: int, extra: int) -> None:
        if request in self.live:
            held, final, _ = self.live[request]
            before = self.policy.account()
            with pytest.raises(ValueError, match=f"{final} were announced"):
                self.policy.append(request, final - held + extra)
            assert self.policy.account() == before

    @invariant()
    def every_slot_is_in_one_column(self) -> None:
        account = self.policy.account()
        assert account.capacity == self.sizes.capacity
        assert min(astuple(account)) >= 0
        assert account.held == sum(held for held, _, _ in self.live.values())
        assert account.external == 0
        for wanted in (2, 5, 100):
            split = self.policy.account(wanted)
            assert split.external + split.free == account.free
            assert (split.held, split.reserved, split.internal) == (account.held, account.reserved, account.internal)

    @invariant()
    def the_columns_are_what_the_policy_promises(self) -> None:
        account = self.policy.account()
        to_come = sum(final - held for held, final, _ in self.live.values())
        if self.name == "paged":
            assert account.reserved == account.internal == self.policy.account(100).external == 0
            assert account.tail == sum(-held % self.sizes.block_size for held, _, _ in self.live.values())
        else:
            assert account.tail == 0
        if self.name in ("padded", "reserve_max", "pow2", "oracle"):
            assert account.reserved == to_come
        if self.name == "reserve_max" and self.sizes.placement != "buddy":
            final = sum(final for _, final, _ in self.live.values())
            assert account.internal == len(self.live) * self.sizes.max_length - final
        if self.name == "oracle" and self.sizes.placement != "buddy":
            assert account.internal == 0
        if self.name in ("oracle", "pow2"):
            # The one rounds the range up, the other the output: each by less than a factor of two.
            final = sum(final for _, final, _ in self.live.values())
            factor = 4 if (self.name, self.sizes.placement) == ("pow2", "buddy") else 2
            assert account.held + account.reserved + account.internal <= factor * final

    @invariant()
    def an_empty_memory_is_all_free(self) -> None:
        if not self.live:
            assert self.policy.account() == Account(free=self.sizes.capacity)


TestPolicies = PolicyMachine.TestCase
TestPolicies.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_each_has_the_shape_of_the_contract_and_names_a_bad_argument(name: str) -> None:
    policy = POLICIES[name](Sizes(32, 16))
    assert isinstance(policy, KVPolicy)
    for arguments, words in {
        (1, 0, 3, 3): "prompt_tokens must be at least 1, got 0",
        (1, 3, 0, 3): "max_new_tokens must be at least 1, got 0",
        (1, 3, 3, 0): "true_new_tokens must be at least 1, got 0",
        (1, 3, 3, 4): "true_new_tokens is 4, more than max_new_tokens, 3",
    }.items():
        with pytest.raises(ValueError, match=words):
            policy.admit(*arguments)
    with pytest.raises(ValueError, match="wanted must be at least 1, got 0"):
        policy.account(0)
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        POLICIES[name](Sizes(0, 16))
    assert policy.account() == Account(free=32)


def test_the_same_request_is_given_less_the_more_is_known_about_it() -> None:
    def given(policy: KVPolicy) -> int:
        assert policy.admit(1, prompt_tokens=100, max_new_tokens=400, true_new_tokens=70) is None
        return policy.capacity - policy.account().free

    capacity = 2048
    taken = [
        given(ReservedRanges(capacity, reserve_max(1024))),
        given(ReservedRanges(capacity, reserve_power_of_two)),
        given(ReservedRanges(capacity, reserve_oracle)),
        given(PagedBlocks(capacity, 16)),
        given(GrowingRanges(capacity)),
    ]
    assert taken == [1024, 100 + 128, 100 + 70, 112, 100]


def test_a_power_of_two_never_reserves_beyond_what_the_request_may_make() -> None:
    policy = ReservedRanges(2048, reserve_power_of_two)
    assert policy.admit(1, prompt_tokens=10, max_new_tokens=70, true_new_tokens=65) is None
    assert policy.account() == Account(held=10, reserved=65, internal=5, free=2048 - 80)


def test_a_power_of_two_is_cut_to_the_longest_range_there_is() -> None:
    policy = ReservedRanges(20, reserve_power_of_two, "buddy")
    assert policy.admit(1, prompt_tokens=9, max_new_tokens=9, true_new_tokens=7) is None
    assert policy.account() == Account(held=9, reserved=7, free=4)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(prompt=st.integers(1, 20), true_new=st.integers(2, 20), spare=st.integers(0, 9))
def test_what_could_be_served_can_be_served_again_however_far_it_is(
    name: str, prompt: int, true_new: int, spare: int
) -> None:
    policy = POLICIES[name](Sizes(36, 32, 4))
    if policy.never_fits(prompt, true_new + spare, true_new) is None:
        for made in range(1, true_new):
            assert policy.never_fits(prompt + made, true_new + spare - made, true_new - made) is None


def test_a_request_above_the_longest_sequence_is_refused_for_good() -> None:
    refusal = ReservedRanges(100, reserve_max(20)).admit(1, 15, 10, 6)
    assert refusal is not None
    assert str(refusal) == "more than is ever kept for one request: 21 needed, 100 free, 100 in the largest hole"


def test_a_refusal_tells_too_little_memory_from_no_hole() -> None:
    policy = ReservedRanges(10, reserve_oracle)
    for request, size in enumerate([4, 2, 4]):
        assert policy.admit(request, size - 1, 1, 1) is None
    policy.finish(0)
    assert policy.admit(9, 4, 1, 1) == Refusal(Reason.NO_ROOM, needed=5, free=4, largest=4)
    policy.finish(2)
    assert policy.admit(9, 4, 1, 1) == Refusal(Reason.NO_RANGE, needed=5, free=8, largest=4)
    assert policy.account(wanted=5) == Account(held=1, reserved=1, external=8)


def test_buddies_never_take_what_is_longer_than_their_largest_root() -> None:
    policy = ReservedRanges(24, reserve_oracle, "buddy")
    refusal = policy.admit(1, 16, 1, 1)
    assert refusal is not None
    assert refusal.reason is Reason.NEVER_FITS
    assert policy.admit(1, 15, 1, 1) is None


def test_a_growing_range_moves_with_all_its_tokens_when_somebody_stands_behind_it() -> None:
    policy = GrowingRanges(32, bytes_per_token=10)
    assert policy.admit(1, 4, 10, 10) is None
    assert policy.admit(2, 2, 2, 2) is None
    policy.commit(1, 4)
    assert policy.append(1) == ((0, 6), (1, 7), (2, 8), (3, 9))
    assert policy.block_table(1) == [6, 7, 8, 9, 10]
    assert (policy.copied_tokens, policy.copied_bytes) == (4, 40)
    assert policy.account() == Account(held=5 + 2, reserved=3, free=32 - 8 - 2)
    # Nobody behind it now: it grows in place, and not to the double of 8 but to its limit.
    assert policy.append(1, 9) == ()
    assert policy.copied_tokens == 4
    assert policy.account() == Account(held=14 + 2, free=32 - 14 - 2)


def test_a_growing_range_without_room_to_double_takes_what_it_needs() -> None:
    policy = GrowingRanges(10)
    assert policy.admit(1, 6, 4, 4) is None
    assert policy.admit(2, 1, 1, 1) is None
    policy.finish(1)
    assert policy.admit(3, 3, 7, 7) is None
    assert policy.append(3, 1) == ()
    assert policy.account() == Account(held=5, reserved=2, free=3)
    assert policy.append(3, 5) == Refusal(Reason.NO_ROOM, needed=9, free=3, largest=3)


def test_nobody_joins_a_padded_batch_that_runs_and_no_row_leaves_before_the_last() -> None:
    policy = PaddedBatch(40)
    assert policy.admit(1, 2, 4, 1) is None
    assert policy.admit(2, 5, 3, 3) is None
    # Two rows of 5 + 4 slots: pads, steps that the second row may not take, and steps nobody will take.
    assert policy.account() == Account(held=7, reserved=4, internal=18 - 11, free=22)
    policy.commit(1, 2)
    refusal = policy.admit(3, 1, 1, 1)
    assert refusal is not None
    assert refusal.reason is Reason.BATCH_RUNS
    policy.finish(1)
    assert policy.account() == Account(held=5, reserved=3, internal=18 - 8, free=22)
    policy.finish(2)
    assert policy.admit(3, 1, 1, 1) is None


def test_paging_refuses_a_capacity_that_is_not_whole_blocks() -> None:
    with pytest.raises(ValueError, match="capacity 33 is no multiple of block_size 16"):
        PagedBlocks(33, 16)


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 40))
def test_free_memory_is_external_where_its_hole_is_too_short(sizes: list[int], wanted: int) -> None:
    external, free = split_free([(0, size) for size in sizes], wanted)
    assert external == sum(size for size in sizes if size < wanted)
    assert external + free == sum(sizes)


def test_accounts_add_up_over_time() -> None:
    total = Account(1, 2, 3, 4, 5, 6) + Account(free=21)
    assert total == Account(1, 2, 3, 4, 5, 27)
    assert total.shares()["held"] == 1 / 42
    assert sum(total.shares().values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="an account of no slots"):
        Account().shares()
