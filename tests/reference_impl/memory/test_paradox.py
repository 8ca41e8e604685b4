"""The paradox of free memory, replayed on memories that the search never touched."""

from __future__ import annotations

import pytest

from labkit.contracts import OutOfMemory
from reference_impl.memory.block_allocator import BlockAllocator
from reference_impl.memory.contiguous import ContiguousAllocator
from reference_impl.memory.paradox import Paradox, arrivals, first_paradox, paradox


@pytest.mark.parametrize("seed", range(12))
def test_first_fit_refuses_with_more_than_half_free_and_paging_with_the_same_bytes_admits(seed: int) -> None:
    found = paradox(seed)
    assert found is not None
    ranges = ContiguousAllocator(found.capacity)
    blocks = BlockAllocator(found.capacity // found.block_size, found.block_size)
    for call, *arguments in found.history:
        getattr(ranges, str(call))(*arguments)
        getattr(blocks, str(call))(*arguments)
    assert 2 * sum(size for _, size in ranges.holes()) > found.capacity
    assert tuple(ranges.holes()) == found.holes
    with pytest.raises(OutOfMemory):
        ranges.allocate(found.request, found.wanted)
    assert found.largest_hole < found.wanted <= found.free
    assert blocks.num_free_blocks == found.blocks_free
    blocks.allocate(found.request, found.wanted)
    assert blocks.num_free_blocks == found.blocks_free - found.blocks_needed


def test_one_seed_is_one_story() -> None:
    assert paradox(3) == paradox(3)
    assert paradox(3) != paradox(4)


# A wall of 2 + 1 tokens stays while 3 tokens below it come and go: 9 of 12 are free in holes of 3 and 6.
WALL = [(0, 2, 1), (0, 1, 2)]


def test_the_moment_by_hand() -> None:
    found = first_paradox([*WALL, (1, 6, 1)], capacity=12, block_size=1)
    assert found == Paradox(
        capacity=12,
        block_size=1,
        step=1,
        request=2,
        wanted=7,
        free=9,
        holes=((0, 3), (6, 6)),
        blocks_needed=7,
        blocks_free=9,
        history=(("allocate", 0, 3), ("allocate", 1, 3), ("free", 0)),
    )
    assert str(found) == (
        "step 1: request 2 wants 7 tokens and 9 of 12 are free (75%), but the largest of 2 holes has 6: refused. "
        "In blocks of 1 it needs 7 of 9 free ones: admitted."
    )


@pytest.mark.parametrize(
    "story",
    [
        # Ranges of 3 and 6; the first goes and leaves two holes of 3, half of the memory, for a request of 4.
        [(0, 2, 1), (0, 3, 3), (1, 3, 1)],
        [*WALL, (1, 5, 1)],
        [*WALL, (1, 9, 1)],
        [*WALL, (2, 6, 1)],
    ],
    ids=["half is free, not more", "the hole suffices", "not enough is free at all", "the wall is gone"],
)
def test_it_is_no_paradox_if(story: list[tuple[int, int, int]]) -> None:
    assert first_paradox(story, capacity=12, block_size=1) is None


def test_a_refusal_with_half_the_memory_in_use_is_dropped_from_both_memories() -> None:
    # Ranges of 2, 2, 2 and a hole of 6; the first goes. Wanted 8 of 8 free is refused, and what follows is unharmed.
    story = [(0, 1, 1), (0, 1, 9), (0, 1, 9), (1, 7, 1), (1, 5, 1)]
    assert first_paradox(story, capacity=16, block_size=1) is None


@pytest.mark.parametrize(
    ("story", "capacity", "words"),
    [
        ([(3, 1, 1), (2, 1, 1)], 4, "request 1: step 2 after step 3, 1 prompt and 1 output tokens"),
        ([(0, 0, 1)], 4, "request 0: step 0 after step 0, 0 prompt"),
        ([(0, 1, 1)], 5, "capacity 5 is no multiple of block_size 2"),
        ([(0, 1, 1)], 0, "capacity must be at least 1"),
    ],
)
def test_a_story_that_cannot_be_played_is_named(story: list[tuple[int, int, int]], capacity: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        first_paradox(story, capacity, block_size=2)


def test_arrivals_keep_the_load_that_was_asked_for() -> None:
    rows = [(100, 50)] * 5000
    *_, last = arrivals(rows, capacity=10_000, load=0.3, seed=1)
    assert 5000 * 150 * 50 / last[0] / 10_000 == pytest.approx(0.3, rel=0.05)
    with pytest.raises(ValueError, match="no requests to arrive"):
        next(arrivals([], 10, 0.3, 0))
    with pytest.raises(ValueError, match="load must be above 0, got 0"):
        next(arrivals(rows, 10, 0, 0))


def test_blocks_of_no_slots_are_named() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        first_paradox([(0, 1, 1)], 4, block_size=0)
