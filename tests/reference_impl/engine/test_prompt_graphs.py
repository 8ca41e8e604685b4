"""What a graph of a step with prompts reads and writes, on any device: its steps run by hand instead of captured.

That captured ones give the tokens of a CPU is in `test_gpu_engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.attention.metadata import lay_out
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.batch import KNOWN, Batch
from reference_impl.engine.graphs import StepGraphs
from reference_impl.engine.kv_cache import KVCache
from reference_impl.engine.prompt_graphs import shapes_for
from reference_impl.engine.runner import Runner
from reference_impl.engine.upload import Uploader
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine.driving import GREEDY, heard, tiny_engine
from tests.reference_impl.engine.graphs_by_hand import ByHand, OfItsTensors, give_graphs

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCK_SIZE, LONGEST = 4, 40
WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "prompts in chunks": {"max_tokens_per_step": 11},
    "too little memory": {"blocks": 40},
    "swapped": {"blocks": 40, "recovery": "swap", "host_memory_bytes": 2**20, "prefix_cache": "none"},
    "no prefix cache": {"prefix_cache": "none"},
    "a rectangle with pads": {"block_allocator": "padded", "max_tokens_per_step": 512},
}


def prompts(count: int) -> list[list[int]]:
    """Of 2 to 35 tokens; every third begins like the first."""
    return [
        [(place * 7 + (number if number % 3 else 0)) % 200 for place in range(2 + 3 * number)]
        for number in range(count)
    ]


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_tokens_are_those_of_an_engine_without_graphs_and_no_step_is_launched(
    tiny: LoadedModel, way: dict[str, Any], overlap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"max_running": 9, "max_context_tokens": 64, "max_tokens_per_step": 64, "overlap": overlap, **way}

    def tokens(with_graphs: bool) -> list[list[int]]:
        engine = tiny_engine(tiny, **parts).engine
        if with_graphs:
            sizes = {"max_rows": 9, "max_tokens": parts["max_tokens_per_step"], "max_context_tokens": 64}
            _, ran = give_graphs(engine, OfItsTensors(), **sizes)
            monkeypatch.setattr(Runner, "_launch", lambda *_: pytest.fail("a step was launched kernel by kernel"))
        for number, prompt in enumerate(prompts(12)):
            engine.add(prompt, replace(GREEDY, max_tokens=3 + number, n=1 + number % 2))
        told = heard(engine)
        assert not with_graphs or {len(of) for of in ran} == {1, 2}, "steps of both kinds ran"
        return [told[key].token_ids for key in sorted(told)]

    assert tokens(with_graphs=False) == tokens(with_graphs=True)


Row = tuple[int, int]
"""Query tokens of a sequence, and its context."""
rows_of_a_step = st.lists(st.tuples(st.integers(1, 9), st.integers(0, LONGEST - 9)), min_size=1, max_size=7).map(
    lambda drawn: sorted(((query, query + cached) for query, cached in drawn), key=lambda row: row[0] > 1)
)


def batch_of(
    rows: Sequence[Row], makes: Sequence[bool], awaits: Sequence[bool], *, seed: int, num_pads: int = 0
) -> Batch:
    """Sequences in blocks of their own, some of which make a token and wait for their last token's id, and pads."""
    chance = np.random.default_rng(seed)
    columns = -(-max(LONGEST, *(context for _, context in rows)) // BLOCK_SIZE)
    tables = chance.permutation(len(rows) * columns).reshape(len(rows), columns).astype(np.int32)
    for table, (_, context) in zip(tables, rows, strict=True):
        table[-(-context // BLOCK_SIZE) :] = -1
    queries, contexts = [query for query, _ in rows], [context for _, context in rows]
    layout = lay_out(tables, queries, contexts, BLOCK_SIZE, num_pads=num_pads)
    making = np.flatnonzero(makes)
    last = layout.cu_seqlens[1:].astype(np.int64)[making] - 1
    tokens = chance.integers(0, 250, layout.cu_seqlens[-1] + num_pads)
    sources = np.full(len(tokens), KNOWN, dtype=np.int64)
    sources[last] = np.where(np.array(awaits)[making], chance.permutation(len(rows))[making], KNOWN)
    return Batch(tokens, layout, tuple(making), last, sources if (sources != KNOWN).any() else None)


def known(rows: Sequence[Row], makers: int) -> Batch:
    """The first `makers` sequences make a token, and the host knows the ids of all tokens."""
    return batch_of(rows, [place < makers for place in range(len(rows))], [False] * len(rows), seed=1)


def graphs_over(tiny: LoadedModel, cache: KVCache) -> StepGraphs:
    sizes = {"max_rows": 7, "max_tokens": 63, "max_context_tokens": LONGEST}
    return StepGraphs(tiny.transformer, OfItsTensors(), cache.layers, capture=ByHand, **sizes)


def run_by(graphs: StepGraphs, batch: Batch, chosen: torch.Tensor) -> torch.Tensor:
    of = graphs.of(batch)
    assert of is not None
    return of.run(batch, Uploader(torch.device("cpu")), chosen)


def run_by_launches(tiny: LoadedModel, cache: KVCache, batch: Batch, chosen: torch.Tensor) -> torch.Tensor:
    ids = torch.from_numpy(batch.token_ids.copy())
    if batch.sources is not None:
        sources = torch.from_numpy(batch.sources)
        ids = torch.where(sources == KNOWN, ids, chosen[sources.clamp_min(0)])
    metadata = batch.layout.metadata([torch.from_numpy(array) for array in batch.layout.arrays])
    positions, rows = (torch.from_numpy(array) for array in (batch.layout.positions, batch.logit_rows))
    return tiny.transformer.forward(ids, positions, cache.layers, metadata, TorchAttention(), rows)


def filled_cache(tiny: LoadedModel, blocks: int, seed: int) -> KVCache:
    cache = KVCache(tiny.config, blocks, BLOCK_SIZE, dtype=torch.float32, device=torch.device("cpu"))
    chance = torch.Generator().manual_seed(seed)
    for tensor in (each for layer in cache.layers for each in layer):
        tensor.copy_(torch.randn(tensor.shape, generator=chance))
    return cache


@settings(deadline=None)
@given(st.data(), rows_of_a_step, st.integers(0, 5), st.integers(0, 2**16))
def test_any_step_gives_the_logits_and_the_cache_that_launches_give(
    tiny: LoadedModel, data: st.DataObject, rows: list[Row], num_pads: int, seed: int
) -> None:
    """Decodes, chunks of one token, chunks behind cached tokens and whole prompts, in any number, and pads."""
    flags = st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))
    makes, awaits = data.draw(flags, "makes"), data.draw(flags, "awaits")
    batch = batch_of(rows, makes, awaits, seed=seed, num_pads=min(num_pads, 7 - len(rows)))
    chosen = torch.arange(100, 100 + len(rows))
    blocks = len(rows) * -(-LONGEST // BLOCK_SIZE)
    caches = [filled_cache(tiny, blocks, seed) for _ in range(2)]
    found = run_by(graphs_over(tiny, caches[0]), batch, chosen)
    expected = run_by_launches(tiny, caches[1], batch, chosen)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_graph_forgets_the_step_before(tiny: LoadedModel) -> None:
    """A large step, then a small one of the same shape: nobody of the first is in the second."""
    large, small = known([(1, 9)] * 3 + [(9, 12)] * 4, 7), known([(1, 5), (2, 2)], 2)
    chosen = torch.zeros(1, dtype=torch.int64)
    cache, other = (filled_cache(tiny, 70, 0) for _ in range(2))
    graphs = graphs_over(tiny, cache)
    for batch in (large, small):
        found = run_by(graphs, batch, chosen)
        expected = run_by_launches(tiny, other, batch, chosen)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(cache.layers, other.layers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("max_rows", "max_tokens"), [(1, 1), (5, 70), (64, 512), (256, 8_192)])
def test_every_step_has_a_shape_that_is_not_much_too_large(max_rows: int, max_tokens: int) -> None:
    shapes = shapes_for(max_rows, max_tokens)
    assert max(shape.decodes for shape in shapes) == max_rows
    assert max(shape.prompt_tokens for shape in shapes) == min(max_tokens, 2_048)
    assert all(shape.rows == min(shape.sequences, max_rows) for shape in shapes)
    sizes = sorted({shape.prompt_tokens for shape in shapes})
    assert all(larger <= 2 * smaller for smaller, larger in pairwise(sizes))
    assert len(shapes) <= 24


@pytest.mark.parametrize(
    ("rows", "makers", "fits"),
    [
        pytest.param([(1, 3), (9, 9)], 2, True, id="a decode and a prompt"),
        pytest.param([(9, 9)] * 7, 7, True, id="seven prompts"),
        pytest.param([(2, 9)] * 8, 7, False, id="more prompts than there are sequences for"),
        pytest.param([(1, 9)] * 8 + [(2, 9)], 7, False, id="more decodes than there are rows for"),
        pytest.param([(1, 9)] * 7 + [(2, 2)], 7, True, id="as many rows of logits as there are"),
        pytest.param([(1, 9)] * 7 + [(2, 2)], 8, False, id="more rows of logits than there are"),
        pytest.param([(32, 32), (32, 32)], 2, False, id="more tokens of prompts than the largest shape has"),
        pytest.param([(2, LONGEST + 1)], 1, False, id="a table that is too long"),
    ],
)
def test_a_step_that_is_larger_than_every_shape_is_left_to_who_launches(
    tiny: LoadedModel, rows: list[Row], makers: int, fits: bool
) -> None:
    assert (graphs_over(tiny, filled_cache(tiny, 1, 0)).of(known(rows, makers)) is not None) == fits
