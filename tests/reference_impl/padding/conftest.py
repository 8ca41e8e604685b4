"""Whose padding is under test. The tests of tensors and batches reach it through `lab` alone, so that another
implementation of the same functions can stand in its place."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from reference_impl.padding import make_batches, padding_share
from reference_impl.padding.batch import attention_bias, pack, packed_bias, pad_batch, position_ids


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    return SimpleNamespace(
        pad_batch=pad_batch,
        position_ids=position_ids,
        attention_bias=attention_bias,
        pack=pack,
        packed_bias=packed_bias,
        make_batches=make_batches,
        padding_share=padding_share,
    )


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few numbers: handing them to a second thread takes fifty times as long as the arithmetic."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
