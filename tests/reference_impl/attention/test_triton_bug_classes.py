"""The bugs that kernels of this kind have had in other engines, each by its number in the list of known classes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from reference_impl.attention.store_kv import store_kv
from tests.reference_impl.attention.decode_problems import Problem, check, drawn, run, work_for

pytestmark = pytest.mark.usefixtures("one_thread")

LARGE_BLOCK = (256, 8, 256)
LARGE_BLOCKS = 2**31 // (2 * 256 * 8 * 256) + 4


@pytest.fixture
def large_cache(device: torch.device) -> torch.Tensor:
    """Keys and values of one layer in one tensor of more than 2**31 numbers, of which the memory is never touched."""
    return torch.empty(LARGE_BLOCKS, 2, *LARGE_BLOCK, dtype=torch.float16, device=device)


def test_bug_30_offsets_in_32_bits_wrap_when_keys_are_stored(device: torch.device, large_cache: torch.Tensor) -> None:
    assert large_cache.numel() > 2**31
    key, value = torch.randn(2, 3, 8, 256, device=device).half()
    last = LARGE_BLOCKS * 256 - 1
    store_kv(key, value, large_cache[:, 0], large_cache[:, 1], torch.tensor([last, 0, last - 300], device=device))
    for token, slot in enumerate((last, 0, last - 300)):
        assert torch.equal(large_cache[slot // 256, 0, slot % 256], key[token])
        assert torch.equal(large_cache[slot // 256, 1, slot % 256], value[token])


def test_bug_30_offsets_in_32_bits_wrap_when_keys_are_read(device: torch.device, large_cache: torch.Tensor) -> None:
    tables = torch.tensor([[LARGE_BLOCKS - 1, LARGE_BLOCKS - 2], [0, -1]], dtype=torch.int32, device=device)
    for block in (LARGE_BLOCKS - 1, LARGE_BLOCKS - 2, 0):
        large_cache[block] = torch.randn(2, *LARGE_BLOCK, device=device).half()
    lens = torch.tensor([270, 10], dtype=torch.int32, device=device)
    query = torch.randn(2, 8, 256, device=device).half()
    problem = Problem(query, large_cache[:, 0], large_cache[:, 1], tables, lens, 1 / 16)
    out = torch.empty_like(query)
    from reference_impl.attention.paged_decode import paged_decode

    paged_decode(*problem.inputs, problem.scale, out)
    check(problem, out)


@pytest.mark.parametrize("length", [1, 15, 17, 33])
def test_bug_31_nan_behind_the_last_token_of_the_last_block(device: torch.device, length: int) -> None:
    problem = drawn([length], device=device)
    check(problem, run(problem, work_for(problem, programs=4)))


def test_bug_32_a_mask_that_adds_minus_infinity_keeps_nan(device: torch.device) -> None:
    problem = drawn([7, 40], window=3, device=device)
    # Tokens before the window are as foreign as free blocks.
    problem.key_cache[problem.block_tables[1, 0].long()] = float("nan")
    problem.value_cache[problem.block_tables[1, 0].long()] = float("nan")
    out = run(problem, work_for(problem))
    assert bool(out.isfinite().all())


def test_bug_33_slot_minus_one_writes_neither_the_first_nor_the_last_slot(device: torch.device) -> None:
    caches = torch.full((2, 3, 16, 2, 32), 9.0, device=device)
    given = torch.randn(2, 4, 2, 32, device=device)
    store_kv(*given, *caches, torch.tensor([-1, 20, -1, -1], device=device))
    for cache, tokens in zip(caches, given, strict=True):
        assert torch.equal(cache.flatten(0, 1)[20], tokens[1])
        assert int((cache != 9).any(-1).any(-1).sum()) == 1


def test_bug_33_a_padded_row_reads_nothing_and_gives_zeros(device: torch.device) -> None:
    problem = drawn([0, 30, 0], device=device)
    problem.block_tables[0] = 0
    out = run(problem, work_for(problem))
    assert not out[0].any()
    check(problem, out)


@pytest.mark.parametrize("length", [1, 2, 16, 17, 100])
def test_bug_34_more_programs_than_there_is_work(device: torch.device, length: int) -> None:
    problem = drawn([length], heads=8, device=device)
    check(problem, run(problem, work_for(problem, programs=64)))


@pytest.mark.parametrize("group", [1, 4, 7, 8])
@pytest.mark.parametrize("kv_heads", [2, 3])
def test_bug_35_query_heads_look_at_the_head_of_their_group(device: torch.device, group: int, kv_heads: int) -> None:
    problem = drawn([21], heads=group * kv_heads, kv_heads=kv_heads, device=device)
    check(problem, run(problem, work_for(problem)))


def test_bug_35_a_group_larger_than_a_program_takes(device: torch.device) -> None:
    problem = drawn([21, 3], heads=2 * 37, kv_heads=2, head_dim=256, device=device)
    check(problem, run(problem, work_for(problem, programs=12)))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("off", [-1, 0, 1])
@pytest.mark.parametrize("block_size", [5, 16])
def test_bug_36_a_window_around_a_block_edge(device: torch.device, blocks: int, off: int, block_size: int) -> None:
    problem = drawn([50, 16, 4], block_size=block_size, window=blocks * block_size + off, device=device)
    check(problem, run(problem, work_for(problem, programs=6)))


def test_bug_37_a_cache_of_eight_bits_without_scales_is_refused_by_its_name(device: torch.device) -> None:
    problem = drawn([5], device=device)
    small = [cache.to(torch.float8_e4m3fn) for cache in (problem.key_cache, problem.value_cache)]
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        run(Problem(problem.query, *small, *problem.inputs[3:], problem.scale))


def test_bug_38_where_blocks_lie_changes_no_bit(device: torch.device) -> None:
    answers = []
    for shuffle in (0, 1, 2):
        problem = drawn([40, 90, 17], shuffle=shuffle, device=device)
        answers.append(run(problem, work_for(problem, programs=9)))
        check(problem, answers[-1])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
