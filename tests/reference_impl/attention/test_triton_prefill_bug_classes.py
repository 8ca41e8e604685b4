"""The bugs that prefill and chunks have had in other engines, each by its number in the list of known classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from reference_impl.attention.paged_prefill import paged_prefill
from tests.reference_impl.attention.prefill_problems import Problem, check, drawn, run

pytestmark = pytest.mark.usefixtures("one_thread")

LARGE_BLOCK = (256, 8, 256)
LARGE_BLOCKS = 2**31 // (2 * 256 * 8 * 256) + 4


def test_bug_30_offsets_in_32_bits_wrap_when_keys_are_read(device: torch.device) -> None:
    # The memory of all other blocks is never touched.
    cache = torch.empty(LARGE_BLOCKS, 2, *LARGE_BLOCK, dtype=torch.float16, device=device)
    assert cache.numel() > 2**31
    tables = torch.tensor([[LARGE_BLOCKS - 1, LARGE_BLOCKS - 2], [0, -1]], dtype=torch.int32, device=device)
    for block in (LARGE_BLOCKS - 1, LARGE_BLOCKS - 2, 0):
        cache[block] = torch.randn(2, *LARGE_BLOCK, device=device).half()
    lens, starts = (torch.tensor(sizes, dtype=torch.int32, device=device) for sizes in ([258, 3], [0, 2, 5]))
    query = torch.randn(5, 8, 256, device=device).half()
    problem = Problem(query, cache[:, 0], cache[:, 1], tables, lens, starts, 1 / 16)
    out = torch.empty_like(query)
    paged_prefill(*problem.inputs, problem.scale, out)
    check(problem, out)


def test_bug_30_offsets_in_32_bits_wrap_in_a_long_batch_of_queries(device: torch.device) -> None:
    problem = drawn([(1, 9), (2, 2)], dtype=torch.float16, pads=0, device=device)
    far = torch.empty(3, 2**30 + 512, dtype=torch.float16, device=device)
    query, out = (far[:, begin : begin + 128].view(3, 4, 32) for begin in (0, 256))
    query.copy_(problem.query)
    paged_prefill(query, *problem.inputs[1:], problem.scale, out)
    check(problem, out.clone())


@pytest.mark.parametrize("queries", [1, 2, 16])
@pytest.mark.parametrize("context", [17, 33])
def test_bug_31_nan_behind_the_last_token_of_the_last_block(device: torch.device, queries: int, context: int) -> None:
    problem = drawn([(queries, context)], device=device)
    check(problem, run(problem))


def test_bug_32_a_mask_that_adds_minus_infinity_keeps_nan(device: torch.device) -> None:
    problem = drawn([(5, 40), (20, 20)], window=3, device=device)
    want = run(problem)
    # Of 40 tokens the first query, at place 35, sees those from 33 on: all before are as foreign as free blocks.
    for block in problem.block_tables[0, :2].tolist():
        problem.key_cache[block] = float("nan")
        problem.value_cache[block] = float("nan")
    problem.key_cache[int(problem.block_tables[0, 2]), 0] = float("nan")
    problem.value_cache[int(problem.block_tables[0, 2]), 0] = float("nan")
    assert torch.equal(run(problem), want)


def test_bug_32_blocks_before_the_window_may_be_gone_from_the_table(device: torch.device) -> None:
    problem = drawn([(5, 70), (3, 40)], window=4, device=device)
    want = run(problem)
    for place, gone in ((0, 3), (1, 2)):
        problem.block_tables[place, :gone] = -1
    assert torch.equal(run(problem), want)


def test_bug_33_a_padded_row_without_context_reads_nothing_and_gives_zeros(device: torch.device) -> None:
    problem = drawn([(4, 30), (1, 0), (1, 0)], device=device)
    problem.block_tables[1:] = -1
    out = run(problem)
    assert not out[4:].any()
    check(problem, out)


@pytest.mark.parametrize("queries", [1, 7, 8, 9])
def test_bug_34_places_that_no_tile_of_a_sequence_fills(device: torch.device, queries: int) -> None:
    # A tile holds 8 tokens: places are kept for more tiles than these sequences have.
    problem = drawn([(queries, queries), (0, 5), (queries, 20), (1, 1)], device=device)
    check(problem, run(problem))


@pytest.mark.parametrize("group", [1, 4, 7, 8])
@pytest.mark.parametrize("kv_heads", [2, 3])
def test_bug_35_query_heads_look_at_the_head_of_their_group(device: torch.device, group: int, kv_heads: int) -> None:
    problem = drawn([(5, 21)], heads=group * kv_heads, kv_heads=kv_heads, device=device)
    check(problem, run(problem))


def test_bug_35_a_group_larger_than_a_tile_has_rows(device: torch.device) -> None:
    problem = drawn([(3, 21), (2, 2)], heads=2 * 37, kv_heads=2, head_dim=16, device=device)
    check(problem, run(problem))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("off", [-1, 0, 1])
@pytest.mark.parametrize("block_size", [5, 16])
def test_bug_36_a_window_around_the_edge_of_a_block(
    device: torch.device, blocks: int, off: int, block_size: int
) -> None:
    problem = drawn([(12, 50), (4, 4)], block_size=block_size, window=blocks * block_size + off, device=device)
    check(problem, run(problem))


def test_bug_37_a_cache_of_eight_bits_without_scales_is_refused_by_its_name(device: torch.device) -> None:
    problem = drawn([(5, 9)], device=device)
    small = {name: getattr(problem, name).to(torch.float8_e4m3fn) for name in ("key_cache", "value_cache")}
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        run(replace(problem, **small))


def test_bug_38_a_prefix_hit_reads_the_cached_tokens_through_the_table(device: torch.device) -> None:
    answers = []
    for shuffle in (0, 1, 2):
        problem = drawn([(8, 40), (17, 50), (17, 17)], shuffle=shuffle, device=device)
        answers.append(run(problem))
        check(problem, answers[-1])
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_bug_38_two_sequences_share_the_blocks_of_a_prefix(device: torch.device) -> None:
    problem = drawn([(6, 38), (9, 41)], device=device)
    problem.block_tables[1, :2] = problem.block_tables[0, :2]
    check(problem, run(problem))
