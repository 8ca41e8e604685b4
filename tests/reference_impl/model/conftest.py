"""Triton runs the model's kernels: on a GPU where there is one, elsewhere in its interpreter."""

from __future__ import annotations

import pytest
import torch

from tests.triton_here import import_triton

import_triton()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    triton = pytest.importorskip("triton", reason="Triton is not installed here")
    if torch.cuda.is_available():
        return torch.device("cuda")
    assert triton.knobs.runtime.interpret, "something imported triton before these tests were collected"
    return torch.device("cpu")
