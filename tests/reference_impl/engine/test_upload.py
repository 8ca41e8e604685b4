"""What a step sends to the device arrives as it was, in one piece, and is not written over while it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from reference_impl.engine.upload import Uploader, pack, packed_bytes, unpack

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch finds none here")
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=[pytest.mark.gpu, on_gpu])]

ARRAYS = st.lists(
    st.sampled_from([np.int64, np.int32, np.float32, np.float64, np.uint8]).flatmap(
        lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5))
    ),
    max_size=6,
)


def same(sent: list[torch.Tensor], arrays: list[NDArray[Any]]) -> bool:
    """In values, shape and type, with NaN like itself."""
    return len(sent) == len(arrays) and all(
        np.array_equal(tensor.cpu().numpy().view(np.uint8), np.ascontiguousarray(array).view(np.uint8))
        and tensor.shape == array.shape
        and tensor.cpu().numpy().dtype == array.dtype
        for tensor, array in zip(sent, arrays, strict=True)
    )


@given(arrays=ARRAYS)
@settings(deadline=None)
def test_what_is_packed_into_one_piece_comes_out_as_it_was(arrays: list[NDArray[Any]]) -> None:
    piece = np.full(packed_bytes(arrays) + 8, 0xAB, dtype=np.uint8)
    pack(arrays, piece)
    found = unpack(arrays, torch.from_numpy(piece)[: packed_bytes(arrays)])
    assert same(found, arrays)
    assert (piece[packed_bytes(arrays) :] == 0xAB).all(), "nothing behind its end is written"
    assert all(tensor.storage_offset() * tensor.element_size() % 16 == 0 for tensor in found if tensor.numel())


def test_an_array_whose_rows_lie_apart_is_packed_in_its_own_order() -> None:
    array = np.arange(24, dtype=np.int64).reshape(4, 6)[:, 1::2]
    piece = np.zeros(packed_bytes([array]), dtype=np.uint8)
    pack([array], piece)
    assert unpack([array], torch.from_numpy(piece))[0].tolist() == array.tolist()


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_each_array_arrives_on_the_device(device: torch.device) -> None:
    arrays = [np.arange(7), np.zeros((0, 3), dtype=np.int32), np.full((3, 5), -1, dtype=np.int32), np.array([0.5])]
    sent = Uploader(device).send(arrays)
    assert {tensor.device.type for tensor in sent} == {device.type}
    assert same(sent, arrays)
    assert Uploader(device).send([]) == []


@pytest.mark.gpu
@on_gpu
def test_many_sends_in_a_row_keep_what_each_was_given() -> None:
    """The device is kept busy, so that the host is some sends ahead of what was copied."""
    upload, kept = Uploader(torch.device("cuda")), []
    work = torch.randn(2_048, 2_048, device="cuda")
    for number in range(24):
        for _ in range(8):
            work = (work @ work).tanh()
        kept.append(upload.send([np.full(1 + 997 * number, number), np.array([number], dtype=np.int32)]))
    for number, (many, one) in enumerate(kept):
        assert many.unique().tolist() == [number]
        assert (len(many), one.tolist()) == (1 + 997 * number, [number])


@pytest.mark.gpu
@on_gpu
def test_an_uploader_of_one_gpu_does_not_ask_which_is_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second GPU")
    upload = Uploader(torch.device("cuda:1"))
    for number in range(5):
        (sent,) = upload.send([np.full(100, number)])
        assert sent.device == torch.device("cuda:1")
        assert sent.unique().tolist() == [number]
