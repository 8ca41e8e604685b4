"""A call's tensors cross as memory and views: what one side writes stands in the other's memory, and nowhere else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.worker import tensors, wire
from autograder.worker.wire import WireError

DTYPES = [getattr(torch, name) for name in tensors.ITEM_BYTES]


def across(values: list[Any]) -> tuple[list[Any], list[torch.Tensor]]:
    """What the other side makes of `values`, by way of the wire's own text."""
    buffers, args = tensors.pack(values)
    sent = {"buffers": [{**b, "bytes": wire.encode(b["bytes"])} for b in buffers], "args": args}
    got = wire.unpack(wire.pack(sent, 64 << 20)[wire.HEADER.size :])
    return tensors.unpack([{**b, "bytes": wire.decode(b["bytes"])} for b in got["buffers"]], got["args"])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and tensors.contents([one.contiguous()]) == tensors.contents([other.contiguous()])


@st.composite
def views(draw: st.DrawFn) -> list[torch.Tensor]:
    """Some views of a few storages, of any type and stride."""
    found = []
    for number in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)) + number)
        pool = torch.randint(0, 2, (draw(st.integers(0, 40)),), generator=generator).to(dtype)
        for _ in range(draw(st.integers(1, 3))):
            shape = draw(st.lists(st.integers(0, 3), max_size=4))
            strides = [draw(st.integers(0, 5)) for _ in shape]
            reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
            if 0 in shape or reach < pool.numel():
                last = max(0, pool.numel() if 0 in shape else pool.numel() - 1 - reach)
                found.append(pool.as_strided(shape, strides, draw(st.integers(0, last))))
    return found


@settings(deadline=None)
@given(views())
def test_every_view_arrives_with_its_shape_strides_and_bits(values: list[torch.Tensor]) -> None:
    for value, arrived in zip(values, across(values)[0], strict=True):
        assert (arrived.shape, arrived.stride()) == (value.shape, value.stride())
        assert same_bits(value, arrived)


def test_views_of_one_tensor_stay_views_of_one_tensor() -> None:
    pool = torch.zeros(2, 4, 3)
    (keys, values), storages = across([pool[0], pool[1]])
    keys.fill_(5)
    assert len(storages) == 1
    assert storages[0].view(2, 4, 3)[0].eq(5).all()
    assert values.eq(0).all()


def test_what_the_callee_writes_comes_back_into_the_callers_memory_guards_included() -> None:
    pool = torch.zeros(6, 2)
    out = torch.full((3,), math.nan)
    given_ = [pool[1:5], 1.5, out, torch.arange(3, dtype=torch.int32)]
    (there, scale, answer, _), storages = across(given_)
    there.fill_(7)
    storages[0][0] = 9
    answer.copy_(torch.tensor([scale, math.inf, -0.0]))
    tensors.restore(given_, tensors.contents(storages))
    assert pool.tolist() == [[9, 0], [7, 7], [7, 7], [7, 7], [7, 7], [0, 0]]
    assert same_bits(out, torch.tensor([1.5, math.inf, -0.0]))


def test_nan_keeps_its_bits() -> None:
    odd = torch.tensor([0x7FC01234, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    (arrived,), _ = across([odd])
    assert same_bits(odd, arrived)


def test_empty_tensors_of_several_types_cross() -> None:
    given_ = [torch.zeros(0, 2, 32), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 32), "text", None]
    values, storages = across(given_)
    assert [getattr(v, "shape", v) for v in values] == [getattr(v, "shape", v) for v in given_]
    tensors.restore(given_, tensors.contents(storages))


def test_a_view_of_no_token_may_begin_behind_the_end_of_nothing() -> None:
    both = torch.empty(0, 2, 1, 32)
    key, value = tensors.unpack(*tensors.pack([both[:, 0], both[:, 1]]))[0]
    assert key.shape == value.shape == (0, 1, 32)


def test_a_type_that_may_not_cross_is_refused() -> None:
    with pytest.raises(WireError, match="complex64"):
        tensors.pack([torch.zeros(2, dtype=torch.complex64)])
    with pytest.raises(WireError, match="another type"):
        tensors.pack([pool := torch.zeros(4, dtype=torch.int32), pool.view(torch.float32)])


@pytest.mark.parametrize(
    "written",
    [
        [],
        [b"12345678"],
        [b"12345678", b"1234", b""],
        [b"1234", b"1234"],
        [b"12345678", "1234"],
        [b"12345678", None],
    ],
    ids=str,
)
def test_an_answer_of_another_size_or_form_is_refused_and_changes_nothing(written: list[Any]) -> None:
    one, other = torch.zeros(2), torch.zeros(1)
    with pytest.raises(WireError):
        tensors.restore([one, other, one[:1]], written)
    assert not one.any()
    assert not other.any()


BUFFER = {"dtype": "float32", "numel": 4, "bytes": bytes(16)}
VIEW = [0, "float32", [2, 2], [2, 1], 0]
HOSTILE_VIEWS = {
    "too far": [0, "float32", [2, 3], [2, 1], 0],
    "too far by its offset": [0, "float32", [2, 2], [2, 1], 1],
    "negative offset": [0, "float32", [1], [1], -1],
    "negative stride": [0, "float32", [2], [-1], 1],
    "negative size": [0, "float32", [-1], [1], 0],
    "strides that would overflow": [0, "float32", [3], [2**62], 0],
    "size that would overflow": [0, "float32", [2**62, 2], [0, 0], 0],
    "more elements than anybody has": [0, "float32", [2**40], [0], 0],
    "another type": [0, "int32", [2], [1], 0],
    "no such buffer": [1, "float32", [2], [1], 0],
    "buffer by a negative number": [-1, "float32", [2], [1], 0],
    "bool for a number": [False, "float32", [2], [1], 0],
    "float for a size": [0, "float32", [2.0], [1], 0],
    "too many dimensions": [0, "float32", [1] * 9, [1] * 9, 0],
    "shape without strides": [0, "float32", [2], [], 0],
    "no list": "tensor",
    "short": [0, "float32", [2]],
}


@pytest.mark.parametrize("view", HOSTILE_VIEWS.values(), ids=HOSTILE_VIEWS)
def test_a_view_that_does_not_fit_its_buffer_is_refused(view: Any) -> None:
    assert tensors.unpack([BUFFER], [{"tensor": VIEW}])
    with pytest.raises(WireError):
        tensors.unpack([BUFFER], [{"tensor": VIEW}, {"tensor": view}])


@pytest.mark.parametrize(
    "buffer",
    [
        {**BUFFER, "numel": 5},
        {**BUFFER, "numel": 4.0},
        {**BUFFER, "dtype": "complex64"},
        {**BUFFER, "dtype": "Tensor"},
        {**BUFFER, "dtype": ["float32"]},
        {**BUFFER, "bytes": "x" * 16},
        {**BUFFER, "more": 1},
        {"dtype": "float32"},
        None,
    ],
    ids=str,
)
def test_a_buffer_that_is_not_what_it_says_is_refused(buffer: Any) -> None:
    with pytest.raises(WireError):
        tensors.unpack([buffer], [])


def test_too_much_of_anything_is_refused() -> None:
    with pytest.raises(WireError, match="buffers"):
        tensors.unpack([BUFFER] * (tensors.BUFFERS_MAX + 1), [])
    with pytest.raises(WireError, match="arguments"):
        tensors.unpack([], [{"value": 1}] * (tensors.ARGUMENTS_MAX + 1))
    with pytest.raises(WireError, match="may cross in a call"):
        tensors.pack([torch.empty(tensors.CALL_BYTES_MAX + 1, dtype=torch.uint8)])


@pytest.mark.parametrize("arg", [{}, {"value": 1, "tensor": VIEW}, {"other": 1}, 3], ids=str)
def test_an_argument_of_no_known_form_is_refused(arg: Any) -> None:
    with pytest.raises(WireError):
        tensors.unpack([BUFFER], [arg])


def test_a_storage_of_many_megabytes_crosses() -> None:
    pool = torch.arange(1 << 20)
    (arrived,), _ = across([pool])
    assert torch.equal(arrived, pool)
