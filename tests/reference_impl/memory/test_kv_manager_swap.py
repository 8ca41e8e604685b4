"""The KV manager and the host: exact copies out and back, what is found on the way, and what is refused."""

from __future__ import annotations

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_policy import Reason
from tests.reference_impl.memory.manager_steps import FIVE, compute, demand, forked, refused, seen


def test_a_request_goes_to_the_host_and_comes_back_with_all_its_blocks() -> None:
    manager = KVManager(4, 2, num_host_blocks=3)
    manager.admit(demand(1, 5, 3), 5)
    manager.commit(1, 5)
    assert manager.swap_out(1) == ((0, 0), (1, 1), (2, 2))
    assert manager.num_free_blocks == 4
    manager.admit(demand(2, 2), 2)
    for call in (lambda: manager.grow(1, 6), lambda: manager.commit(1, 5), lambda: manager.block_table(1)):
        with pytest.raises(ValueError, match="request 1 is swapped out"):
            call()
    manager.free(2)
    copies = manager.swap_in(1)
    assert copies == tuple(zip([0, 1, 2], manager.block_table(1), strict=True))
    assert manager._host.num_free == 3
    manager.check_invariants()


def test_a_full_host_refuses_and_changes_nothing() -> None:
    for host, reason_free in ((0, 0), (2, 4)):
        manager = KVManager(4, 2, num_host_blocks=host)
        manager.admit(demand(1, 5, 3), 5)
        before = seen(manager)
        refused(manager, manager.swap_out(1), Reason.NO_HOST_ROOM, 6, reason_free)
        assert seen(manager) == before


def test_blocks_that_others_hold_are_copied_too() -> None:
    manager = KVManager(6, 2, num_host_blocks=6)
    forked(manager, tokens=4)
    assert manager.swap_out(2) == ((0, 0), (1, 1))
    assert manager.num_free_blocks == 4
    assert manager.swap_in(2) == ((0, 2), (1, 3))
    manager.check_invariants()


def test_coming_back_holds_what_is_still_found_before_it_takes_a_block() -> None:
    # vLLM #44409: with several groups of blocks, one group's allocation evicted what another was about to touch. Here
    # there are two tiers: what the device still holds must not be evicted for what the host brings.
    manager = KVManager(4, 2, prefix_cache="hash", num_host_blocks=4)
    manager.admit(demand(1, FIVE, 2), 5)
    manager.commit(1, 5)
    found = manager.block_table(1)[:2]
    assert len(manager.swap_out(1)) == 3  # type: ignore[arg-type]
    compute(manager, 2, [8, 8, 9])  # The free blocks are all published now: the way back has to evict.
    copies = manager.swap_in(1)
    assert manager.block_table(1)[:2] == found
    assert copies == ((2, manager.block_table(1)[2]),)
    manager.check_invariants()


def test_what_is_found_on_the_way_back_is_not_free_as_well() -> None:
    manager = KVManager(4, 2, prefix_cache="hash", num_host_blocks=4)
    manager.admit(demand(1, FIVE, 2), 5)
    manager.commit(1, 5)
    manager.swap_out(1)
    manager.admit(demand(2, [7, 7, 7, 7]), 4)
    refused(manager, manager.swap_in(1), Reason.NO_ROOM, 2, 0)
    manager.free(2)
    assert len(manager.swap_in(1)) == 1  # type: ignore[arg-type]


def test_only_what_it_had_computed_is_found_on_the_way_back() -> None:
    manager = KVManager(9, 2, prefix_cache="hash", num_host_blocks=4)
    manager.admit(demand(1, FIVE, 2), 5)
    manager.commit(1, 3)
    manager.swap_out(1)
    compute(manager, 2, FIVE)
    assert len(manager.swap_in(1)) == 2  # type: ignore[arg-type]
    manager.check_invariants()


def test_what_was_evicted_meanwhile_is_published_again_by_the_next_step() -> None:
    manager = KVManager(3, 2, prefix_cache="hash", num_host_blocks=3)
    manager.admit(demand(1, FIVE, 2), 5)
    manager.commit(1, 5)
    manager.swap_out(1)
    compute(manager, 2, [7] * 5)
    assert len(manager.swap_in(1)) == 3  # type: ignore[arg-type]
    assert manager.match(demand(3, FIVE)) == 0
    manager.commit(1, 5)
    assert manager.match(demand(3, FIVE)) == 4
    manager.check_invariants()


def test_coming_back_needs_room_for_the_next_token_and_keeps_the_watermark() -> None:
    manager = KVManager(4, 2, num_host_blocks=4, watermark=0.25)
    manager.admit(demand(1, 4, 3), 4)
    manager.swap_out(1)
    manager.admit(demand(2, 2, 3), 2)
    refused(manager, manager.swap_in(1), Reason.WATERMARK, 8, 6)
    manager.grow(2, 4)
    refused(manager, manager.swap_in(1), Reason.NO_ROOM, 6, 4)
    manager.free(2)
    assert manager.swap_in(1) == tuple(zip([0, 1], manager.block_table(1), strict=True))
    manager.check_invariants()


def test_a_request_that_needs_no_more_slots_comes_back_into_exactly_what_it_had() -> None:
    manager = KVManager(2, 2, num_host_blocks=2)
    manager.admit(demand(1, 4, 1), 4)
    manager.commit(1, 4)
    manager.swap_out(1)
    assert manager.swap_in(1) == tuple(zip([0, 1], manager.block_table(1), strict=True))


def test_a_copy_that_is_not_made_yet_keeps_its_request_here() -> None:
    manager = KVManager(8, 4, num_host_blocks=8)
    forked(manager)
    manager.grow(2, 7)
    with pytest.raises(ValueError, match="request 2 waits for the copy of its tail: commit its step before it goes"):
        manager.swap_out(2)
    manager.commit(2, 7)
    assert len(manager.swap_out(2)) == 2  # type: ignore[arg-type]


def test_a_request_ends_on_the_host() -> None:
    manager = KVManager(4, 2, num_host_blocks=4)
    manager.admit(demand(1, 5), 5)
    manager.swap_out(1)
    manager.free(1)
    assert manager._host.num_free == 4
    with pytest.raises(KeyError, match="no request 1"):
        manager.free(1)
