"""The prefill kernel: what the definition says, whatever lies around a sequence and wherever a prompt is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.paged_prefill import paged_prefill
from reference_impl.attention.prefill_tuning import PrefillTuning, prefill_tuning_for
from tests.reference_impl.attention.prefill_problems import SMALL, check, drawn, expected, run

pytestmark = pytest.mark.usefixtures("one_thread")

# On a GPU each shape is compiled anew, which takes seconds.
EXAMPLES = 24 if torch.cuda.is_available() else 40
TYPES = [torch.float32, torch.float16, torch.bfloat16]
UNEVEN = [(40, 40), (1, 50), (7, 90), (20, 23)]
"""A prompt, a decode, a chunk behind a long prefix, one behind a short one."""


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Query tokens around the edges of tiles, prefixes around those of blocks."""
    kv_heads, block_size = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 5, 8, 16, 32, 100, 256]))
    group = draw(st.sampled_from([1, 2, 3, 4, 7, 8, 20]))
    edge = st.builds(lambda blocks, off: max(0, blocks * block_size + off), st.integers(0, 2), st.integers(-1, 1))
    prefix = st.one_of(st.just(0), edge.filter(lambda size: size <= 150), st.integers(0, 60))
    tile = max(1, SMALL.rows // group)
    tiles = st.builds(lambda count, off: max(1, count * tile + off), st.integers(0, 3), st.integers(-1, 1))
    queries = st.one_of(tiles, st.integers(0, 24))
    rows = draw(st.lists(st.tuples(queries, prefix), min_size=1, max_size=4))
    return {
        "rows": [(count, count + cached) for count, cached in rows],
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([32, 64, 80, 128, 256, 5])),
        "block_size": block_size,
        "dtype": draw(st.sampled_from(TYPES)),
        "window": draw(st.none() | st.integers(1, 60) | st.integers(1, 200)),
        "first_token": draw(st.sampled_from([0, 5])),
        "seed": draw(st.integers(0, 1000)),
        "shuffle": draw(st.integers(0, 1000)),
    }


@given(shape=shapes())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_the_definition_says_for_any_shape_type_window_and_prefix(
    device: torch.device, shape: dict[str, Any]
) -> None:
    problem = drawn(**shape, device=device)
    check(problem, run(problem))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_the_tiles_that_a_call_chooses_by_itself(device: torch.device, dtype: torch.dtype) -> None:
    for rows, window in ((UNEVEN, None), ([(150, 150), (140, 300)], 133)):
        problem = drawn(rows, dtype=dtype, window=window, device=device)
        check(problem, run(problem, None))


@pytest.mark.parametrize("head_dim", [1, 2, 3, 17, 96])
def test_a_head_of_any_size(device: torch.device, head_dim: int) -> None:
    problem = drawn(UNEVEN, head_dim=head_dim, device=device)
    torch.testing.assert_close(run(problem).double(), expected(problem), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("tile_tokens", "edge_tokens"), [(16, 16), (64, 16)])
@pytest.mark.parametrize("rows", [16, 32])
def test_no_size_of_the_tiles_changes_the_answer(
    device: torch.device, rows: int, tile_tokens: int, edge_tokens: int
) -> None:
    tuning = PrefillTuning(rows, tile_tokens, edge_tokens, num_warps=4, num_stages=2)
    for window in (None, 1, 30):
        problem = drawn(UNEVEN, window=window, device=device)
        check(problem, run(problem, tuning))


@pytest.mark.parametrize("window", [None, 20])
def test_the_diagonal_crosses_a_tile_of_keys_anywhere(device: torch.device, window: int | None) -> None:
    rows = [(3, 3 + prefix) for prefix in range(SMALL.tile_tokens + 2)]
    problem = drawn(rows, heads=1, kv_heads=1, head_dim=16, window=window, device=device)
    check(problem, run(problem))


def test_a_window_of_several_tiles_begins_in_one_anywhere(device: torch.device) -> None:
    rows = [(2, 100 + prefix) for prefix in range(SMALL.edge_tokens + 1)]
    problem = drawn(rows, heads=1, kv_heads=1, head_dim=16, window=3 * SMALL.tile_tokens, device=device)
    check(problem, run(problem))


def test_two_poisons_give_equal_bits(device: torch.device) -> None:
    for window in (None, 19):
        nan, large = (drawn(UNEVEN, poison=poison, window=window, device=device) for poison in (float("nan"), 1e30))
        assert torch.equal(run(nan), run(large))


def test_what_stands_in_unused_table_entries_changes_nothing(device: torch.device) -> None:
    answers = [run(drawn(UNEVEN, unused=unused, device=device)) for unused in (-1, 2**31 - 1, -(2**31))]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("window", [None, 1, 20])
def test_a_prompt_in_chunks_gives_what_it_gives_whole(device: torch.device, window: int | None) -> None:
    whole = drawn([(50, 50)], heads=2, kv_heads=1, window=window, pads=0, device=device)
    want = run(whole)
    for cuts in ([0, 40, 50], [0, 1, 17, 32, 33, 49, 50], [0, 16, 48, 50]):
        for begin, end in pairwise(cuts):
            chunk = replace(
                whole,
                query=whole.query[begin:end],
                context_lens=torch.full_like(whole.context_lens, end),
                cu_seqlens=torch.tensor([begin, end], dtype=torch.int32, device=device),
            )
            torch.testing.assert_close(run(chunk), want[begin:end], rtol=1e-5, atol=1e-6)


@given(cut=st.integers(1, 39), window=st.none() | st.integers(1, 45), block_size=st.sampled_from([3, 16]))
@settings(max_examples=EXAMPLES // 6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_prompt_cut_anywhere_is_what_the_definition_says_of_it_whole(
    device: torch.device, cut: int, window: int | None, block_size: int
) -> None:
    whole = drawn([(40, 40)], heads=2, kv_heads=1, window=window, block_size=block_size, pads=0, device=device)
    # Both chunks in one batch: the first one's context stops where the second one's queries begin.
    both = replace(
        whole,
        block_tables=whole.block_tables.repeat(2, 1),
        context_lens=torch.tensor([cut, 40], dtype=torch.int32, device=device),
        cu_seqlens=torch.tensor([0, cut, 40], dtype=torch.int32, device=device),
    )
    out = run(both)
    check(both, out)
    check(whole, out)


def test_a_sequence_alone_gives_the_bits_that_it_gives_in_a_batch(device: torch.device) -> None:
    together = drawn(UNEVEN, device=device)
    batch, starts = run(together), together.cu_seqlens.tolist()
    for place, (start, stop) in enumerate(pairwise(starts)):
        alone = replace(
            together,
            query=together.query[start:stop],
            block_tables=together.block_tables[place : place + 1],
            context_lens=together.context_lens[place : place + 1],
            cu_seqlens=together.cu_seqlens[place : place + 2],
        )
        assert torch.equal(run(alone), batch[start:stop])


def test_more_sequences_than_are_looked_at_at_once(device: torch.device) -> None:
    counts = [(place % 3, place % 7 + place % 3) for place in range(135)]
    problem = drawn(counts, heads=1, kv_heads=1, head_dim=16, device=device)
    check(problem, run(problem))


def test_one_query_token_each_is_what_decode_gives(device: torch.device) -> None:
    problem = drawn([(1, 40), (1, 1), (1, 90)], pads=0, device=device)
    decoded = torch.empty_like(problem.query)
    paged_decode(*problem.inputs[:5], problem.scale, decoded)
    torch.testing.assert_close(run(problem), decoded, rtol=1e-5, atol=1e-6)


def test_sequences_without_queries_or_without_context_and_an_empty_batch(device: torch.device) -> None:
    problem = drawn([(0, 0), (5, 5), (0, 30), (0, 0), (4, 20), (0, 7)], device=device)
    check(problem, run(problem))
    padded = drawn([(3, 0), (5, 9), (1, 0)], device=device)
    out = run(padded)
    assert not out[:3].any()
    assert not out[8:].any()
    check(padded, out)
    assert run(drawn([], device=device)).shape == (0, 4, 32)
    assert run(drawn([(0, 0)], pads=0, device=device)).shape == (0, 4, 32)


def test_strides_of_every_kind(device: torch.device) -> None:
    problem = drawn(UNEVEN, heads=6, kv_heads=3, device=device)
    apart = [torch.stack([index, index], 1)[:, 0] for index in (problem.context_lens, problem.cu_seqlens)]
    # Heads before blocks in memory, as the engine has it; keys and values not alike.
    heads_first = problem.key_cache.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    other = replace(
        problem,
        query=problem.query.transpose(0, 1).contiguous().transpose(0, 1),
        key_cache=heads_first,
        value_cache=problem.value_cache.transpose(1, 2).contiguous().transpose(1, 2),
        block_tables=problem.block_tables.T.contiguous().T,
        context_lens=apart[0],
        cu_seqlens=apart[1],
    )
    assert torch.equal(run(other), run(problem))


def test_tiles_follow_the_bytes_of_a_head_and_float32_has_small_ones() -> None:
    of = [prefill_tuning_for(size, torch.bfloat16) for size in (16, 64, 80, 128, 256)]
    assert [tuning.tile_tokens for tuning in of] == [64, 64, 64, 64, 32]
    assert prefill_tuning_for(80, torch.float16) == prefill_tuning_for(128, torch.bfloat16)
    assert prefill_tuning_for(256, torch.float32).rows < 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: {"query": p.query[:, :3]}, "3 query heads are no multiple of 2 KV heads"),
        (lambda p: {"query": p.query[0]}, r"need \[tokens, heads, head_dim\]"),
        (lambda p: {"query": p.query.half()}, "float16, torch.float32: need one of"),
        (lambda p: {"query": p.query.repeat(1, 1, 9), "key_cache": p.key_cache.repeat(1, 1, 1, 9)}, "do not go with"),
        (lambda p: {"value_cache": p.value_cache[:1]}, "do not go with a query"),
        (lambda p: {"block_tables": p.block_tables.long()}, "block_tables is .* of torch.int64: need int32"),
        (lambda p: {"block_tables": p.block_tables[:1]}, "block_tables is .* for 2 sequences"),
        (lambda p: {"context_lens": p.context_lens[0]}, "context_lens is .* for 0 sequences|block_tables"),
        (lambda p: {"cu_seqlens": p.cu_seqlens[:2]}, "cu_seqlens is .* for 2 sequences and the end of the last"),
        (lambda p: {"scale": 0.0}, "scale must be above 0, got 0.0"),
        (lambda p: {"scale": float("nan")}, "scale must be above 0, got nan"),
        (lambda p: {"window": 0}, "window must be at least 1, got 0"),
        (
            lambda p: {"key_cache": p.key_cache.transpose(1, 3).contiguous().transpose(1, 3)},
            "last dimension of key_cache",
        ),
    ],
)
def test_a_refused_call_says_why_and_writes_nothing(device: torch.device, change, said: str) -> None:  # type: ignore[no-untyped-def]
    problem = drawn([(5, 9), (9, 9)], device=device)
    names = ("query", "key_cache", "value_cache", "block_tables", "context_lens", "cu_seqlens")
    given = dict(zip(names, problem.inputs, strict=True)) | {"scale": 1.0} | change(problem)
    out = torch.full_like(given["query"], 5.0)
    with pytest.raises(ValueError, match=said):
        paged_prefill(**given, out=out)
    assert bool((out == 5).all())


def test_heads_of_more_than_256_numbers_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="head_dim must be 1 to 256, got 257"):
        run(drawn([(2, 2)], head_dim=257, device=device))


@pytest.mark.gpu
def test_a_graph_follows_lengths_that_change() -> None:
    device = torch.device("cuda")
    long = drawn([(300, 700), (3, 3), (90, 90), (200, 250)], heads=8, head_dim=64, dtype=torch.float16, device=device)
    lens, starts, out = long.context_lens.clone(), long.cu_seqlens.clone(), torch.empty_like(long.query)
    paged_prefill(*long.inputs[:4], lens, starts, long.scale, out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        paged_prefill(*long.inputs[:4], lens, starts, long.scale, out)
    for counts in ([300, 3, 90, 200], [1, 1, 1, 1], [0, 3, 0, 250], [500, 3, 60, 10]):
        starts.copy_(torch.tensor([0, *counts]).cumsum(0))
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        check(replace(long, cu_seqlens=starts), out[: sum(counts)])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_prompts_of_thousands_of_tokens_give_equal_bits_in_a_hundred_runs(
    dtype: torch.dtype, repeats: Callable[[int], range]
) -> None:
    rows = [(1500, 1500), (129, 3000), (64, 64)]
    problem = drawn(rows, heads=8, head_dim=128, dtype=dtype, device=torch.device("cuda"))
    first = run(problem, None)
    check(problem, first)
    assert all(torch.equal(run(problem, None), first) for _ in repeats(100))
