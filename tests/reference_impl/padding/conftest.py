"""Whose padding is under test. The tests of tensors and batches reach it through `lab` alone, so that another
implementation of the same functions can stand in its place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

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
