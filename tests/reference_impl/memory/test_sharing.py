"""Parallel sampling and beams over any allocator: order of forks and frees, nothing half done, shares as published."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.contracts import OutOfBlocks
from reference_impl.memory.block_allocator import BlockAllocator
from reference_impl.memory.sharing import (
    PUBLISHED_SAVED,
    beam_step,
    draw_parents,
    lengths,
    parallel_sampling,
    saved_share,
    saved_table,
    sharing,
)


def test_samples_share_the_prompt_and_part_at_their_first_token() -> None:
    allocator = BlockAllocator(8, 4)
    parallel_sampling(allocator, 6, [1, 2, 3])
    assert allocator.num_free_blocks == 6
    copies = [allocator.append(sample) for sample in (1, 2, 3)]
    assert [len(each) for each in copies] == [1, 1, 0]
    assert [allocator.block_table(sample)[0] for sample in (1, 2, 3)] == [0, 0, 0]
    allocator.check_invariants()


@pytest.mark.parametrize("samples", [[1, 2, 7], [1, 1], [7, 1]])
def test_if_one_sample_cannot_start_none_does(samples: list[int]) -> None:
    allocator = BlockAllocator(8, 4)
    allocator.allocate(7, 1)
    with pytest.raises(ValueError, match="exists already"):
        parallel_sampling(allocator, 6, samples)
    assert allocator.num_free_blocks == 7
    assert allocator.num_tokens(7) == 1
    with pytest.raises(ValueError, match="samples must name at least one"):
        parallel_sampling(allocator, 6, [])


def beams_of(tokens: int, width: int) -> tuple[BlockAllocator, list[int]]:
    allocator = BlockAllocator(40, 4)
    beams = list(range(width))
    parallel_sampling(allocator, tokens, beams)
    for beam in beams:
        allocator.append(beam)
    return allocator, beams


def test_a_beam_that_several_continue_is_forked_and_one_that_nobody_continues_ends() -> None:
    allocator, beams = beams_of(6, 3)
    tables = [allocator.block_table(beam) for beam in beams]
    new = beam_step(allocator, beams, [1, 1, 0], count(100))
    assert new == [1, 100, 0]
    assert [allocator.block_table(beam) for beam in new] == [tables[1], tables[1], tables[0]]
    with pytest.raises(KeyError):
        allocator.block_table(2)
    allocator.check_invariants()


class FreesBeforeForks(BlockAllocator):
    """Remembers the order of the calls."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.calls: list[str] = []

    def fork(self, parent: int, child: int) -> None:
        self.calls.append("fork")
        super().fork(parent, child)

    def free(self, seq: int) -> None:
        self.calls.append("free")
        super().free(seq)


def test_every_fork_comes_before_any_end() -> None:
    allocator = FreesBeforeForks(20, 4)
    parallel_sampling(allocator, 6, [0, 1, 2, 3])
    allocator.calls.clear()
    beam_step(allocator, [0, 1, 2, 3], [3, 3, 2, 2], count(10))
    assert allocator.calls == ["fork", "fork", "free", "free"]


@pytest.mark.parametrize(("parents", "ids"), [([0, 0, 0], iter([10, 2])), ([1, 1, 3], count(10)), ([0, -1], count(10))])
def test_a_step_that_fails_leaves_every_beam_as_it_was(parents: list[int], ids: Iterator[int]) -> None:
    allocator, beams = beams_of(6, 3)
    before = [allocator.block_table(beam) for beam in beams], allocator.num_free_blocks
    with pytest.raises(ValueError, match=r"exists already|places in 3 beams"):
        beam_step(allocator, beams, parents, ids)
    assert ([allocator.block_table(beam) for beam in beams], allocator.num_free_blocks) == before
    with pytest.raises(KeyError):
        allocator.block_table(10)


class CopiesAtTheFork(BlockAllocator):
    """Has room for one fork, as an allocator has that copies the tail at once; then it is out of blocks."""

    forks = 0

    def fork(self, parent: int, child: int) -> None:
        if self.forks == 1:
            raise OutOfBlocks(1, 0)
        self.forks += 1
        super().fork(parent, child)


def test_an_allocator_out_of_blocks_in_the_middle_of_a_step_loses_no_beam_and_keeps_no_fork() -> None:
    allocator = CopiesAtTheFork(20, 4)
    for beam in (0, 1, 2):
        allocator.allocate(beam, 6)
    with pytest.raises(OutOfBlocks):
        beam_step(allocator, [0, 1, 2], [0, 0, 0], count(10))
    assert [len(allocator.block_table(beam)) for beam in (0, 1, 2)] == [2, 2, 2]
    assert allocator.num_free_blocks == 14
    with pytest.raises(KeyError):
        allocator.block_table(10)


def test_too_few_new_ids_are_no_half_done_step_either() -> None:
    allocator, beams = beams_of(6, 3)
    with pytest.raises(StopIteration):
        beam_step(allocator, beams, [0, 0, 0], iter([10]))
    with pytest.raises(KeyError):
        allocator.block_table(10)


def test_samples_that_find_no_blocks_leave_nothing_behind() -> None:
    allocator = CopiesAtTheFork(20, 4)
    with pytest.raises(OutOfBlocks):
        parallel_sampling(allocator, 6, [0, 1, 2])
    assert allocator.num_free_blocks == 20


@pytest.mark.parametrize("name", ["prompt_tokens", "output_tokens", "width", "block_size"])
def test_a_number_below_one_is_named(name: str) -> None:
    numbers = {"prompt_tokens": 4, "output_tokens": 4, "width": 2, "block_size": 4, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        sharing(how="beam", **numbers)  # type: ignore[arg-type]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_parallel_samples_save_the_full_blocks_of_the_prompt(prompt: int, output: int, width: int, size: int) -> None:
    blocks = sharing(prompt, output, width, "parallel", block_size=size)
    # The partial tail of the prompt is copied by all but its last holder, so that only full blocks stay shared.
    assert blocks.alone - blocks.shared == output * (width - 1) * (prompt // size)


@given(st.integers(1, 5), st.integers(0, 99))
def test_beams_never_hold_more_than_parallel_samples(width: int, seed: int) -> None:
    beam, parallel = sharing(20, 30, width, "beam", seed=seed), sharing(20, 30, width, "parallel")
    assert beam.shared <= parallel.shared
    assert beam.alone == parallel.alone
    if width == 1:
        assert beam.saved_share == 0


def test_a_step_in_which_every_beam_survives_changes_nothing() -> None:
    assert draw_parents(random.Random(1), 5, survival=1.0) == [0, 1, 2, 3, 4]
    allocator = FreesBeforeForks(20, 4)
    parallel_sampling(allocator, 6, [0, 1])
    allocator.calls.clear()
    assert beam_step(allocator, [0, 1], [0, 1], count(10)) == [0, 1]
    assert allocator.calls == []


@pytest.mark.parametrize(("name", "requests"), [("alpaca", 300), ("sharegpt", 25)])
def test_the_shares_saved_are_those_of_the_paper_in_kind(name: str, requests: int) -> None:
    table = saved_table(lengths(name, requests))
    for how in ("parallel", "beam"):
        shares = [table[how, width] for width in (2, 4, 6)]  # type: ignore[index]
        assert shares == sorted(shares), "a wider search shares more"
        least, greatest = PUBLISHED_SAVED[name, how]  # type: ignore[index]
        assert least / 1.5 < shares[0] < shares[-1] < greatest * 1.5
    for width in (2, 4, 6):
        assert table["beam", width] > 1.5 * table["parallel", width]


def test_longer_prompts_save_more() -> None:
    assert saved_share(200, 100, 4, "parallel") > saved_share(20, 100, 4, "parallel")
    assert saved_share(200, 100, 4, "beam") > saved_share(20, 100, 4, "beam")


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match="how must be 'parallel' or 'beam', got 'greedy'"):
        saved_share(1, 1, 1, "greedy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        saved_share(1, 1, 0, "beam")
    with pytest.raises(ValueError, match="no lengths 'c4'; there are alpaca, sharegpt"):
        lengths("c4", 3)
    with pytest.raises(ValueError, match="requests must hold at least one request"):
        saved_table([])
