"""Triton runs the model's kernels: on a GPU where there is one, elsewhere in its interpreter.

As for attention's kernels: TRITON_INTERPRET is set around the first import alone, as what other tests start must not
inherit it.
"""

from __future__ import annotations

import os
import sys

import pytest


def _import_interpreted() -> None:
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton

        triton.knobs.runtime.interpret = True
    except ImportError:
        # No triton: the tests that need it say so, the others need none.
        pass
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

if torch is not None and not torch.cuda.is_available() and "triton" not in sys.modules:
    _import_interpreted()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    triton = pytest.importorskip("triton", reason="Triton is not installed here")
    if torch.cuda.is_available():
        return torch.device("cuda")
    assert triton.knobs.runtime.interpret, "something imported triton before these tests were collected"
    return torch.device("cpu")
