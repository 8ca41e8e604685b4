"""Prefills on the books: every token and every pair is counted once, as needed or as wasted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.workloads import sample
from reference_impl.padding import (
    Account,
    ModelShape,
    arrival_batches,
    bucketed,
    make_batches,
    packed_prefill,
    padded_prefill,
    padded_width,
    padding_share,
    padding_table,
    static_batch,
    windowed,
)

TINY = ModelShape(layers=3, hidden=8, intermediate=20, heads=4, kv_heads=2, head_dim=2, dtype_bytes=2)
LLAMA_3_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 2)
lengths_of_a_batch = st.lists(st.integers(0, 10), min_size=1, max_size=5)
extra = st.integers(0, 6)


def walked(sequences: list[list[bool]]) -> Account:
    """The account of sequences of needed (True) and other tokens, token by token and pair by pair.

    Needed are a true token and its pairs; each sequence stands alone, and all of its tokens attend causally.
    """
    ledgers = dict.fromkeys(("slots", "slots_needed", "flops", "flops_needed"), 0)
    weights = TINY.linear_weights * TINY.dtype_bytes
    for sequence in sequences:
        for query, needed in enumerate(sequence):
            flops = 2 * TINY.linear_weights
            for _ in range(query + 1):
                flops += 4 * TINY.layers * TINY.heads * TINY.head_dim
            ledgers["slots"] += 1
            ledgers["flops"] += flops
            ledgers["slots_needed"] += needed
            ledgers["flops_needed"] += flops * needed
    kv = TINY.kv_bytes_per_token
    return Account(
        **ledgers,
        bytes_read=weights + ledgers["slots"] * kv,
        bytes_needed=weights + ledgers["slots_needed"] * kv,
    )


@given(lengths_of_a_batch, extra)
def test_a_padded_prefill_is_what_walking_its_rectangle_gives(lengths: list[int], wider: int) -> None:
    width = max(lengths) + wider
    rectangle = [[place < length for place in range(width)] for length in lengths]
    assert padded_prefill(lengths, TINY, width) == walked(rectangle)
    assert padded_prefill(lengths, TINY) == padded_prefill(lengths, TINY, max(lengths))


@given(lengths_of_a_batch, extra)
def test_a_packed_prefill_is_what_walking_its_sequences_and_its_tail_gives(lengths: list[int], wider: int) -> None:
    own = [[True] * length for length in lengths]
    assert packed_prefill(lengths, TINY) == walked(own)
    assert packed_prefill(lengths, TINY, sum(lengths) + wider) == walked([*own, [False] * wider])


@given(lengths_of_a_batch, st.integers(1, 8))
def test_in_every_ledger_what_is_spent_is_needed_or_wasted(lengths: list[int], multiple: int) -> None:
    width = padded_width(max(lengths), multiple)
    pads = sum(width - length for length in lengths)
    for account, wasted in (
        (padded_prefill(lengths, TINY, width), pads),
        (packed_prefill(lengths, TINY), 0),
        (packed_prefill(lengths, TINY, sum(lengths) + multiple), multiple),
    ):
        assert account.slots == account.slots_needed + account.slots_wasted
        assert account.flops == account.flops_needed + account.flops_wasted
        assert account.bytes_read == account.bytes_needed + account.bytes_wasted
        assert account.slots_wasted == wasted
        assert account.bytes_wasted == wasted * TINY.kv_bytes_per_token
        assert account.slots_needed == sum(lengths)
        assert (account.flops_wasted > 0) == (wasted > 0)


@given(lengths_of_a_batch)
def test_the_slots_lost_by_a_padded_prefill_are_its_padding_share(lengths: list[int]) -> None:
    assert padded_prefill(lengths, TINY).slots_lost == pytest.approx(padding_share(lengths))


@given(st.lists(st.integers(1, 10), min_size=1, max_size=5))
def test_a_static_batch_of_single_answers_is_a_padded_prefill_that_decodes_nothing(prompts: list[int]) -> None:
    static, prefill = static_batch(prompts, [1] * len(prompts), TINY), padded_prefill(prompts, TINY)
    assert (static.slots, static.flops, static.flops_needed) == (prefill.slots, prefill.flops, prefill.flops_needed)
    assert (static.bytes_read, static.bytes_lost) == (0, 0.0)


@given(st.lists(lengths_of_a_batch, max_size=4))
def test_accounts_add_up_ledger_by_ledger(batches: list[list[int]]) -> None:
    accounts = [padded_prefill(batch, TINY) for batch in batches]
    total = sum(accounts, start=Account())
    for ledger in ("slots", "slots_needed", "slots_wasted", "flops", "flops_wasted", "bytes_read", "bytes_wasted"):
        assert getattr(total, ledger) == sum(getattr(account, ledger) for account in accounts)


def test_empty_rows_cost_the_weights_and_lose_nothing() -> None:
    nothing = padded_prefill([0, 0], TINY)
    assert (nothing.slots, nothing.slots_lost, nothing.flops_lost, nothing.bytes_lost) == (0, 0.0, 0.0, 0.0)
    assert nothing.bytes_read == TINY.linear_weights * TINY.dtype_bytes


def test_lengths_of_numpy_are_counted_without_wrapping_around() -> None:
    lengths = np.full(3, 2**20, dtype=np.int32)
    assert padded_prefill(lengths, LLAMA_3_8B) == padded_prefill(lengths.tolist(), LLAMA_3_8B)
    assert static_batch(lengths, lengths, LLAMA_3_8B) == static_batch(lengths.tolist(), lengths.tolist(), LLAMA_3_8B)


@pytest.mark.parametrize(("ledger", "message"), [("slots", "slots"), ("flops", "FLOPs"), ("bytes", "bytes")])
def test_an_account_that_needs_more_than_it_spends_is_refused(ledger: str, message: str) -> None:
    spent = {"bytes": "bytes_read"}.get(ledger, ledger)
    with pytest.raises(ValueError, match=f"{message}: 3 needed of 2 spent"):
        Account(**{spent: 2, f"{ledger}_needed": 3})
    with pytest.raises(ValueError, match=f"{message}: -1 needed of 2 spent"):
        Account(**{spent: 2, f"{ledger}_needed": -1})


@pytest.mark.parametrize(
    ("prefill", "arguments", "message"),
    [
        (padded_prefill, ([],), "no lengths"),
        (packed_prefill, ([],), "no lengths"),
        (padded_prefill, ([3, -1],), "length -1 at index 1 is below 0"),
        (padded_prefill, ([3, 5], 4), "at least the longest length, 5, got 4"),
        (packed_prefill, ([3, 5], 7), "at least the sum of the lengths, 8, got 7"),
    ],
)
def test_a_prefill_that_cannot_be_is_refused(prefill: Any, arguments: Any, message: str) -> None:
    lengths, *width = arguments
    with pytest.raises(ValueError, match=message):
        prefill(lengths, TINY, *width)


# The ways of batching side by side.


@given(st.lists(st.integers(0, 24), min_size=1, max_size=25))
def test_every_way_of_batching_needs_the_same_and_packing_wastes_nothing(lengths: list[int]) -> None:
    ways = padding_table(lengths, 24, TINY, (4, 9, 24), window=6)
    assert len({(way.account.slots_needed, way.account.flops_needed) for way in ways}) == 1
    assert ways[0].account.slots_needed == sum(lengths)
    table = {way.name: way for way in ways}
    assert (table["packed"].account.slots_wasted, table["packed"].account.flops_wasted) == (0, 0)
    assert table["packed to width"].account.slots == 24 * table["packed to width"].batches
    weights = TINY.linear_weights * TINY.dtype_bytes
    for way in ways:
        assert way.account.bytes_needed == way.batches * weights + sum(lengths) * TINY.kv_bytes_per_token
    chosen = {
        "arrival order": arrival_batches(lengths, 24),
        "bucketed": bucketed(lengths, (4, 9, 24), 24),
        "sorted windows": windowed(lengths, 6, 24),
        "first-fit decreasing": make_batches(lengths, 24),
    }
    for name, batches in chosen.items():
        rectangles = [[lengths[index] for index in batch] for batch in batches]
        assert table[name].account == sum((padded_prefill(batch, TINY) for batch in rectangles), start=Account())
    fewest = table["first-fit decreasing"]
    assert fewest.batches == len(make_batches(lengths, 24))
    for padded in ("arrival order", "bucketed", "sorted windows"):
        assert fewest.batches <= table[padded].batches


def test_on_conversations_sorting_saves_most_of_the_padding_and_packing_the_rest() -> None:
    prompts = sample("azure_conv", seed=1, requests=4_000).prompt_tokens
    ways = padding_table(prompts, 16_384, LLAMA_3_8B, [128, 512, 1024, 2048, 4096, 16_384], window=256)
    lost = [way.account.slots_lost for way in ways]
    assert [way.name for way in ways] == [
        "arrival order",
        "bucketed",
        "sorted windows",
        "first-fit decreasing",
        "packed to width",
        "packed",
    ]
    arrival, bucket, window, sorted_whole, packed_to_width, packed = lost
    assert arrival > 0.4, "rows of a conversation trace differ by orders of magnitude"
    assert max(bucket, window) < arrival / 1.5
    assert sorted_whole < 0.02
    assert packed_to_width < 0.01
    assert packed == 0
    assert ways[0].account.flops_lost > ways[0].account.slots_lost, "attention of a wide row grows with its square"


def test_a_table_of_no_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="no lengths to compare"):
        padding_table([], 10, TINY, [10], 2)


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, -2)])
def test_a_model_with_a_size_below_1_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^(layers|dtype_bytes) must be at least 1"):
        ModelShape(*sizes)


def test_the_sizes_of_a_model_are_integers_and_stay_so() -> None:
    with pytest.raises(TypeError, match="hidden"):
        ModelShape(1, 1.5, 1, 1, 1, 1, 1)  # type: ignore[arg-type]
    shape = ModelShape(*(np.int32(size) for size in (32, 4096, 14336, 32, 8, 128, 2)))
    assert shape == LLAMA_3_8B
    assert shape.linear_flops(10**9) == LLAMA_3_8B.linear_flops(10**9), "an int32 would have wrapped around"


def test_a_rectangle_has_no_width_below_0() -> None:
    with pytest.raises(ValueError, match="longest must be at least 0, got -3"):
        padded_width(-3, 2)


def test_torch_is_loaded_by_the_module_of_tensors_alone() -> None:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(root / "labs")])

    def loads_torch(module: str) -> str:
        code = f"import sys, {module}; print('torch' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert loads_torch("reference_impl.padding") == "False"
    assert loads_torch("reference_impl.padding.batch") == "True"
