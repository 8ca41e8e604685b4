"""The decode kernel: what the definition says, whatever lies around a sequence and however its work is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.work_list import WorkList
from tests.reference_impl.attention.decode_problems import Problem, check, drawn, run, with_window, work_for

pytestmark = pytest.mark.usefixtures("one_thread")

# On a GPU each shape is compiled anew, which takes seconds.
EXAMPLES = 24 if torch.cuda.is_available() else 80
TYPES = [torch.float32, torch.float16, torch.bfloat16]
UNEVEN = [40, 0, 1, 150, 16]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, object]:
    kv_heads, block_size = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 5, 8, 16, 32, 48, 100, 256]))
    edge = st.builds(lambda blocks, off: max(0, blocks * block_size + off), st.integers(0, 3), st.integers(-1, 1))
    length = st.one_of(edge.filter(lambda size: size <= 300), st.integers(0, 120))
    return {
        "lengths": draw(st.lists(length, min_size=1, max_size=5)),
        "heads": kv_heads * draw(st.sampled_from([1, 2, 3, 4, 7, 8, 12])),
        "kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([32, 64, 80, 96, 128, 256, 5])),
        "block_size": block_size,
        "dtype": draw(st.sampled_from(TYPES)),
        "window": draw(st.none() | st.integers(1, 200)),
        "seed": draw(st.integers(0, 1000)),
        "shuffle": draw(st.integers(0, 1000)),
    }


@given(shape=shapes(), programs=st.integers(1, 24))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_what_the_definition_says_for_any_shape_type_window_and_number_of_shares(
    device: torch.device, shape: dict[str, object], programs: int
) -> None:
    problem = drawn(**shape, device=device)  # type: ignore[arg-type]
    check(problem, run(problem, work_for(problem, programs=programs)))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_call_without_a_work_list_makes_its_own(device: torch.device, dtype: torch.dtype) -> None:
    problem = drawn(UNEVEN, dtype=dtype, window=33, device=device)
    check(problem, run(problem))


@pytest.mark.parametrize("block_size", [1, 15, 16, 17, 32, 48, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_blocks_of_any_size(device: torch.device, dtype: torch.dtype, block_size: int) -> None:
    lengths = [3 * block_size + 1, block_size, 70]
    for window in (None, 40):
        problem = drawn(lengths, block_size=block_size, dtype=dtype, window=window, device=device)
        check(problem, run(problem, work_for(problem, programs=11)))


@pytest.mark.parametrize("group", [1, 3, 8, 9, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_groups_of_any_size(device: torch.device, dtype: torch.dtype, group: int) -> None:
    problem = drawn(UNEVEN, heads=2 * group, dtype=dtype, device=device)
    check(problem, run(problem, work_for(problem, programs=7)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_poisons_give_equal_bits(device: torch.device, dtype: torch.dtype) -> None:
    large = 1e30 if dtype == torch.float32 else 6e4
    nan, huge = (drawn(UNEVEN, poison=poison, dtype=dtype, device=device) for poison in (float("nan"), large))
    assert torch.equal(run(nan, work_for(nan, programs=7)), run(huge, work_for(huge, programs=7)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_what_stands_in_unused_table_entries_changes_nothing(device: torch.device, dtype: torch.dtype) -> None:
    answers = [run(drawn(UNEVEN, unused=unused, dtype=dtype, device=device)) for unused in (-1, 2**31 - 1, -(2**31))]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_a_sequence_alone_gives_what_it_gives_in_a_batch_within_rounding(device: torch.device) -> None:
    together = drawn(UNEVEN, device=device)
    batch = run(together, work_for(together, programs=9))
    for row in range(len(UNEVEN)):
        alone = Problem(
            together.query[row : row + 1],
            together.key_cache,
            together.value_cache,
            together.block_tables[row : row + 1],
            together.context_lens[row : row + 1],
            together.scale,
        )
        torch.testing.assert_close(run(alone)[0], batch[row], rtol=1e-5, atol=1e-6)


def test_no_context_gives_zeros_and_an_empty_batch_does_nothing(device: torch.device) -> None:
    empty = drawn([0, 0, 0], device=device)
    assert not run(empty, work_for(empty)).any()
    assert run(drawn([], device=device)).shape == (0, 4, 32)


def test_a_work_list_serves_layer_after_layer_and_step_after_step(device: torch.device) -> None:
    first = drawn([30, 90], seed=1, device=device)
    work = work_for(first, programs=10)
    check(first, run(first, work))
    layer = drawn([30, 90], seed=2, device=device)
    check(layer, run(layer, work))
    grown = drawn([31, 200], seed=3, device=device)
    check(grown, run(grown, work.refresh(grown.context_lens)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strides_of_every_kind(device: torch.device, dtype: torch.dtype) -> None:
    problem = drawn([20, 50], heads=6, kv_heads=3, dtype=dtype, device=device)
    query = problem.query.transpose(0, 1).contiguous().transpose(0, 1)
    lens = torch.stack([problem.context_lens, problem.context_lens], 1)[:, 0]
    tables = problem.block_tables.T.contiguous().T
    # Heads before tokens in memory, as some engines have it.
    caches = [cache.transpose(1, 2).contiguous().transpose(1, 2) for cache in (problem.key_cache, problem.value_cache)]
    # Rows that begin where 16 bytes do not, keys and values each in their own way.
    odd = [torch.nn.functional.pad(cache, (0, more))[..., :-more] for cache, more in zip(caches, (1, 3), strict=True)]
    answer = run(problem, work_for(problem, programs=6))
    for pair in (caches, odd):
        other = Problem(query, *pair, tables, lens, problem.scale)
        assert torch.equal(run(other, work_for(problem, programs=6)), answer)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: {"query": p.query[:, :3]}, "3 query heads are no multiple of 2 KV heads"),
        (lambda p: {"query": p.query.half()}, "float16, torch.float32: need one of"),
        (lambda p: {"value_cache": p.value_cache[:1]}, "do not go with a query"),
        (lambda p: {"block_tables": p.block_tables.long()}, "block_tables is .* of torch.int64: need int32"),
        (lambda p: {"context_lens": p.context_lens[:1]}, "context_lens is .* for 2 sequences"),
        (
            lambda p: {"key_cache": p.key_cache.transpose(1, 3).contiguous().transpose(1, 3)},
            "last dimension of key_cache",
        ),
    ],
)
def test_a_refused_call_says_why_and_writes_nothing(device: torch.device, change, said: str) -> None:  # type: ignore[no-untyped-def]
    problem = drawn([5, 9], device=device)
    given = dict(
        zip(("query", "key_cache", "value_cache", "block_tables", "context_lens"), problem.inputs, strict=True)
    )
    given |= change(problem)
    out = torch.full_like(given["query"], 5.0)
    with pytest.raises(ValueError, match=said):
        paged_decode(**given, scale=1.0, out=out)
    assert bool((out == 5).all())


def test_a_work_list_for_another_batch_or_window_is_refused(device: torch.device) -> None:
    problem = drawn([5, 9], device=device)
    with pytest.raises(ValueError, match=r"a work list for .*\(2, 4, 2, 32"):
        run(problem, WorkList(3, 4, 2, 32, torch.float32, device))
    with pytest.raises(ValueError, match="window 4 was asked for"):
        run(with_window(problem, 4), work_for(problem))


@pytest.mark.gpu
def test_a_graph_holds_the_cut_and_the_kernel_and_follows_lengths_that_change() -> None:
    device = torch.device("cuda")
    long = drawn([700, 3, 90, 250], heads=8, head_dim=64, dtype=torch.float16, device=device)
    work, out = work_for(long), torch.empty_like(long.query)
    lens = long.context_lens.clone()

    def step() -> None:
        work.refresh(lens)
        paged_decode(*long.inputs[:4], lens, long.scale, out, work=work)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in ([700, 3, 90, 250], [1, 0, 0, 250], [0, 0, 0, 0], [650, 2, 1, 17]):
        lens.copy_(torch.tensor(lengths, dtype=torch.int32))
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        check(Problem(*long.inputs[:4], lens, long.scale), out)
        work.check_invariants()


@pytest.mark.gpu
def test_a_thousand_runs_give_equal_bits(repeats: Callable[[int], range]) -> None:
    problem = drawn([5000, 1, 300, 2000], heads=8, head_dim=128, dtype=torch.bfloat16, device=torch.device("cuda"))
    work, out = work_for(problem), torch.empty_like(problem.query)
    first = run(problem, work)
    for _ in repeats(1000):
        out.fill_(float("nan"))
        paged_decode(*problem.inputs, problem.scale, out, work=work)
        assert torch.equal(out, first)
