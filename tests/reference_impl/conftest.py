"""For the tests of the engine: torch with one thread, the tiny model, and the real one where it was fetched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tensors of a few numbers: handing them to a second thread takes fifty times as long as the arithmetic."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny():  # type: ignore[no-untyped-def]
    """The built-in model with random weights."""
    return pytest.importorskip("reference_impl.model.loader").load_model("tiny")


@pytest.fixture(scope="session")
def smollm2():  # type: ignore[no-untyped-def]
    """SmolLM2-135M-Instruct in float32; skips where it is not in the cache, or what reads it is not installed."""
    loader = pytest.importorskip("reference_impl.model.loader")
    try:
        return loader.load_model("smollm2")
    except (ValueError, ImportError) as error:
        pytest.skip(f"no SmolLM2 here: {error}")
