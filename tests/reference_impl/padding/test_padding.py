"""Padding and its account, against the long way round."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.padding import ModelShape, pad_rows, static_batch

TINY = ModelShape(layers=3, hidden=8, intermediate=20, heads=4, kv_heads=2, head_dim=2, dtype_bytes=2)
LLAMA_3_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 2)


def test_pads_stand_on_the_asked_side_and_every_token_stays_in_order() -> None:
    assert pad_rows([[1, 2, 3], [4]], 0, side="left") == [[1, 2, 3], [0, 0, 4]]
    assert pad_rows([[1, 2, 3], [4]], 0, side="right") == [[1, 2, 3], [4, 0, 0]]
    assert pad_rows([[], []], 0) == [[], []]


@pytest.mark.parametrize(
    ("sequences", "side", "message"), [([[1]], "middle", "'middle'"), ([], "left", "no sequences")]
)
def test_padding_refuses_an_unknown_side_and_an_empty_batch(sequences: Any, side: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad_rows(sequences, 0, side=side)


def test_a_token_of_llama_3_8b_takes_128_kib_and_its_layers_seven_billion_weights() -> None:
    assert LLAMA_3_8B.kv_bytes_per_token == 128 * 1024
    # 32 layers of 2 * 4096^2 + 2 * 4096 * 1024 + 3 * 4096 * 14336.
    assert LLAMA_3_8B.linear_weights == 32 * (33_554_432 + 8_388_608 + 176_160_768)


def walked(prompt: int, output: int, shape: ModelShape) -> tuple[int, int, int]:
    """Slots written, FLOPs and cache bytes read of one row, token by token and key by key."""
    slots = flops = keys_read = 0
    for token in range(prompt + output - 1):  # the last output token is never fed back
        slots += 1
        flops += 2 * shape.linear_weights
        for _ in range(token + 1):
            flops += 4 * shape.layers * shape.heads * shape.head_dim
        if token >= prompt:
            keys_read += token + 1
    return slots, flops, keys_read * shape.kv_bytes_per_token


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=5))
def test_the_account_of_a_batch_is_what_walking_every_token_gives(rows: list[tuple[int, int]]) -> None:
    prompts, outputs = [row[0] for row in rows], [row[1] for row in rows]
    account = static_batch(prompts, outputs, TINY)
    padded = walked(max(prompts), max(outputs), TINY)
    needed = [walked(prompt, output, TINY) for prompt, output in rows]
    weights = (max(outputs) - 1) * TINY.linear_weights * TINY.dtype_bytes
    assert account.slots == len(rows) * padded[0]
    assert account.slots_needed == sum(slots for slots, _, _ in needed)
    assert account.flops == len(rows) * padded[1]
    assert account.flops_needed == sum(flops for _, flops, _ in needed)
    assert account.bytes_read == weights + len(rows) * padded[2]
    assert account.bytes_needed == weights + sum(read for _, _, read in needed)


def test_the_last_output_token_takes_no_slot() -> None:
    assert static_batch([5], [1], TINY).slots == 5, "the prefill gives it, and nothing reads it back"
    assert static_batch([5, 2], [4, 1], TINY).slots == 2 * 8
    assert static_batch([5, 2], [4, 1], TINY).slots_needed == 8 + 2


def test_equal_rows_lose_nothing_and_accounts_add_up() -> None:
    even = static_batch([4, 4], [3, 3], TINY)
    assert (even.slots_lost, even.flops_lost, even.bytes_lost) == (0, 0, 0)
    uneven = static_batch([4, 1], [3, 3], TINY)
    both = even + uneven
    assert both.slots == even.slots + uneven.slots
    assert both.slots_lost == 1 - (12 + 9) / 24
    assert 0 < both.bytes_lost < uneven.bytes_lost


@pytest.mark.parametrize(("prompts", "outputs"), [([], []), ([1], []), ([1, 2], [1]), ([0], [1]), ([1], [0])])
def test_an_account_without_a_batch_is_refused(prompts: list[int], outputs: list[int]) -> None:
    with pytest.raises(ValueError, match=r"need as many|at least 1"):
        static_batch(prompts, outputs, TINY)
