"""The kernels over a cache of 8-bit floats: the oracle's answer over what the cache stands for, as tight as without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from reference_impl.attention import reference
from reference_impl.attention.cascade_decode import cascade_decode
from reference_impl.attention.fp8 import FP8, KVScales, as_bytes, quantised
from reference_impl.attention.paged_decode import paged_decode
from reference_impl.attention.paged_prefill import paged_prefill
from reference_impl.attention.store_kv import store_kv
from reference_impl.attention.work_list import WorkList, tuning_for
from tests.reference_impl.attention import cascade_problems, decode_problems, prefill_problems
from tests.reference_impl.attention.fp8_problems import LARGEST, NAN, in_8_bits, keywords, looked_at, scales_for
from tests.reference_impl.attention.guards import check_near, guarded

pytestmark = pytest.mark.usefixtures("one_thread")

ON_GPU = torch.cuda.is_available()
# On a GPU each shape is compiled anew, which takes seconds.
EXAMPLES = 8 if ON_GPU else 10
TYPES = [torch.float32, torch.float16, torch.bfloat16]
UNEVEN = [40, 0, 1, 150, 16]
some = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def decoded(problem: decode_problems.Problem, scales: KVScales, work: WorkList | None = None) -> Tensor:
    """Decode's answer, after a look at what must hold whatever it is."""
    out = guarded(
        looked_at(problem.inputs),
        problem.query,
        lambda out: paged_decode(
            *problem.inputs, problem.scale, out, window=problem.window, work=work, **keywords(scales)
        ),
    )
    if work is not None:
        work.check_invariants()
    return out


def prefilled(problem: prefill_problems.Problem, scales: KVScales) -> Tensor:
    """Prefill's."""
    wishes = {"window": problem.window, "tuning": prefill_problems.SMALL, **keywords(scales)}
    return guarded(
        looked_at(problem.inputs),
        problem.query,
        lambda out: paged_prefill(*problem.inputs, problem.scale, out, **wishes),
        problem.tokens,
    )


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, object]:
    kv_heads = draw(st.integers(1, 3))
    return {
        "heads": kv_heads * draw(st.sampled_from([1, 2, 3, 8])),
        "kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([32, 64, 80, 128, 5])),
        "block_size": draw(st.sampled_from([1, 3, 16, 32])),
        "dtype": draw(st.sampled_from(TYPES)),
        "seed": draw(st.integers(0, 1000)),
        "shuffle": draw(st.integers(0, 1000)),
    }


windows = st.none() | st.integers(1, 200)
lengths = st.lists(st.integers(0, 120), min_size=1, max_size=4)


@given(shape=shapes(), lengths=lengths, window=windows, programs=st.integers(1, 24))
@some
def test_decode_is_what_the_definition_says_of_what_the_cache_stands_for(
    device: torch.device, shape: dict[str, object], lengths: list[int], window: int | None, programs: int
) -> None:
    wide = decode_problems.drawn(lengths, **shape, window=window, device=device)  # type: ignore[arg-type]
    scales = scales_for(wide.key_cache.shape[2], device)
    problem = in_8_bits(wide, scales)
    out = decoded(problem, scales, decode_problems.work_for(problem, programs=programs))
    check_near(out, reference.paged_decode(*problem.inputs, problem.scale, window=window, **keywords(scales)))


@given(
    shape=shapes(),
    rows=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 40)), min_size=1, max_size=2),
    window=windows,
)
@some
def test_prefill_is_what_the_definition_says_of_what_the_cache_stands_for(
    device: torch.device, shape: dict[str, object], rows: list[tuple[int, int]], window: int | None
) -> None:
    pairs = [(queries, queries + before) for queries, before in rows]
    wide = prefill_problems.drawn(pairs, **shape, window=window, device=device)  # type: ignore[arg-type]
    scales = scales_for(wide.key_cache.shape[2], device)
    problem = in_8_bits(wide, scales)
    want = reference.paged_prefill(
        problem.query[: problem.tokens],
        *problem.inputs[1:4],
        problem.cu_seqlens,
        problem.context_lens,
        problem.scale,
        window=window,
        **keywords(scales),
    )
    check_near(prefilled(problem, scales), want)


@given(shape=shapes(), blocks=st.integers(0, 3), own=lengths, programs=st.integers(1, 24))
@some
def test_decode_behind_a_common_prefix_is_that_of_the_whole_contexts(
    device: torch.device, shape: dict[str, object], blocks: int, own: list[int], programs: int
) -> None:
    prefix = blocks * int(shape["block_size"])  # type: ignore[call-overload]
    # A first sequence that ends within the prefix, and one without anything.
    contexts = [prefix // 2, 0, *(prefix + length for length in own)]
    drawn = cascade_problems.drawn(prefix, contexts, **shape, whole=True, device=device)  # type: ignore[arg-type]
    scales = scales_for(drawn.key_cache.shape[2], device)
    problem = in_8_bits(drawn, scales)
    work = cascade_problems.work_for(problem, programs=programs)
    out = guarded(
        looked_at(problem.tensors),
        problem.query,
        lambda out: cascade_decode(*problem.inputs, out, work=work, **keywords(scales)),
    )
    whole = (problem.key_cache, problem.value_cache, problem.block_tables, problem.context_lens)
    check_near(out, reference.paged_decode(problem.query, *whole, problem.scale, **keywords(scales)))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_calls_without_a_work_list_and_other_tiles_than_a_test_has(device: torch.device, dtype: torch.dtype) -> None:
    wide = decode_problems.drawn(UNEVEN, head_dim=128, dtype=dtype, window=33, device=device)
    scales = scales_for(2, device)
    problem = in_8_bits(wide, scales)
    want = reference.paged_decode(*problem.inputs, problem.scale, window=33, **keywords(scales))
    check_near(decoded(problem, scales), want)


def test_the_formats_nan_and_its_largest_number_in_slots_of_nobody_give_equal_bits(device: torch.device) -> None:
    scales = scales_for(2, device)
    answers = []
    for poison in (NAN, LARGEST):
        decode = in_8_bits(decode_problems.drawn(UNEVEN, device=device), scales, poison)
        prefill = in_8_bits(prefill_problems.drawn([(5, 40), (1, 1), (9, 9)], device=device), scales, poison)
        work = decode_problems.work_for(decode, programs=7)
        answers.append((decoded(decode, scales, work), prefilled(prefill, scales)))
    for nan, largest in zip(*answers, strict=True):
        assert nan.isfinite().all()
        assert torch.equal(nan, largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_queries_of_any_size_keep_their_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Inside, bfloat16 queries become float16, which knows no number above 65,504 and few below 2^-14."""
    scales = scales_for(2, device)
    decode = in_8_bits(decode_problems.drawn([40, 0, 1], dtype=dtype, device=device), scales)
    prefill = in_8_bits(prefill_problems.drawn([(5, 20)], dtype=dtype, device=device), scales)
    plain = decoded(decode, scales), prefilled(prefill, scales)
    for power in (2.0**60, 2.0**-60):
        moved = [replace(one, query=one.query * power, scale=one.scale / power) for one in (decode, prefill)]
        assert torch.equal(decoded(moved[0], scales), plain[0])  # type: ignore[arg-type]
        assert torch.equal(prefilled(moved[1], scales), plain[1])  # type: ignore[arg-type]
    blank = replace(decode, query=torch.zeros_like(decode.query))
    want = reference.paged_decode(*blank.inputs, blank.scale, **keywords(scales))
    check_near(decoded(blank, scales), want)


def test_a_nan_in_a_slot_of_the_sequence_does_show(device: torch.device) -> None:
    scales = scales_for(2, device)
    for half in ("key_cache", "value_cache"):
        problem = in_8_bits(decode_problems.drawn([40], device=device), scales)
        as_bytes(getattr(problem, half))[int(problem.block_tables[0, 1]), 3] = NAN
        out = torch.empty_like(problem.query)
        paged_decode(*problem.inputs, problem.scale, out, **keywords(scales))
        assert out.isnan().any(), f"a NaN in {half} was read as a number"


def test_a_scale_of_all_heads_is_one_number_spread_out(device: torch.device) -> None:
    one = torch.tensor([0.02], device=device).expand(2)
    problem = in_8_bits(decode_problems.drawn(UNEVEN, device=device), KVScales(one, one))
    spread = decoded(problem, KVScales(one, one))
    assert torch.equal(spread, decoded(problem, KVScales(one.contiguous(), one.contiguous())))


@given(
    slots=st.lists(st.integers(0, 59), max_size=40, unique=True),
    skipped=st.sets(st.integers(0, 39)),
    kv_heads=st.integers(1, 5),
    head_dim=st.sampled_from([1, 5, 32, 80]),
    dtype=st.sampled_from(TYPES),
    spread=st.floats(0.1, 6.0),
    seed=st.integers(0, 1000),
)
@some
def test_what_is_stored_are_the_bits_that_torch_makes_of_it(
    device: torch.device,
    slots: list[int],
    skipped: set[int],
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    spread: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mapping = torch.tensor([-1 if at in skipped else slot for at, slot in enumerate(slots)], dtype=torch.int64)
    size = (len(slots), 2, kv_heads, head_dim)
    # From far below the smallest step to far above the largest number.
    sizes = torch.exp(spread * torch.randn(size, generator=generator))
    fused = (sizes * torch.randn(size, generator=generator)).to(device, dtype)
    scales = scales_for(kv_heads, device, seed)
    ours = torch.randint(0, 127, (5, 2, 12, kv_heads, head_dim), dtype=torch.uint8, generator=generator).to(device)
    theirs = ours.clone()
    for caches, store in ((ours.view(FP8), store_kv), (theirs.view(FP8), reference.store_kv)):
        store(fused[:, 0], fused[:, 1], caches[:, 0], caches[:, 1], mapping.to(device), **keywords(scales))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_is_too_large_is_the_largest_a_middle_goes_to_even_and_nan_stays_nan(
    device: torch.device, dtype: torch.dtype
) -> None:
    numbers = [448, 464, 480, 1e4, -1e4, float("inf"), -float("inf"), 17, 19, 2**-10, 3 * 2**-10, 2**-11, -0.0, 2**-7]
    given = torch.tensor([*numbers, float("nan")], dtype=dtype, device=device).view(-1, 1, 1)
    caches = [torch.zeros(1, 16, 1, 1, dtype=FP8, device=device) for _ in range(2)]
    one = torch.ones(1, device=device)
    slots = torch.arange(len(given), device=device)
    store_kv(given, given, *caches, slots, k_scale=one, v_scale=one)
    for cache in caches:
        stored = cache.flatten()[: len(given)].float()
        assert stored[:-1].tolist() == [448, 448, 448, 448, -448, 448, -448, 16, 20, 0, 2**-8, 0, 0, 2**-7]
        assert stored[-1].isnan()
        assert torch.equal(as_bytes(cache).flatten()[:14], as_bytes(quantised(given, one)).flatten()[:14])


def test_a_refused_call_says_why_and_writes_nothing(device: torch.device) -> None:
    problem = in_8_bits(decode_problems.drawn([20, 3], device=device), scales_for(2, device))
    one = torch.ones(2, device=device)
    for change, scales, said in (
        ({}, {}, "needs k_scale, one float32 for each of 2 KV heads"),
        ({}, {"k_scale": one}, "needs v_scale"),
        ({}, {"k_scale": one[:1], "v_scale": one}, r"k_scale is \(1,\)"),
        ({"value_cache": problem.value_cache.float()}, {"k_scale": one, "v_scale": one}, "need one of float32"),
        ({"key_cache": problem.key_cache.float()}, {}, "need one of float32"),
    ):
        other = replace(problem, **change)
        out = torch.full_like(problem.query, 7.0)
        with pytest.raises(ValueError, match=said):
            paged_decode(*other.inputs, other.scale, out, **scales)
        assert (out == 7).all()
    key = torch.ones(3, 2, 32, device=device)
    caches, slots = [torch.zeros(1, 16, 2, 32, dtype=FP8, device=device) for _ in range(2)], torch.arange(3)
    for change, said in (
        ({}, "needs k_scale"),
        ({"k_scale": one, "v_scale": one.double()}, "v_scale is"),
    ):
        with pytest.raises(ValueError, match=said):
            store_kv(key, key, *caches, slots.to(device), **change)
    with pytest.raises(ValueError, match=r"keys of torch\.float64 and values of torch\.float64 do not go"):
        store_kv(key.double(), key.double(), *caches, slots.to(device), k_scale=one, v_scale=one)
    assert not any(as_bytes(cache).any() for cache in caches)


def test_a_tile_is_so_many_bytes_and_of_8_bits_twice_as_many_tokens() -> None:
    wide, narrow = tuning_for(128, torch.bfloat16), tuning_for(128, torch.bfloat16, FP8)
    assert narrow.tile_tokens == 2 * wide.tile_tokens
    assert tuning_for(128, torch.float32, FP8) == tuning_for(128, torch.float32)
    assert tuning_for(128, torch.float16, torch.float16) == tuning_for(128, torch.float16)


@pytest.mark.gpu
def test_a_graph_holds_store_and_decode_and_reads_scales_when_it_is_replayed() -> None:
    device = torch.device("cuda")
    scales = scales_for(2, device)
    wide = decode_problems.drawn([700, 3, 90], heads=8, head_dim=64, dtype=torch.bfloat16, device=device)
    problem = in_8_bits(wide, scales)
    work, out = decode_problems.work_for(problem), torch.empty_like(problem.query)
    key = torch.randn(1, 2, 64, device=device).bfloat16()
    slot = problem.block_tables[1, :1].long() * 16 + 2

    def step() -> None:
        store_kv(key, key, problem.key_cache, problem.value_cache, slot, **keywords(scales))
        work.refresh(problem.context_lens)
        paged_decode(*problem.inputs, problem.scale, out, work=work, **keywords(scales))

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for times in (1.0, 4.0):
        scales.k.mul_(times)
        key.normal_()
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        check_near(out, reference.paged_decode(*problem.inputs, problem.scale, **keywords(scales)))
