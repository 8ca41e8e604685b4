"""Decode behind a common prefix: what the definition says of whole contexts, however prefix and suffixes are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from reference_impl.attention.cascade_decode import cascade_decode
from reference_impl.attention.cascade_work import CascadeWork
from reference_impl.attention.merge import Begun
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.prefill_tuning import PrefillTuning
from tests.reference_impl.attention import decode_problems
from tests.reference_impl.attention.cascade_problems import Problem, check, drawn, run, work_for
from tests.reference_impl.attention.guards import ERRORS

pytestmark = pytest.mark.usefixtures("one_thread")

# On a GPU each shape is compiled anew, which takes seconds.
EXAMPLES = 16 if torch.cuda.is_available() else 40
TYPES = [torch.float32, torch.float16, torch.bfloat16]
PREFIX = 96
LENGTHS = [PREFIX + 40, 0, PREFIX, PREFIX + 1, PREFIX + 100, PREFIX - 30]
"""Behind the prefix, nowhere, at its end, and within it."""


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, object]:
    kv_heads, block_size = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 5, 8, 16, 32, 100, 256]))
    blocks = st.builds(lambda count, off: max(0, count * block_size + off), st.integers(0, 3), st.integers(-1, 1))
    prefix = draw(st.one_of(blocks.filter(lambda size: size <= 260), st.integers(0, 150)))
    length = st.one_of(st.integers(-2, 2).map(lambda off: max(0, prefix + off)), st.integers(0, 100 + prefix))
    return {
        "prefix_tokens": prefix,
        "lengths": draw(st.lists(length, min_size=1, max_size=6)),
        "heads": kv_heads * draw(st.sampled_from([1, 2, 3, 4, 7, 8])),
        "kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([16, 32, 64, 80, 96, 128, 256, 5])),
        "block_size": block_size,
        "dtype": draw(st.sampled_from(TYPES)),
        "seed": draw(st.integers(0, 1000)),
        "shuffle": draw(st.integers(0, 1000)),
    }


@given(shape=shapes(), programs=st.integers(1, 24))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_the_definition_says_for_any_shape_type_prefix_and_number_of_programs(
    device: torch.device, shape: dict[str, object], programs: int
) -> None:
    problem = drawn(**shape, device=device)  # type: ignore[arg-type]
    check(problem, run(problem, work_for(problem, programs=programs)))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_call_without_work_makes_its_own(device: torch.device, dtype: torch.dtype) -> None:
    problem = drawn(PREFIX, LENGTHS, dtype=dtype, device=device)
    check(problem, run(problem))


@pytest.mark.parametrize("programs", [1, 3, 40])
@pytest.mark.parametrize("prefix", [1, 15, 16, 17, 100])
def test_a_prefix_of_any_length_in_any_number_of_pieces(device: torch.device, prefix: int, programs: int) -> None:
    problem = drawn(prefix, [prefix + 20, prefix, prefix + 1], device=device)
    check(problem, run(problem, work_for(problem, programs=programs)))


def test_it_is_what_plain_decode_gives_on_the_same_tables(device: torch.device) -> None:
    for dtype in TYPES:
        problem = drawn(PREFIX, LENGTHS, whole=True, dtype=dtype, device=device)
        plain = torch.empty_like(problem.query)
        paged_decode(*problem.tensors[:3], *problem.tensors[4:], problem.scale, plain)
        missed = float((run(problem).double() - plain.double()).norm() / plain.double().norm())
        assert missed <= 2 * ERRORS[dtype]


def test_without_a_prefix_it_is_plain_decode_bit_for_bit(device: torch.device) -> None:
    problem = drawn(0, [40, 0, 1, 150], device=device)
    work = work_for(problem, programs=7)
    plain = decode_problems.Problem(*problem.tensors[:3], *problem.tensors[4:], problem.scale)
    alike = decode_problems.work_for(plain, programs=7)
    assert torch.equal(run(problem, work), decode_problems.run(plain, alike))


def test_two_poisons_give_equal_bits(device: torch.device) -> None:
    nan, large = (drawn(PREFIX - 7, LENGTHS, poison=poison, device=device) for poison in (float("nan"), 1e30))
    assert torch.equal(run(nan, work_for(nan, programs=9)), run(large, work_for(large, programs=9)))


def test_what_stands_in_unused_entries_and_in_the_prefixs_place_changes_nothing(device: torch.device) -> None:
    lengths = [40, 0, 32, 60]
    answers = [run(drawn(32, lengths, unused=unused, device=device)) for unused in (-1, 2**31 - 1, -(2**31))]
    answers.append(run(drawn(32, lengths, whole=True, device=device)))
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])


def test_where_blocks_lie_changes_no_bit(device: torch.device) -> None:
    answers = []
    for shuffle in (0, 1):
        problem = drawn(PREFIX, LENGTHS, shuffle=shuffle, device=device)
        answers.append(run(problem, work_for(problem, programs=9)))
    assert torch.equal(*answers)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_without_context_gives_zeros_whatever_its_query_holds(device: torch.device) -> None:
    problem = drawn(PREFIX, [0, PREFIX + 3, 0], device=device)
    problem.query[0] = float("nan")
    problem.query[2] = float("inf")
    out = run(problem, work_for(problem, programs=6))
    assert not out[0].any()
    assert not out[2].any()
    check(problem, out)


def test_one_sequence_alone_and_none_at_all(device: torch.device) -> None:
    alone = drawn(PREFIX, [PREFIX + 9], device=device)
    check(alone, run(alone, work_for(alone, programs=11)))
    assert run(drawn(PREFIX, [], device=device)).shape == (0, 4, 32)


def test_all_contexts_end_with_the_prefix(device: torch.device) -> None:
    problem = drawn(PREFIX, [PREFIX] * 5, device=device)
    check(problem, run(problem, work_for(problem, programs=20)))


@pytest.mark.parametrize(("heads", "kv_heads"), [(14, 2), (4, 4), (37, 1)])
def test_more_rows_than_a_tile_has(device: torch.device, heads: int, kv_heads: int) -> None:
    """Groups that leave rows of a tile empty, of one head, and larger than a tile."""
    lengths = [48 + place for place in range(0, 36, 6)]
    problem = drawn(48, lengths, heads=heads, kv_heads=kv_heads, head_dim=16, device=device)
    check(problem, run(problem, work_for(problem, programs=40)))


def test_a_sequence_that_ends_early_masks_its_own_rows_alone(device: torch.device) -> None:
    """All in one tile of rows: its short context must not cost the others theirs."""
    problem = drawn(PREFIX, [3, PREFIX + 50, 40, PREFIX], heads=2, device=device)
    check(problem, run(problem, work_for(problem, programs=2)))


def test_more_pieces_than_are_added_at_once(device: torch.device) -> None:
    problem = drawn(400, [400, 433, 700], heads=2, kv_heads=1, device=device)
    work = work_for(problem, programs=25)
    assert work.begun is not None
    assert len(work.begun.out) == 25
    check(problem, run(problem, work))


def test_work_serves_layer_after_layer_step_after_step_and_prefix_after_prefix(device: torch.device) -> None:
    first = drawn(64, [70, 130], seed=1, device=device)
    work = work_for(first, programs=10)
    check(first, run(first, work))
    layer = drawn(64, [70, 130], seed=2, device=device)
    check(layer, run(layer, work))
    for prefix, lengths in ((64, [71, 160]), (100, [100, 120]), (0, [0, 40]), (16, [30, 30])):
        step = drawn(prefix, lengths, seed=3, device=device)
        check(step, run(step, work.refresh(step.context_lens, prefix)))


def test_strides_of_every_kind(device: torch.device) -> None:
    problem = drawn(PREFIX, [PREFIX + 20, PREFIX + 50], heads=6, kv_heads=3, device=device)
    doubled = {
        "context_lens": torch.stack([problem.context_lens, problem.context_lens], 1)[:, 0],
        "prefix_table": torch.stack([problem.prefix_table, problem.prefix_table], 1)[:, 0],
    }
    # Heads before tokens in memory, as some engines have it, of keys alone.
    keys = problem.key_cache.transpose(1, 2).contiguous().transpose(1, 2)
    query = problem.query.transpose(0, 1).contiguous().transpose(0, 1)
    other = replace(problem, query=query, key_cache=keys, block_tables=problem.block_tables.T.contiguous().T, **doubled)
    assert torch.equal(run(other, work_for(problem, programs=6)), run(problem, work_for(problem, programs=6)))


def test_bug_30_offsets_in_32_bits_wrap_in_a_prefix_behind_2_31_numbers(device: torch.device) -> None:
    block = (256, 8, 256)
    blocks = 2**31 // (2 * 256 * 8 * 256) + 4
    # The memory in between is never touched.
    cache = torch.empty(blocks, 2, *block, dtype=torch.float16, device=device)
    assert cache.numel() > 2**31
    for place in (blocks - 1, blocks - 2):
        cache[place] = torch.randn(2, *block, device=device).half()
    query = torch.randn(2, 8, 256, device=device).half()
    out, plain = torch.empty_like(query), torch.empty_like(query)
    table = torch.tensor([blocks - 1], dtype=torch.int32, device=device)
    tables = torch.tensor([[blocks - 1, blocks - 2], [blocks - 1, -1]], dtype=torch.int32, device=device)
    lens = torch.tensor([260, 256], dtype=torch.int32, device=device)
    cascade_decode(query, cache[:, 0], cache[:, 1], table, 256, tables, lens, 1 / 16, out)
    paged_decode(query, cache[:, 0], cache[:, 1], tables, lens, 1 / 16, plain)
    torch.testing.assert_close(out, plain, rtol=4e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: {"query": p.query[:, :3]}, "3 query heads are no multiple of 2 KV heads"),
        (lambda p: {"query": p.query.half()}, "float16, torch.float32: need one of"),
        (lambda p: {"block_tables": p.block_tables[:1]}, "block_tables is .* for 2 sequences"),
        (lambda p: {"prefix_table": p.prefix_table.long()}, "prefix_table is .* of torch.int64: need int32"),
        (lambda p: {"prefix_table": p.prefix_table[None]}, "prefix_table is .* for the blocks of a prefix"),
        (lambda p: {"prefix_tokens": -1}, "prefix_tokens is -1: need 0 to the 48 of 3 blocks of 16"),
        (lambda p: {"prefix_tokens": 49}, "prefix_tokens is 49: need 0 to the 48"),
        (lambda p: {"scale": 0.0}, "scale must be above 0"),
        (lambda p: {"work": work_for(drawn(32, [5], device=p.query.device))}, r"work list for .*\(1, 4, 2, 32"),
        (
            lambda p: {"work": work_for(p).refresh(p.context_lens, 16)},
            "32 tokens was asked for, and the work cut for 16",
        ),
    ],
)
def test_a_refused_call_says_why_and_writes_nothing(device: torch.device, change, said: str) -> None:  # type: ignore[no-untyped-def]
    problem = drawn(32, [33, 49], device=device)
    names = (
        "query",
        "key_cache",
        "value_cache",
        "prefix_table",
        "prefix_tokens",
        "block_tables",
        "context_lens",
        "scale",
    )
    given = dict(zip(names, problem.inputs, strict=True)) | change(problem)
    out = torch.full_like(given["query"], 5.0)
    with pytest.raises(ValueError, match=said):
        cascade_decode(**given, out=out)
    assert bool((out == 5).all())


def test_plain_decode_refuses_a_work_list_that_begins_behind_a_prefix_and_pieces_of_another_batch(
    device: torch.device,
) -> None:
    problem = drawn(32, [33, 49], device=device)
    given, out = (*problem.tensors[:3], *problem.tensors[4:], problem.scale), torch.full_like(problem.query, 5.0)
    work = work_for(problem)
    with pytest.raises(ValueError, match="begins at token 32, and decode is to go on at 0"):
        paged_decode(*given, out, work=work.suffixes)
    assert work.begun is not None
    other = Begun(32, work.begun.out[:, :1], work.begun.lse[:, :1])
    with pytest.raises(ValueError, match=r"begun.out is \(2, 1, 4, 32\)"):
        paged_decode(*given, out, begun=other)
    assert bool((out == 5).all())


def test_few_rows_get_small_tiles_and_many_those_of_prefill() -> None:
    def tuning(batch: int, dtype: torch.dtype = torch.bfloat16) -> PrefillTuning:
        return CascadeWork(batch, 4, 1, 128, dtype, torch.device("cpu")).tuning

    assert (tuning(1).rows, tuning(8).rows, tuning(16).rows, tuning(17).rows) == (16, 32, 64, 128)
    assert tuning(16).num_warps == 4
    assert tuning(200, torch.float32).rows == 32


@pytest.mark.gpu
def test_a_graph_holds_the_cut_and_both_kernels_and_follows_lengths_that_change() -> None:
    device = torch.device("cuda")
    long = drawn(300, [700, 303, 390, 550], heads=8, head_dim=64, dtype=torch.float16, device=device)
    work, out, lens = work_for(long, tuning=None), torch.empty_like(long.query), long.context_lens.clone()
    given = (*long.inputs[:-2], lens, long.scale)

    def step() -> None:
        work.refresh(lens, 300)
        cascade_decode(*given, out, work=work)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in ([700, 303, 390, 550], [301, 0, 10, 550], [0, 0, 0, 0], [650, 300, 299, 317]):
        plain = drawn(300, [700, 303, 390, 550], whole=False, heads=8, head_dim=64, dtype=torch.float16, device=device)
        lens.copy_(torch.tensor(lengths, dtype=torch.int32))
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        fresh = torch.full_like(out, float("nan"))
        cascade_decode(*plain.inputs[:-2], lens, plain.scale, fresh)
        torch.testing.assert_close(out, fresh, rtol=4e-3, atol=1e-3)
        assert not out[lens == 0].any()
        work.check_invariants()


@pytest.mark.gpu
def test_a_thousand_runs_give_equal_bits(repeats: Callable[[int], range]) -> None:
    lengths = [5000, 1100, 1030, 2000]
    problem: Problem = drawn(1024, lengths, heads=8, head_dim=128, dtype=torch.bfloat16, device=torch.device("cuda"))
    work, out = work_for(problem, tuning=None), torch.empty_like(problem.query)
    first = run(problem, work)
    check(problem, first)
    for _ in repeats(1000):
        out.fill_(float("nan"))
        cascade_decode(*problem.inputs, out, work=work)
        assert torch.equal(out, first)
