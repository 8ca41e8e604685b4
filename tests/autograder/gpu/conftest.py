"""For tests that need a GPU, or one to themselves."""

from __future__ import annotations

import pytest


@pytest.fixture
def alone(request: pytest.FixtureRequest) -> None:
    """The GPU for this test alone: what others do beside it is no noise that a grader meets, and it may be filled."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and torch finds none here")
    if hasattr(request.config, "workerinput"):
        pytest.skip(f"needs the GPU alone; run {request.node.path.name} without -n")
    torch.cuda.empty_cache()
