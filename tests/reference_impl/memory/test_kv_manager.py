"""The KV manager, case by case: admission, growth and what is found; nothing is changed by what is refused."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from reference_impl.memory.accounting import Account
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, Grant, KVMemory, SwappingMemory
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.memory.radix_cache import RadixIndex
from tests.reference_impl.memory.manager_steps import FIVE, compute, demand, refused, seen


def test_it_is_what_a_scheduler_asks_for() -> None:
    manager = KVManager(2, 4)
    assert isinstance(manager, KVMemory)
    assert isinstance(manager, SwappingMemory)
    assert (manager.capacity, manager.num_free_blocks) == (8, 2)


# Admission and growth


def test_an_admission_takes_blocks_for_the_first_chunk_only() -> None:
    manager = KVManager(8, 4)
    assert manager.admit(demand(1, 20), 6) == Grant()
    assert manager.block_table(1) == [0, 1]
    assert manager.slot_mapping(1, 3, 6) == [3, 4, 5]
    assert manager.grow(1, 20) == Grant()
    assert manager.block_table(1) == [0, 1, 2, 3, 4]
    assert manager.account() == Account(held=20, free=12)


def test_a_chunk_never_takes_more_slots_than_there_are_tokens() -> None:
    manager = KVManager(8, 4)
    manager.admit(demand(1, 5), 100)
    assert manager.num_tokens(1) == 5
    assert manager.account() == Account(held=5, tail=3, free=24)


def test_growing_inside_the_tail_takes_no_block_and_growing_to_fewer_changes_nothing() -> None:
    manager = KVManager(8, 4)
    manager.admit(demand(1, 5, 9), 5)
    for tokens, slots in ((6, 6), (3, 6), (8, 8), (0, 8)):
        assert manager.grow(1, tokens) == Grant()
        assert (manager.num_tokens(1), manager.block_table(1)) == (slots, [0, 1])
    manager.grow(1, 9)
    assert manager.block_table(1) == [0, 1, 2]
    manager.check_invariants()


def test_growth_without_a_free_block_is_refused_and_changes_nothing() -> None:
    manager = KVManager(3, 2)
    manager.admit(demand(1, 4), 4)
    before = seen(manager)
    refused(manager, manager.grow(1, 7), Reason.NEVER_FITS, 4, 2)
    manager.admit(demand(2, 2), 2)
    before = seen(manager)
    refused(manager, manager.grow(1, 5), Reason.NO_ROOM, 2, 0)
    assert seen(manager) == before


def test_a_request_that_no_empty_memory_could_serve_is_told_so_whatever_is_in_memory() -> None:
    manager = KVManager(4, 2)
    assert manager.never_fits(demand(1, 4, 5)) is None  # 8 slots: the last token is never computed.
    refused(manager, manager.never_fits(demand(1, 4, 6)), Reason.NEVER_FITS, 9, 8)
    manager.admit(demand(2, 4), 4)
    assert manager.never_fits(demand(1, 4, 5)) is None
    refused(manager, manager.admit(demand(1, 9, 1), 1), Reason.NEVER_FITS, 9, 4)


def test_full_fit_asks_for_the_whole_prompt_and_the_first_chunk_alone_does_not() -> None:
    # vLLM #37307: admitted on the first chunk only, long prompts preempt each other for ever.
    for full_fit, expected in ((False, Grant()), (True, Refusal(Reason.NO_ROOM, 8, 6, 6))):
        manager = KVManager(4, 2, full_fit=full_fit)
        manager.admit(demand(1, 2, 3), 2)
        assert manager.admit(demand(2, 7), 2) == expected


def test_what_an_admission_was_promised_is_not_promised_again() -> None:
    manager = KVManager(6, 2)
    manager.admit(demand(1, 8), 2)  # Takes one block of the four that its tokens need.
    refused(manager, manager.admit(demand(2, 6), 2), Reason.PROMISED, 12, 10)
    assert manager.admit(demand(3, 4), 2) == Grant()
    manager.grow(1, 8)
    refused(manager, manager.admit(demand(2, 2), 2), Reason.PROMISED, 4, 2)
    manager.free(1)
    assert manager.admit(demand(2, 6), 6) == Grant()
    manager.check_invariants()


def test_growth_beyond_the_promise_may_take_what_others_were_promised() -> None:
    manager = KVManager(4, 2)
    manager.admit(demand(1, 2, 6), 2)
    manager.admit(demand(2, 4), 2)
    assert manager.grow(1, 6) == Grant()  # A decode that runs goes first.
    refused(manager, manager.grow(2, 4), Reason.NO_ROOM, 2, 0)


def test_the_watermark_stays_free_behind_an_admission_and_not_behind_growth() -> None:
    manager = KVManager(10, 2, watermark=0.2)
    manager.admit(demand(1, 12, 5), 12)
    refused(manager, manager.admit(demand(2, 6), 6), Reason.WATERMARK, 10, 8)
    assert manager.admit(demand(3, 4), 4) == Grant()
    assert manager.num_free_blocks == 2
    assert manager.grow(1, 16) == Grant()


def test_an_empty_memory_lets_anybody_in_that_fits_whatever_the_watermark() -> None:
    manager = KVManager(10, 2, watermark=0.9, prefix_cache="hash")
    compute(manager, 1, list(range(20)))
    assert manager.admit(demand(2, 20), 1) == Grant()


@pytest.mark.parametrize(("watermark", "blocks"), [(0.0, 0), (0.001, 1), (0.07, 7), (0.05, 5), (0.051, 6)])
def test_the_watermark_is_rounded_up_to_blocks(watermark: float, blocks: int) -> None:
    assert KVManager(100, 1, watermark=watermark).num_watermark_blocks == blocks


def test_blocks_go_back_tail_first_so_that_heads_are_used_again_last() -> None:
    manager = KVManager(3, 2)
    manager.admit(demand(1, 6), 6)
    assert manager.block_table(1) == [0, 1, 2]
    manager.free(1)
    manager.admit(demand(2, 6), 6)
    assert manager.block_table(2) == [2, 1, 0]


# The prefix cache


@pytest.mark.parametrize("kind", ["hash", "radix", RadixIndex])
def test_a_prompt_finds_the_blocks_of_an_earlier_one(kind: Any) -> None:
    manager = KVManager(8, 2, prefix_cache=kind)
    first = compute(manager, 1, FIVE)
    assert manager.match(demand(2, FIVE)) == 4
    assert manager.admit(demand(2, [1, 2, 3, 9]), 4) == Grant(num_reused=2)
    assert manager.block_table(2)[0] == first[0]
    assert manager.match(demand(3, FIVE, salt="other")) == 0
    manager.check_invariants()


def test_without_a_prefix_cache_or_without_token_ids_nothing_is_found() -> None:
    manager = KVManager(8, 2)
    compute(manager, 1, FIVE)
    assert manager.match(demand(2, FIVE)) == 0
    finding = KVManager(8, 2, prefix_cache="hash")
    compute(finding, 1, FIVE)
    assert finding.match(demand(2, 5)) == 0
    finding.admit(demand(2, 5), 5)
    finding.commit(2, 5)
    finding.check_invariants()


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_last_token_is_always_computed(blocks: int) -> None:
    manager = KVManager(6, 4, prefix_cache="hash")
    tokens = list(range(4 * blocks))
    compute(manager, 1, tokens)
    assert manager.admit(demand(2, tokens), len(tokens)) == Grant(num_reused=4 * (blocks - 1))
    assert manager.match(demand(3, [*tokens, 99])) == 4 * blocks


def test_the_chunk_counts_behind_what_is_found() -> None:
    manager = KVManager(8, 2, prefix_cache="hash")
    compute(manager, 1, FIVE)
    assert manager.admit(demand(2, [1, 2, 3, 4, 6, 7, 8]), 1) == Grant(num_reused=4)
    assert manager.num_tokens(2) == 5
    manager.commit(2, 4)
    with pytest.raises(ValueError, match="num_tokens must be 0 to the 5 slots of 2, got 6"):
        manager.commit(2, 6)


def test_tokens_made_are_published_too_once_their_ids_are_known() -> None:
    manager = KVManager(8, 2, prefix_cache="hash")
    asked = demand(1, [1, 2, 3], 5)
    manager.admit(asked, 3)
    manager.commit(1, 3)
    manager.grow(1, 4)
    manager.commit(1, 4)
    assert manager.match(demand(2, FIVE)) == 2
    assert asked.token_ids is not None
    asked.token_ids.append(4)
    manager.commit(1, 4)
    assert manager.match(demand(2, FIVE)) == 4
    manager.check_invariants()


def test_of_two_copies_of_one_content_the_first_stays_published() -> None:
    manager = KVManager(8, 2, prefix_cache="hash")
    for request in (1, 2):
        manager.admit(demand(request, FIVE), 5)
    for request in (2, 1):
        manager.commit(request, 5)
    first = manager.block_table(2)
    for request in (1, 2):
        manager.free(request)
        manager.check_invariants()
    assert manager.num_free_blocks == 8
    manager.admit(demand(3, FIVE), 5)
    assert manager.block_table(3)[:2] == first[:2]


# Refusals leave no trace, whatever they stumble on.


@pytest.mark.parametrize(
    ("asked", "chunk", "reason"),
    [
        (demand(9, [1, 2, 3, 4, *range(50, 62)], 1), 16, Reason.NEVER_FITS),
        (demand(9, [1, 2, 3, 4, *range(50, 56)], 1), 8, Reason.NO_ROOM),
        (demand(9, [1, 2, 3, 4, *range(50, 54)], 1), 5, Reason.PROMISED),
    ],
)
def test_an_admission_refused_at_any_check_leaves_everything_as_it_was(
    asked: Demand, chunk: int, reason: Reason
) -> None:
    # sglang #16067 and vLLM #11565: what had been matched was held although nothing came of it.
    manager = KVManager(6, 2, prefix_cache="hash")
    compute(manager, 1, FIVE)
    manager.admit(demand(2, [7] * 6, 1), 4)
    before = seen(manager)
    for _ in range(3):
        answer = manager.admit(asked, chunk)
        assert isinstance(answer, Refusal)
        assert answer.reason is reason
        assert seen(manager) == before
    manager.check_invariants()
    manager.free(2)
    assert manager.match(demand(3, FIVE)) == 4


def test_the_watermark_and_bad_arguments_leave_everything_as_it_was() -> None:
    manager = KVManager(6, 2, prefix_cache="hash", watermark=0.5)
    compute(manager, 1, FIVE)
    manager.admit(demand(2, [7, 7]), 2)
    before = seen(manager)
    assert manager.admit(demand(9, FIVE), 5) == Refusal(Reason.WATERMARK, 8, 6, 6)
    for asked, error, words in (
        (demand(2, [1]), ValueError, "request 2 is in memory already"),
        (demand(9, 0), ValueError, "num_tokens must be at least 1, got 0"),
        (demand(9, 1, 0), ValueError, "max_new_tokens must be at least 1, got 0"),
        (Demand(9, 1, 1, token_ids=array("q", [1])), TypeError, "token_ids must be an array of typecode 'i'"),
        (Demand(9, 1, 1, salt=None), TypeError, "salt must be a string, got None"),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=words):
            manager.admit(asked, 1)
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        manager.admit(demand(9, [1]), 0)
    assert seen(manager) == before


def test_an_idle_block_that_is_found_is_not_free_as_well() -> None:
    manager = KVManager(3, 2, prefix_cache="hash")
    compute(manager, 1, [1, 2, 3, 4])
    manager.admit(demand(8, [9, 9]), 2)  # One block is left beside the two that are found.
    refused(manager, manager.admit(demand(2, [1, 2, 3, 4, 5]), 5), Reason.NO_ROOM, 2, 0)
    assert manager.match(demand(2, FIVE)) == 4


def test_blocks_that_are_found_are_held_before_any_is_evicted() -> None:
    manager = KVManager(2, 2, prefix_cache="hash")
    found = compute(manager, 1, [1, 2])[0]
    compute(manager, 2, [7, 8])
    assert manager.admit(demand(3, [1, 2, 9]), 3) == Grant(num_reused=2)
    assert manager.block_table(3) == [found, 1 - found]
    manager.check_invariants()


def test_two_requests_of_one_step_never_get_one_block_for_two_contents() -> None:
    # vLLM #37164: the second one's new block was the first one's hit.
    manager = KVManager(3, 2, prefix_cache="hash")
    compute(manager, 1, [1, 2, 3, 4])
    first, second = demand(2, FIVE), demand(3, [6, 7])
    assert (manager.match(first), manager.match(second)) == (4, 0)
    assert manager.admit(first, 5) == Grant(num_reused=4)
    refused(manager, manager.admit(second, 2), Reason.NO_ROOM, 2, 0)
    manager.check_invariants()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_blocks": 0}, "num_blocks must be at least 1, got 0"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"watermark": 1.0}, "watermark must be at least 0 and below 1, got 1.0"),
        ({"watermark": -0.1}, "watermark must be at least 0 and below 1, got -0.1"),
        ({"watermark": float("nan")}, "watermark must be at least 0 and below 1, got nan"),
        ({"prefix_cache": None}, "no prefix_cache None; there are none, hash, radix"),
        ({"num_host_blocks": -1}, "num_host_blocks must be at least 0, got -1"),
        ({"prefix_cache": "tree"}, "no prefix_cache 'tree'; there are none, hash, radix"),
    ],
)
def test_a_manager_that_makes_no_sense_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KVManager(**({"num_blocks": 4, "block_size": 2} | arguments))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda m: m._live[1].blocks.pop(), "I2"),
        (lambda m: m._blocks.pool.share([m._live[1].blocks[0]]), "I2"),
        (lambda m: setattr(m._live[1], "num_tokens", 9), "I5: 3 blocks hold 9 tokens"),
        (lambda m: setattr(m._live[1], "committed", 6), "I5: request 1: 6 computed, 5 slots"),
        (lambda m: setattr(m._live[1], "committed", 3), "I7: request 1 stands on 4 tokens, 3 are computed"),
        (lambda m: setattr(m._live[3], "room", 4), "I6: request 3 may still write block"),
        (lambda m: setattr(m._live[1], "computed", None), "I7"),
        (lambda m: m._live[1].demand.token_ids.__setitem__(0, 77), "I7: the table"),
        (lambda m: setattr(m, "_promised", 5), "I1: 0 blocks are promised, 5 counted"),
        (lambda m: m._host._free.pop(), "I1: the host's blocks"),
        (lambda m: m._host.blocks(9).pop(), "I1: the host's blocks|I5: request 9 lies in"),
    ],
)
def test_the_invariants_name_the_offender(harm: Any, words: str) -> None:
    manager = KVManager(10, 2, prefix_cache="hash", num_host_blocks=3)
    manager.admit(demand(9, [9, 9, 9], 1), 3)
    manager.swap_out(9)
    manager.admit(demand(1, FIVE, 3), 5)
    manager.commit(1, 5)
    manager.admit(demand(2, [4, 4, 4], 3), 3)
    manager.commit(2, 3)
    manager.fork(2, demand(3, [4, 4, 4], 3))
    manager.check_invariants()
    harm(manager)
    with pytest.raises(AssertionError, match=words):
        manager.check_invariants()
