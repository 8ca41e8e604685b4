"""A student's lab 4 behind the engine's attention: right ones serve, wrong ones are named in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from reference_impl.attention import reference
from reference_impl.attention.backend import Attention
from reference_impl.attention.lab4 import Lab4Attention
from reference_impl.plugin import ContractError
from tests.reference_impl.attention.batches import Batch, Shape, shapes

pytestmark = pytest.mark.usefixtures("one_thread")


class Honest:
    """The lab by the oracle. `calls` counts the sequences that each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def store_kv(self, *given: Tensor) -> None:
        reference.store_kv(*given)

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        out: Tensor,
    ) -> None:
        self.calls.append(len(query))
        out.copy_(reference.paged_decode(query, key_cache, value_cache, block_tables, context_lens, scale))


class Twice(Honest):
    """Wrong, and only in what it is asked: so it is seen which sequences it was asked for."""

    def paged_attention(self, *given: Any) -> None:
        super().paged_attention(*given)
        given[-1].mul_(2)


MIXED = Shape(((1, 9), (1, 30), (4, 4), (3, 12)), 4, 2, 3, 8, heads_outermost=True, num_pads=2, seed=3)


def attend(backend: Any, batch: Batch, window: int | None = None) -> Tensor:
    attention: Attention = Lab4Attention(backend)
    return attention.attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.4, window=window)


@given(shape=shapes(longest=20))
@settings(max_examples=60, deadline=None)
def test_with_a_right_lab_every_batch_is_the_oracles(shape: Shape) -> None:
    batch = Batch(shape)
    expected = batch.expected(0.4)
    out = attend(Honest(), batch)
    assert out.shape == batch.query.shape
    torch.testing.assert_close(out[: len(expected)].double(), expected, rtol=2e-5, atol=2e-5)


def test_the_lab_computes_the_decodes_and_nothing_else() -> None:
    batch, backend = Batch(MIXED), Twice()
    out, expected = attend(backend, batch), batch.expected(0.4)
    assert backend.calls == [2]
    torch.testing.assert_close(out[:2].double(), 2 * expected[:2], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(out[2:9].double(), expected[2:], rtol=2e-5, atol=2e-5)


def test_a_batch_without_decodes_does_not_ask_the_lab() -> None:
    backend = Honest()
    attend(backend, Batch(Shape(((4, 4),), 4, 2, 3, 8, heads_outermost=True, num_pads=0, seed=3)))
    assert backend.calls == []


def test_keys_and_values_are_written_by_the_lab() -> None:
    written = []
    backend = SimpleNamespace(store_kv=lambda *given: written.append(given), paged_attention=print)
    given = tuple(torch.zeros(1) for _ in range(5))
    Lab4Attention(backend).store_kv(*given)
    assert all(found is expected for found, expected in zip(written[0], given, strict=True))


def skips_a_row(*given: Any) -> None:
    Honest().paged_attention(*given)
    given[-1][1] = float("nan")


def makes_out_larger(*given: Any) -> None:
    given[-1].resize_(7, 6, 8)


def raises(*given: Any) -> None:
    raise IndexError("block 7\nand a second line")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda *given: None, "paged_attention left NaN in out, or did not write it, for 2 of 2 sequences, the first"),
        (skips_a_row, "for 1 of 2 sequences, the first with 30 tokens"),
        (makes_out_larger, r"paged_attention made out \(7, 6, 8\), it was given as \(2, 6, 8\)"),
        (raises, "paged_attention raised IndexError: block 7$"),
    ],
)
def test_what_a_lab_does_wrong_is_said_in_one_line_that_names_the_function(function: Any, said: str) -> None:
    backend = SimpleNamespace(store_kv=reference.store_kv, paged_attention=function)
    with pytest.raises(ContractError, match=said) as caught:
        attend(backend, Batch(MIXED))
    assert "\n" not in str(caught.value)


def test_a_write_that_raises_is_named_too() -> None:
    with pytest.raises(ContractError, match=r"store_kv raised IndexError: block 7$"):
        Lab4Attention(SimpleNamespace(store_kv=raises, paged_attention=raises)).store_kv(*[torch.zeros(1)] * 5)


def test_a_window_that_hides_something_is_refused_and_one_that_does_not_is_served() -> None:
    batch = Batch(MIXED)
    with pytest.raises(ValueError, match="knows no window: this model looks at the last 29 tokens only"):
        attend(Honest(), batch, window=29)
    torch.testing.assert_close(attend(Honest(), batch, window=30), attend(Honest(), batch), rtol=0, atol=0)


def test_a_module_without_a_function_is_refused_by_name() -> None:
    with pytest.raises(ContractError, match="has no function paged_attention"):
        Lab4Attention(SimpleNamespace(store_kv=print))  # type: ignore[arg-type]


def test_what_is_left_for_our_attention_is_a_batch_of_its_own_made_once_a_step() -> None:
    batch, seen = Batch(MIXED), []

    class Ours:
        def attend(
            self, query: Tensor, keys: Tensor, values: Tensor, metadata: Any, scale: float, **rest: Any
        ) -> Tensor:
            seen.append(metadata)
            return query

    attention = Lab4Attention(Honest())
    attention._ours = Ours()  # type: ignore[assignment]
    for _ in range(3):
        attention.attend(batch.query, batch.key_cache, batch.value_cache, batch.metadata, 0.4)
    assert len({id(metadata) for metadata in seen}) == 1
    assert seen[0].cu_seqlens.tolist() == [0, 4, 7]
    assert (seen[0].query_tokens, seen[0].context_tokens, seen[0].num_decodes) == ((4, 3), (4, 12), 0)
    assert seen[0].slot_mapping.tolist() == batch.metadata.slot_mapping[2:].tolist()
    assert seen[0].block_tables.shape[0] == seen[0].context_lens.shape[0] == 2
