"""The textbook's kernel beside a student's: a time where the kernel takes the cache, and none elsewhere."""

# Everything below needs Triton.
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.triton_here import import_triton

if not import_triton():
    pytest.skip("Triton is not installed here", allow_module_level=True)

from autograder.gpu import textbook
from autograder.gpu.stand import Stand
from autograder.gpu.timed import TimedCase

CASE = TimedCase((9000, *(200 + 37 * n for n in range(40))), 32, 8, 128, 16, "float16")


def test_a_cache_that_the_textbooks_kernel_does_not_take_has_no_time() -> None:
    assert textbook.textbook_us(replace(CASE, head_dim=96)) is None
    assert textbook.textbook_us(replace(CASE, block_size=8)) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch finds none here")
def test_it_is_slower_than_the_reference_where_lengths_are_unequal() -> None:
    from autograder.gpu import clock

    data: Any = clock.recorded_reference(CASE, *CASE.tables(3))[0]
    with Stand() as stand:
        stand.prove(lambda: None)
        found_us = stand.textbook_us(CASE)
        timing = stand.time(data, CASE, 3)
    print(f"textbook {found_us} us, reference {timing.reference_us:.1f} us")
    assert found_us is not None
    assert found_us > 1.5 * timing.reference_us
