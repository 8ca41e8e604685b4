"""What an engine promises as the longest request is what it takes, whichever way memory is kept."""

from __future__ import annotations

from itertools import product

import pytest

from reference_impl.engine.async_engine import AsyncEngine
from reference_impl.engine.engine import RequestRefused
from reference_impl.model.loader import LoadedModel
from reference_impl.model.sampling import SamplingParams
from tests.reference_impl.engine.driving import heard, tiny_engine

BLOCKS, BLOCK_SIZE = 90, 4
"""360 tokens: no power of two."""


def lasts(tokens: int) -> SamplingParams:
    """Of a prompt of one token, an answer that makes it `tokens` long."""
    return SamplingParams(max_tokens=tokens - 1, temperature=0.0, ignore_eos=True)


@pytest.mark.parametrize(
    ("allocator", "context"),
    [
        *product(["paged", "pow2", "grow"], [None, 300, 256, 100]),
        # Ranges for the longest context: of a longer one, none is there.
        *product(["contiguous"], [256, 100]),
    ],
)
def test_the_longest_request_that_is_promised_is_served_to_its_end(
    tiny: LoadedModel, allocator: str, context: int | None
) -> None:
    engine = tiny_engine(
        tiny, block_allocator=allocator, blocks=BLOCKS, block_size=BLOCK_SIZE, max_context_tokens=context
    ).engine
    longest = AsyncEngine(engine).max_context_tokens
    # With these two a range is a power of two of tokens.
    rounded = 256 if allocator in ("pow2", "contiguous") else BLOCKS * BLOCK_SIZE
    assert longest == min(rounded, context or rounded)
    request = engine.add([1], lasts(longest))
    assert len(heard(engine)[request, 0].tokens) == longest - 1
    if longest < BLOCKS * BLOCK_SIZE:
        with pytest.raises(RequestRefused):
            engine.add([1], lasts(longest + 1))


@pytest.mark.parametrize("context", [None, 300])
def test_an_engine_that_could_serve_nobody_is_not_made(tiny: LoadedModel, context: int | None) -> None:
    said = (
        f"memory of 360 tokens serves no request at all with allocator 'contiguous' and a context of {context or 2048}"
    )
    with pytest.raises(ValueError, match=said):
        tiny_engine(
            tiny, block_allocator="contiguous", blocks=BLOCKS, block_size=BLOCK_SIZE, max_context_tokens=context
        )
