"""The policies by themselves: the order of each, tails before heads, and a cost that does not grow with the pool."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import pytest

from reference_impl.memory import FIFO, LFU, LRU, SLRU, EvictionPolicy, PrefixCache
from reference_impl.memory.cached_block import CachedBlock

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LRU, "fifo": FIFO, "lfu": LFU, "slru": partial(SLRU, 3)}


def published(policy: EvictionPolicy, block: int, parent: CachedBlock | None = None) -> CachedBlock:
    entry = CachedBlock(parent, b"tokens", "")
    entry.block = block
    policy.published(entry)
    return entry


def reuse(policy: EvictionPolicy, entry: CachedBlock) -> None:
    policy.remove(entry)
    policy.hit(entry)
    policy.add(entry)


def order(policy: EvictionPolicy) -> list[int | None]:
    return [policy.evict().block for _ in range(len(policy))]


def idle(policy: EvictionPolicy, count: int) -> list[CachedBlock]:
    entries = [published(policy, block) for block in range(count)]
    for entry in entries:
        policy.add(entry)
    return entries


def test_lru_evicts_what_was_released_longest_ago() -> None:
    policy = LRU()
    entries = idle(policy, 4)
    reuse(policy, entries[0])
    reuse(policy, entries[2])
    assert order(policy) == [1, 3, 0, 2]


def test_fifo_evicts_what_was_published_first_however_often_it_was_reused() -> None:
    policy = FIFO()
    entries = idle(policy, 4)
    reuse(policy, entries[0])
    reuse(policy, entries[2])
    assert order(policy) == [0, 1, 2, 3]


def test_lfu_evicts_the_fewest_hits_and_the_least_recent_among_equals() -> None:
    policy = LFU()
    entries = idle(policy, 4)
    for hit in (1, 1, 3, 0):
        reuse(policy, entries[hit])
    assert order(policy) == [2, 3, 0, 1]


def test_slru_evicts_what_was_never_hit_before_what_was() -> None:
    policy = SLRU(2)
    entries = idle(policy, 4)
    reuse(policy, entries[0])
    assert order(policy) == [1, 2, 3, 0]


def test_slru_demotes_the_least_recently_hit_block_when_its_protected_segment_is_full() -> None:
    policy = SLRU(2)
    entries = idle(policy, 5)
    for hit in (0, 1, 0, 4):
        reuse(policy, entries[hit])
    policy.add(published(policy, 5))
    # Block 1 fell back as the latest of the unprotected, before block 5 came.
    assert order(policy) == [2, 3, 1, 5, 0, 4]


def test_slru_without_a_protected_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="protected_blocks must be at least 1, got 0"):
        SLRU(0)


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
def test_an_evicted_block_that_comes_back_has_no_merits_left(make: Callable[[], EvictionPolicy]) -> None:
    policy = make()
    (first,) = idle(policy, 1)
    reuse(policy, first)
    assert policy.evict() is first
    policy.published(first)
    policy.add(first)
    other = published(policy, 1)
    policy.add(other)
    assert order(policy) == [0, 1]


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
def test_a_head_never_goes_before_its_tail(make: Callable[[], EvictionPolicy]) -> None:
    policy = make()
    head = published(policy, 0)
    middle = published(policy, 1, head)
    tails = [published(policy, block, middle) for block in (2, 3)]
    policy.add(head)  # In the worst order, and the tails with the most hits.
    policy.add(middle)
    for tail in tails:
        policy.add(tail)
        reuse(policy, tail)
        policy.check_invariants()
    gone = order(policy)
    assert set(gone[:2]) == {2, 3}
    assert gone[2:] == [1, 0]


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
def test_an_empty_policy_has_nothing_to_evict(make: Callable[[], EvictionPolicy]) -> None:
    with pytest.raises(IndexError, match="no idle block"):
        make().evict()


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
def test_the_victim_is_always_the_lowest_rank_of_those_on_which_nothing_idle_stands(
    make: Callable[[], EvictionPolicy],
) -> None:
    dice = random.Random(3)
    policy = make()
    held: list[CachedBlock] = []
    resting: list[CachedBlock] = []
    for block in range(4_000):
        call = dice.choice(("publish", "release", "release", "hit", "evict"))
        if call == "publish":
            held.append(published(policy, block, dice.choice([None, *held, *resting])))
        elif call == "release" and held:
            entry = held.pop(dice.randrange(len(held)))
            policy.add(entry)
            resting.append(entry)
        elif call == "hit" and resting:
            entry = resting.pop(dice.randrange(len(resting)))
            policy.remove(entry)
            policy.hit(entry)
            held.append(entry)
        elif call == "evict" and resting:
            bare = [entry for entry in resting if not any(other.parent is entry for other in resting)]
            expected = min(bare, key=lambda entry: entry.rank)
            assert policy.evict() is expected
            resting.remove(expected)
        assert len(policy) == len(resting)
        if block % 20 == 0:
            policy.check_invariants()


def heap_records(num_blocks: int) -> int:
    cache = PrefixCache(num_blocks, 1)
    for seq in range(2_000):
        cache.acquire(seq, [seq % 5, 0])
        cache.commit(seq, 1)
        cache.release(seq)
    return len(cache._blocks._idle._heap)  # type: ignore[attr-defined]


def test_blocks_that_are_revived_for_ever_leave_no_growing_heap_behind() -> None:
    assert heap_records(64) < 100


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES.keys())
def test_the_comparisons_of_an_eviction_grow_with_the_logarithm_of_the_idle_blocks(
    make: Callable[[], EvictionPolicy],
) -> None:
    def comparisons(count: int) -> float:
        policy = make()
        counted = 0

        class Rank(tuple[int, ...]):
            def __lt__(self, other: tuple[int, ...]) -> bool:
                nonlocal counted
                counted += 1
                return tuple.__lt__(self, other)

        original = policy._rank  # type: ignore[attr-defined]
        policy._rank = lambda entry: Rank(original(entry))  # type: ignore[attr-defined]
        entries = [published(policy, block) for block in range(count)]
        random.Random(1).shuffle(entries)
        for entry in entries:
            policy.add(entry)
        counted = 0
        for _ in range(200):
            again = policy.evict()
            policy.published(again)
            policy.add(again)
        return counted / 200

    assert comparisons(32_000) < 2 * comparisons(1_000) + 10
