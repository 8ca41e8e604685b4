"""Triton runs these tests' kernels: on a GPU where there is one, elsewhere in its interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.triton_here import import_triton

import_triton()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") and "test_triton" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch finds none here"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    kernels = pytest.importorskip("reference_impl.attention.paged_decode", reason="Triton is not installed here")
    if torch.cuda.is_available():
        return torch.device("cuda")
    assert kernels.INTERPRETED, "something imported triton without TRITON_INTERPRET=1 before these tests were collected"
    return torch.device("cpu")
