"""The oracle for attention, held against torch's own, against itself taken apart, and against what must not matter."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reference_impl.attention.reference import Partial, attention, gather, merge, paged_decode, paged_prefill, store_kv
from reference_impl.memory import BlockAllocator

pytestmark = pytest.mark.usefixtures("one_thread")

NAN = float("nan")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def torchs_own(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None) -> Tensor:
    """The same by another implementation: heads in front, KV heads written out, the mask as a mask."""
    group = query.shape[1] // key.shape[1]
    q = query.transpose(0, 1)
    k, v = (tensor.transpose(0, 1).repeat_interleave(group, 0) for tensor in (key, value))
    queries, keys = query.shape[0], key.shape[0]
    rows = torch.arange(queries)[:, None] + keys - queries
    columns = torch.arange(keys)[None, :]
    mask = columns <= rows
    if window is not None:
        mask &= rows - columns < window
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(0, 1)


@given(
    queries=st.integers(1, 6),
    before=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 4, 7]),
    window=st.none() | st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_it_is_what_torch_computes_for_any_heads_group_chunk_and_window(
    queries: int, before: int, kv_heads: int, group: int, window: int | None, seed: int
) -> None:
    query = drawn(queries, kv_heads * group, 8, seed=seed)
    key, value = (
        drawn(queries + before, kv_heads, 8, seed=seed + 1),
        drawn(queries + before, kv_heads, 8, seed=seed + 2),
    )
    ours = attention(query, key, value, 0.3, window=window)
    torch.testing.assert_close(ours.out, torchs_own(query, key, value, 0.3, window), rtol=1e-12, atol=1e-12)


def test_two_keys_by_hand() -> None:
    query, key = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]], [[math.log(3), 0.0]]])
    value = torch.tensor([[[4.0, 0.0]], [[0.0, 8.0]]])
    found = attention(query, key, value, 1.0)
    # Scores 0 and log 3: weights 1/4 and 3/4.
    torch.testing.assert_close(found.out, torch.tensor([[[1.0, 6.0]]], dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.lse.item() == pytest.approx(math.log(4), abs=1e-6)


def test_scores_that_overflow_an_exponential_do_not() -> None:
    query, key = torch.full((1, 1, 4), 1e4), torch.stack([torch.full((1, 4), 1e4), torch.full((1, 4), 1e4)])
    found = attention(query, key, drawn(2, 1, 4), 1.0, dtype=torch.float32)
    assert found.out.isfinite().all()


@given(cut=st.integers(0, 7), again=st.integers(0, 7), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_attention_over_pieces_of_the_keys_merges_to_attention_over_all(cut: int, again: int, seed: int) -> None:
    query, key, value = drawn(2, 4, 8, seed=seed), drawn(7, 2, 8, seed=seed + 1), drawn(7, 2, 8, seed=seed + 2)
    first, second = sorted((cut, again))
    pieces = [slice(0, first), slice(first, second), slice(second, 7)]
    a, b, c = (attention(query, key[piece], value[piece], 1.0, causal=False) for piece in pieces)
    whole = attention(query, key, value, 1.0, causal=False)
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
        torch.testing.assert_close(merged.out, whole.out, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.lse, whole.lse, rtol=1e-12, atol=1e-12)


def test_over_no_keys_it_is_zero_and_changes_nothing_in_a_merge() -> None:
    query = drawn(1, 2, 8)
    empty = attention(query, drawn(0, 1, 8), drawn(0, 1, 8), 1.0, causal=False)
    assert empty.out.eq(0).all()
    assert empty.lse.isneginf().all()
    assert merge(empty, empty).out.eq(0).all()
    some = attention(query, drawn(3, 1, 8), drawn(3, 1, 8, seed=1), 1.0, causal=False)
    torch.testing.assert_close(merge(empty, some).out, some.out)


class Paged:
    """Sequences of unequal lengths in one poisoned cache, where an allocator put them."""

    def __init__(self, lengths: list[int], block_size: int, kv_heads: int, seed: int) -> None:
        blocks = BlockAllocator(sum(-(-length // block_size) for length in lengths) + 3, block_size)
        # Somebody before and between, so that tables are neither 0, 1, 2 nor in a row.
        blocks.allocate(-1, 1)
        self.keys = [drawn(length, kv_heads, 8, seed=seed + n) for n, length in enumerate(lengths)]
        self.values = [drawn(length, kv_heads, 8, seed=seed + 99 + n) for n, length in enumerate(lengths)]
        self.key_cache = torch.full((blocks.num_blocks, block_size, kv_heads, 8), NAN, dtype=torch.float64)
        self.value_cache = self.key_cache.clone()
        self.tables = torch.full((len(lengths), max(-(-length // block_size) for length in lengths) + 1), -1)
        self.lens = torch.tensor(lengths)
        for place, length in enumerate(lengths):
            if length:
                blocks.allocate(place, length)
                table = blocks.block_table(place)
                self.tables[place, : len(table)] = torch.tensor(table)
                slots = torch.tensor(blocks.slot_mapping(place, 0, length))
                store_kv(self.keys[place], self.values[place], self.key_cache, self.value_cache, slots)
            if place == 0:
                blocks.free(-1)


lengths = st.lists(st.integers(0, 11), min_size=1, max_size=4).filter(any)


@given(lengths=lengths, block_size=st.integers(1, 5), group=st.sampled_from([1, 3]), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_over_blocks_it_is_attention_over_the_sequence_and_reads_nothing_else(
    lengths: list[int], block_size: int, group: int, seed: int
) -> None:
    paged = Paged(lengths, block_size, 2, seed)
    query = drawn(len(lengths), 2 * group, 8, seed=seed)
    out = paged_decode(query, paged.key_cache, paged.value_cache, paged.tables, paged.lens, 0.5)
    for place, length in enumerate(lengths):
        expected = torch.zeros(2 * group, 8, dtype=torch.float64)
        if length:
            expected = attention(query[place : place + 1], paged.keys[place], paged.values[place], 0.5).out[0]
        torch.testing.assert_close(out[place], expected, rtol=0, atol=0)


@given(lengths=lengths, block_size=st.integers(1, 5), window=st.none() | st.integers(1, 6), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_in_chunks_behind_what_is_cached_it_is_the_whole_prompt_at_once(
    lengths: list[int], block_size: int, window: int | None, seed: int
) -> None:
    paged = Paged(lengths, block_size, 1, seed)
    queries = [drawn(length, 2, 8, seed=seed + 7 * n) for n, length in enumerate(lengths)]

    def run(chunks: list[Tensor], lens: Tensor) -> list[Tensor]:
        offsets = torch.tensor([0, *torch.tensor([len(chunk) for chunk in chunks]).cumsum(0).tolist()])
        out = paged_prefill(
            torch.cat(chunks), paged.key_cache, paged.value_cache, paged.tables, offsets, lens, 0.5, window=window
        )
        return list(out.split([len(chunk) for chunk in chunks]))

    whole = run(queries, paged.lens)
    cuts = [length // 2 for length in lengths]
    heads = run([query[:cut] for query, cut in zip(queries, cuts, strict=True)], torch.tensor(cuts))
    tails = run([query[cut:] for query, cut in zip(queries, cuts, strict=True)], paged.lens)
    for place in range(len(lengths)):
        torch.testing.assert_close(torch.cat([heads[place], tails[place]]), whole[place], rtol=1e-12, atol=1e-12)


def test_where_blocks_lie_does_not_matter() -> None:
    paged = Paged([9, 4, 7], 2, 2, seed=5)
    query = drawn(3, 4, 8)
    order = torch.randperm(paged.key_cache.shape[0], generator=torch.Generator().manual_seed(1))
    moved = torch.empty_like(order)
    moved[order] = torch.arange(len(order))
    tables = torch.where(paged.tables >= 0, moved[paged.tables], paged.tables)
    here = paged_decode(query, paged.key_cache, paged.value_cache, paged.tables, paged.lens, 1.0)
    there = paged_decode(query, paged.key_cache[order], paged.value_cache[order], tables, paged.lens, 1.0)
    assert torch.equal(here, there)


def test_a_window_as_long_as_the_context_hides_nothing_and_one_shorter_hides_one() -> None:
    query, key, value = drawn(1, 1, 8), drawn(5, 1, 8, seed=1), drawn(5, 1, 8, seed=2)
    full = attention(query, key, value, 1.0).out
    assert torch.equal(attention(query, key, value, 1.0, window=5).out, full)
    torch.testing.assert_close(
        attention(query, key, value, 1.0, window=4).out, attention(query, key[1:], value[1:], 1.0).out
    )


def test_slots_are_written_through_any_strides_and_minus_one_writes_nowhere() -> None:
    both = torch.zeros(3, 2, 4, 2, 8)
    key_cache, value_cache = both[:, 0], both[:, 1]
    key, value = torch.ones(3, 2, 8), torch.full((3, 2, 8), 2.0)
    store_kv(key, value, key_cache, value_cache, torch.tensor([5, -1, 9]))
    assert key_cache[1, 1].eq(1).all()
    assert value_cache[2, 1].eq(2).all()
    assert both.ne(0).sum() == 2 * 2 * 16, "-1 as an index would be the last slot"
    store_kv(key[:0], value[:0], key_cache, value_cache, torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize(
    ("slots", "message"),
    [([0, 12], "slot_mapping must be -1 to 11"), ([-2, 0], "-1 to 11"), ([3, 3], "twice"), ([1], "for 2 tokens")],
)
def test_slots_that_cannot_be_are_refused_and_nothing_is_written(slots: list[int], message: str) -> None:
    cache = torch.zeros(3, 4, 1, 8)
    with pytest.raises(ValueError, match=message):
        store_kv(torch.ones(2, 1, 8), torch.ones(2, 1, 8), cache, cache, torch.tensor(slots))
    assert cache.eq(0).all()


@pytest.mark.parametrize(
    ("query", "key", "value", "window", "message"),
    [
        ((1, 3, 8), (2, 2, 8), (2, 2, 8), None, "3 query heads are no multiple of 2 KV heads"),
        ((1, 2, 8), (2, 2, 8), (3, 2, 8), None, "value"),
        ((1, 2, 8), (2, 2, 4), (2, 2, 4), None, "head_dim"),
        ((3, 2, 8), (2, 2, 8), (2, 2, 8), None, "3 query tokens have only 2 keys"),
        ((1, 2, 8), (2, 2, 8), (2, 2, 8), 0, "window must be at least 1, got 0"),
    ],
)
def test_shapes_that_do_not_go_together_are_refused_by_name(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], window: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attention(torch.zeros(query), torch.zeros(key), torch.zeros(value), 1.0, window=window)


def test_a_table_that_cannot_hold_the_context_is_refused() -> None:
    cache = torch.zeros(3, 4, 1, 8)
    with pytest.raises(ValueError, match="does not hold 9 tokens"):
        gather(cache, torch.tensor([0, 1]), 9)
    with pytest.raises(ValueError, match="outside of 0 to 2"):
        gather(cache, torch.tensor([0, -1]), 5)
    with pytest.raises(ValueError, match="outside of 0 to 2"):
        gather(cache, torch.tensor([0, 3]), 5)


def test_counts_that_do_not_go_together_are_refused() -> None:
    cache, lens = torch.zeros(3, 4, 1, 8), torch.tensor([1])
    with pytest.raises(ValueError, match="2 tables, 2 offsets"):
        paged_prefill(torch.zeros(1, 1, 8), cache, cache, torch.zeros(2, 1), torch.tensor([0, 1]), lens, 1.0)
    with pytest.raises(ValueError, match="cu_seqlens must go from 0 to the 2 query tokens"):
        paged_prefill(torch.zeros(2, 1, 8), cache, cache, torch.zeros(1, 1), torch.tensor([0, 1]), lens, 1.0)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(Partial(torch.zeros(1, 2, 8), torch.zeros(1, 2)), Partial(torch.zeros(2, 2, 8), torch.zeros(2, 2)))
