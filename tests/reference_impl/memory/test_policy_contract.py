"""One contract for every way to keep KV: the reference's, the baselines, and paging on anybody's allocator of lab 3.

The honest submissions keep it; of the wrong ones it finds what an engine that shares nothing would trip over.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autograder.course import load_module
from labkit.contracts import BlockAllocator as BlockContract
from reference_impl.memory.kv_policy import KVPolicy
from reference_impl.memory.paged_blocks import PagedBlocks
from reference_impl.memory.policies import POLICIES, Sizes
from tests import corpus
from tests.corpus import Wrong
from tests.reference_impl.memory.policy_contract import drive

LAB = "lab3_block_allocator"
SEEDS = range(4)
SIZES = Sizes(capacity=48, max_length=24, block_size=4)
WRONG = {wrong.path.stem: wrong for wrong in corpus.wrong(LAB)}

NOTHING_IS_SHARED = "it goes wrong only after a fork, and no policy forks"
ASKED_BEFORE = "the policy checks ids and values itself, before it asks the allocator"
ONLY_SLOW = "its answers are right; it is found by counting the work of a call"

MISSED: dict[str, tuple[str, ...]] = {
    NOTHING_IS_SHARED: (
        "copies_full_shared_tail",
        "copies_the_whole_table",
        "copy_appended_behind_the_tail",
        "copy_forgets_to_leave_the_source",
        "copy_frees_the_source",
        "copy_never_reported",
        "copy_pair_reversed",
        "forgets_the_copy_in_the_check",
        "fork_copies_the_memory",
        "fork_counts_no_holder",
        "fork_counts_only_the_tail",
        "fork_gives_the_child_a_new_tail",
        "fork_needs_a_free_block",
        "fork_replaces_an_existing_child",
        "fork_shares_full_blocks_only",
        "fork_shares_the_list",
        "free_count_drifts",
        "free_counts_shared_blocks",
        "frees_shared_block",
        "last_holder_copies_too",
        "no_copy_at_all",
        "no_copy_for_second_writer",
        "others_get_the_copy",
        "shared_flag_instead_of_count",
    ),
    ASKED_BEFORE: (
        "allocate_replaces_an_existing_sequence",
        "blocks_before_ids",
        "double_free_appends_twice",
        "plain_int_only",
        "second_free_is_silent",
        "sizes_are_trusted",
        "unknown_sequence_is_a_value_error",
        "values_before_ids",
        "zero_tokens_are_allowed",
    ),
    ONLY_SLOW: (
        "append_builds_a_new_table",
        "bits_of_a_large_integer",
        "counts_free_blocks_by_looking",
        "counts_holders_by_searching_tables",
        "finds_a_byte",
        "guards_double_free_by_searching",
        "insert_zero_free_list",
        "insorts_into_a_sorted_list",
        "list_of_holders",
        "min_of_a_set",
        "pop_zero_free_list",
        "scans_flags_for_a_free_block",
        "sorts_the_free_list",
    ),
}
"""Why -> the wrong submissions that this suite cannot find. The hidden tests of the lab find them."""

CAUGHT = sorted(WRONG.keys() - {name for names in MISSED.values() for name in names})


def paged(allocator: Callable[[int, int], BlockContract]) -> Callable[[], KVPolicy]:
    return lambda: PagedBlocks(SIZES.capacity, SIZES.block_size, allocator)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(20))
def test_every_policy_keeps_the_contract(name: str, seed: int) -> None:
    drive(lambda: POLICIES[name](SIZES), seed)


@pytest.mark.parametrize("path", corpus.files(LAB, "correct"), ids=lambda path: path.stem)
def test_paging_on_an_honest_allocator_keeps_the_contract(path: corpus.Path) -> None:
    allocator = load_module(path, f"honest_{path.stem}").BlockAllocator
    for seed in SEEDS:
        drive(paged(allocator), seed)


def failure(wrong: Wrong) -> Exception | None:
    """How the suite ends on a wrong allocator; None if it is not noticed."""
    for seed in SEEDS:
        allocator = load_module(wrong.path, f"wrong_{wrong.path.stem}_{seed}").BlockAllocator
        try:
            drive(paged(allocator), seed)
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("name", CAUGHT)
def test_paging_on_a_wrong_allocator_does_not(name: str) -> None:
    assert failure(WRONG[name]) is not None, WRONG[name].misconception


@pytest.mark.parametrize(("name", "why"), [(name, why) for why, names in MISSED.items() for name in names])
def test_what_the_suite_cannot_find_is_listed_with_the_reason(name: str, why: str) -> None:
    # Should one be found after all, its place is in the other list.
    assert failure(WRONG[name]) is None, why


def test_it_finds_many_of_the_wrong_submissions() -> None:
    assert len(CAUGHT) >= 15
