"""A batch is invisible to its sequences: each gets the logits that it gets alone."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference_impl.padding.tiny_transformer import CLOSE, VOCABULARY, TinyTransformer

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = TinyTransformer()

token_ids = st.integers(0, VOCABULARY - 1)
sequence_lists = st.lists(st.lists(token_ids, max_size=6), min_size=1, max_size=4)
sides = st.sampled_from(["left", "right"])
multiples = st.integers(1, 5)


def masks() -> st.SearchStrategy[Tensor]:
    """Any mask at all: holes, pads on both sides, rows of nothing but pads."""
    sizes = st.tuples(st.integers(1, 4), st.integers(0, 6))
    return sizes.flatmap(
        lambda size: st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
            lambda cells: torch.tensor(cells, dtype=torch.bool).view(size)
        )
    )


def padded_logits(
    lab: SimpleNamespace, sequences: list[list[int]], pad_id: int, side: str, multiple_of: int = 1
) -> Any:
    """The logits of each sequence's own tokens, out of one padded batch."""
    ids, mask = lab.pad_batch(sequences, pad_id, side, multiple_of)
    logits = MODEL(ids, lab.position_ids(mask), lab.attention_bias(mask))
    return [row[real] for row, real in zip(logits, mask, strict=True)]


def assert_each_as_alone(batched: list[Tensor], sequences: list[list[int]]) -> None:
    for own, sequence in zip(batched, sequences, strict=True):
        torch.testing.assert_close(own, MODEL.alone(sequence), **CLOSE)


# Shapes and types.


def test_a_batch_is_a_rectangle_of_ids_and_a_mask_that_is_true_at_real_tokens(lab: SimpleNamespace) -> None:
    ids, mask = lab.pad_batch([[5, 6, 7], [8]], 0)
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]], "the left is the default: generation goes on at the right end"
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    ids, mask = lab.pad_batch([[5, 6, 7], [8]], 0, side="right")
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


@settings(deadline=None)
@given(sequence_lists, token_ids, sides, multiples)
def test_the_width_is_the_longest_rounded_up_and_every_token_is_kept(
    lab: SimpleNamespace, sequences: list[list[int]], pad_id: int, side: str, multiple: int
) -> None:
    ids, mask = lab.pad_batch(sequences, pad_id, side, multiple)
    longest = max(map(len, sequences))
    width = ids.shape[1]
    assert ids.shape == mask.shape == (len(sequences), width)
    assert width % multiple == 0
    assert longest <= width < longest + multiple
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == sequences
    assert (ids[~mask] == pad_id).all()


def test_a_real_token_with_the_id_of_the_pad_is_real(lab: SimpleNamespace) -> None:
    ids, mask = lab.pad_batch([[0, 3, 0], [0]], 0)
    assert ids.tolist() == [[0, 3, 0], [0, 0, 0]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_empty_sequences_are_rows_of_pads_and_a_batch_of_them_has_no_width(lab: SimpleNamespace, side: str) -> None:
    ids, mask = lab.pad_batch([[], [4, 5]], 0, side)
    assert ids.tolist() == [[0, 0], [4, 5]]
    assert not mask[0].any()
    ids, mask = lab.pad_batch([[], []], 0, side, 8)
    assert ids.shape == mask.shape == (2, 0)
    assert lab.position_ids(mask).shape == (2, 0)
    assert lab.attention_bias(mask).shape == (2, 1, 0, 0)


def test_ids_are_whatever_counts_as_an_integer(lab: SimpleNamespace) -> None:
    ids, _ = lab.pad_batch([np.array([1, 2], dtype=np.uint8), torch.tensor([3]), range(4, 6)], np.int64(9))
    assert ids.tolist() == [[1, 2], [9, 3], [4, 5]]
    assert lab.pack([np.array([1, 2]), (3,)])[0].tolist() == [1, 2, 3]


# Positions and bias, against their definitions.


@settings(deadline=None)
@given(masks())
def test_positions_count_the_real_tokens_of_a_row_and_pads_are_zero(lab: SimpleNamespace, mask: Tensor) -> None:
    expected = []
    for row in mask.tolist():
        seen, positions = 0, []
        for real in row:
            positions.append(seen if real else 0)
            seen += real
        expected.append(positions)
    positions = lab.position_ids(mask)
    assert positions.dtype == torch.int64
    assert positions.shape == mask.shape
    assert positions.tolist() == expected


@settings(deadline=None)
@given(masks())
def test_a_real_query_looks_at_the_real_keys_up_to_itself_and_no_others(lab: SimpleNamespace, mask: Tensor) -> None:
    bias = lab.attention_bias(mask)
    batch, width = mask.shape
    assert bias.dtype == torch.float32
    assert bias.shape == (batch, 1, width, width)
    for row, real in enumerate(mask.tolist()):
        for query in range(width):
            if real[query]:
                may = [key <= query and real[key] for key in range(width)]
                assert bias[row, 0, query].tolist() == [0.0 if look else -math.inf for look in may]


@settings(deadline=None)
@given(masks())
def test_no_row_of_any_mask_gives_nan_after_softmax(lab: SimpleNamespace, mask: Tensor) -> None:
    bias = lab.attention_bias(mask)
    assert ((bias == 0) | (bias == -math.inf)).all()
    assert bias.softmax(dim=-1).isfinite().all()


def test_a_pad_query_looks_at_itself_alone_on_either_side() -> None:
    from reference_impl.padding.batch import attention_bias

    bias = attention_bias(torch.tensor([[False, True], [True, False]]))
    assert bias[0, 0].tolist() == [[0, -math.inf], [-math.inf, 0]]
    assert bias[1, 0].tolist() == [[0, -math.inf], [-math.inf, 0]]


# What a model makes of them.


@settings(deadline=None)
@given(sequence_lists, token_ids, sides, multiples)
def test_batched_is_the_same_as_alone(
    lab: SimpleNamespace, sequences: list[list[int]], pad_id: int, side: str, multiple: int
) -> None:
    assert_each_as_alone(padded_logits(lab, sequences, pad_id, side, multiple), sequences)


@settings(deadline=None)
@given(sequence_lists, token_ids)
def test_left_and_right_padding_give_the_same_logits_at_real_tokens(
    lab: SimpleNamespace, sequences: list[list[int]], pad_id: int
) -> None:
    left, right = (padded_logits(lab, sequences, pad_id, side) for side in ("left", "right"))
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@settings(deadline=None)
@given(st.data(), sequence_lists, sides)
def test_the_order_of_the_rows_changes_nothing(
    lab: SimpleNamespace, data: st.DataObject, sequences: list[list[int]], side: str
) -> None:
    order = data.draw(st.permutations(range(len(sequences))))
    shuffled = padded_logits(lab, [sequences[row] for row in order], 0, side)
    in_order = padded_logits(lab, sequences, 0, side)
    for place, row in enumerate(order):
        torch.testing.assert_close(shuffled[place], in_order[row], **CLOSE)


@settings(deadline=None)
@given(sequence_lists, sides, st.sampled_from(["random", "huge", "nan"]), st.integers(0, 2**31))
def test_what_stands_in_the_pads_changes_nothing(
    lab: SimpleNamespace, sequences: list[list[int]], side: str, filling: str, seed: int
) -> None:
    ids, mask = lab.pad_batch(sequences, 0, side, 4)
    embedded = MODEL.embed(ids, lab.position_ids(mask))
    noise = torch.randn(embedded.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    embedded[~mask] = {"random": noise, "huge": noise * 1e30, "nan": noise * math.nan}[filling][~mask]
    logits = MODEL.logits(embedded, lab.attention_bias(mask))
    assert_each_as_alone([row[real] for row, real in zip(logits, mask, strict=True)], sequences)


def test_the_tiny_transformer_sees_a_wrong_position_a_lost_token_and_a_stolen_look() -> None:
    """The tests above compare logits: this one shows that there is something to see."""
    sequence, moved = [1, 2, 3], []
    right = MODEL.alone(sequence)
    ids, causal = torch.tensor([sequence]), torch.full((3, 3), -torch.inf).triu(diagonal=1)[None, None]
    moved.append(MODEL(ids, torch.tensor([[1, 2, 3]]), causal))
    stolen = causal.clone()
    stolen[0, 0, 0, 1] = 0
    moved.append(MODEL(ids, torch.arange(3)[None], stolen))
    lost = causal.clone()
    lost[0, 0, 2, 0] = -torch.inf
    moved.append(MODEL(ids, torch.arange(3)[None], lost))
    assert all((logits[0] - right).abs().max() > 1e-3 for logits in moved)


# Packing.


def test_packed_sequences_lie_end_to_end_and_each_counts_from_zero(lab: SimpleNamespace) -> None:
    ids, boundaries, positions = lab.pack([[5, 6, 7], [], [8, 9]])
    assert (ids.dtype, boundaries.dtype, positions.dtype) == (torch.int64, torch.int32, torch.int64)
    assert ids.tolist() == [5, 6, 7, 8, 9]
    assert boundaries.tolist() == [0, 3, 3, 5], "an empty sequence repeats a boundary"
    assert positions.tolist() == [0, 1, 2, 0, 1]
    assert [part.tolist() for part in lab.pack([[], []])] == [[], [0, 0, 0], []]


def packed_logits(lab: SimpleNamespace, sequences: list[list[int]], poisoned: int | None = None) -> list[Tensor]:
    ids, boundaries, positions = lab.pack(sequences)
    embedded = MODEL.embed(ids[None], positions[None])
    spans = list(pairwise(boundaries.tolist()))
    if poisoned is not None:
        embedded[0, slice(*spans[poisoned])] = math.nan
    logits = MODEL.logits(embedded, lab.packed_bias(boundaries))[0]
    return [logits[start:stop] for start, stop in spans]


@settings(deadline=None)
@given(sequence_lists)
def test_packed_is_the_same_as_alone(lab: SimpleNamespace, sequences: list[list[int]]) -> None:
    assert_each_as_alone(packed_logits(lab, sequences), sequences)


@settings(deadline=None)
@given(st.data(), sequence_lists)
def test_nothing_leaks_from_one_packed_sequence_to_another(
    lab: SimpleNamespace, data: st.DataObject, sequences: list[list[int]]
) -> None:
    poisoned = data.draw(st.integers(0, len(sequences) - 1))
    batched = packed_logits(lab, sequences, poisoned)
    others = [row for row in range(len(sequences)) if row != poisoned]
    assert_each_as_alone([batched[row] for row in others], [sequences[row] for row in others])
    assert batched[poisoned].isnan().all(), "the poison was read where it stood"


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_the_bias_of_a_packed_row_is_one_triangle_a_sequence(lab: SimpleNamespace, lengths: list[int]) -> None:
    _, boundaries, _ = lab.pack([[1] * length for length in lengths])
    bias = lab.packed_bias(boundaries)
    owner = [row for row, length in enumerate(lengths) for _ in range(length)]
    assert bias.dtype == torch.float32
    assert bias.shape == (1, 1, sum(lengths), sum(lengths))
    for query, mine in enumerate(owner):
        may = [key <= query and theirs == mine for key, theirs in enumerate(owner)]
        assert bias[0, 0, query].tolist() == [0.0 if look else -math.inf for look in may]


# Refusals.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 0), "no sequences"),
        (([[1]], 0, "middle"), "'middle'"),
        (([[1]], 0, "left", 0), "multiple_of must be at least 1, got 0"),
        (([[1], [2, 2**63]], 0), "sequence 1 token 1: 9223372036854775808 does not fit"),
        (([[1]], 2**63), "pad_id: 9223372036854775808 does not fit"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused_by_name(lab: SimpleNamespace, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lab.pad_batch(*arguments)


@pytest.mark.parametrize(("sequences", "place"), [([[1, 2], [3, 1.5]], "sequence 1 token 1: 1.5"), (["ab"], "'a'")])
def test_a_token_that_is_no_integer_is_named_with_its_place(lab: SimpleNamespace, sequences: Any, place: str) -> None:
    with pytest.raises(TypeError, match=f"{place} is not an integer"):
        lab.pad_batch(sequences, 0)
    with pytest.raises(TypeError, match=f"{place} is not an integer"):
        lab.pack(sequences)
    with pytest.raises(TypeError, match="pad_id: None is not an integer"):
        lab.pad_batch([[1]], None)


class Unread:
    """As many tokens as it says, none of which may be asked for: they would not fit in memory either."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens

    def __iter__(self) -> Any:
        raise AssertionError("the tokens were read before their number was checked")


@pytest.mark.parametrize("sequences", [[], [Unread(2**30), Unread(2**30)]], ids=["none", "more than int32 counts"])
def test_packing_refuses_no_sequences_and_more_tokens_than_its_boundaries_can_count(
    lab: SimpleNamespace, sequences: Any
) -> None:
    with pytest.raises(ValueError, match=r"no sequences|2147483648 tokens in one packed row"):
        lab.pack(sequences)


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), torch.ones(0, 3, dtype=torch.bool)]
)
def test_a_mask_that_is_no_batch_of_booleans_is_refused(lab: SimpleNamespace, mask: Tensor) -> None:
    for function in (lab.position_ids, lab.attention_bias):
        with pytest.raises(ValueError, match=r"must be \[batch, width\] bool"):
            function(mask)


@pytest.mark.parametrize("boundaries", [[0], [], [1, 2], [0, 3, 2]])
def test_boundaries_that_do_not_start_at_zero_and_rise_are_refused(lab: SimpleNamespace, boundaries: list[int]) -> None:
    with pytest.raises(ValueError, match="cu_seqlens must"):
        lab.packed_bias(torch.tensor(boundaries, dtype=torch.int32))


def test_boundaries_that_are_no_row_of_integers_are_refused(lab: SimpleNamespace) -> None:
    for wrong in (torch.tensor([0.0, 2.0]), torch.tensor([[0, 2]], dtype=torch.int32)):
        with pytest.raises(ValueError, match="cu_seqlens must"):
            lab.packed_bias(wrong)
