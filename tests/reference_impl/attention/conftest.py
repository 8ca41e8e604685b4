"""Triton runs these tests' kernels: on a GPU where there is one, elsewhere in its interpreter.

Triton reads TRITON_INTERPRET where a kernel is defined, its own included, so it is set around the first import and
taken back, as what other tests start must not inherit it; Triton's knob keeps it for this process alone.
"""

from __future__ import annotations

import os
import sys

import pytest
import torch

if not torch.cuda.is_available() and "triton" not in sys.modules:
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton

        import reference_impl.attention.cascade_decode
        import reference_impl.attention.paged_decode
        import reference_impl.attention.paged_prefill
        import reference_impl.attention.store_kv  # noqa: F401

        triton.knobs.runtime.interpret = True
    except ImportError:
        # No triton: the tests that need it say so, the others need none.
        pass
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


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
