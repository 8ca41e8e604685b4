"""What a graph reads and writes, on any device: its steps run by hand instead of captured.

That captured ones give the tokens of a CPU is in `test_gpu_engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.decode_graphs import DecodeGraphs
from reference_impl.engine.engine import Engine
from reference_impl.engine.runner import Awaited
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine import driving
from tests.reference_impl.engine.driving import GREEDY, heard, tiny_engine

pytestmark = pytest.mark.usefixtures("one_thread")


class OfItsTensors(TorchAttention):
    """Lengths as the tensors have them, since a graph's host does not know them; a padded row looks at one slot."""

    def attend(self, query: Tensor, *caches: Any, **options: Any) -> Tensor:
        key_cache, value_cache, metadata, scale = caches
        lengths = metadata.context_lens.clamp_min(1)
        exact = replace(metadata, context_lens=lengths, context_tokens=tuple(lengths.tolist()), worked_out={})
        return super().attend(query, key_cache, value_cache, exact, scale, **options)


class ByHand(DecodeGraphs):
    """Every size computes when it is replayed. ran: the sizes that were."""

    @staticmethod
    def _check_device(device: torch.device) -> None:
        pass

    def _captured(self, sizes: Sequence[int]) -> Any:
        self.ran: list[int] = []
        return [Replayed(self, size) for size in sizes]


@dataclass(frozen=True)
class Replayed:
    graphs: ByHand
    size: int

    def replay(self) -> None:
        self.graphs.ran.append(self.size)
        self.graphs._forward(self.size)


@pytest.fixture(autouse=True, params=["off", "on"], ids=["one step after the other", "steps overlap"])
def overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(driving, "OVERLAP", request.param)
    return str(request.param)


def with_graphs(tiny: LoadedModel, rows: int, **settings: Any) -> tuple[Engine, ByHand]:
    engine = tiny_engine(tiny, **settings).engine
    graphs = ByHand(tiny.transformer, OfItsTensors(), engine.runner.cache.layers, max_rows=rows, max_context_tokens=64)
    engine.runner.graphs = graphs
    return engine, graphs


def prompts(count: int) -> list[list[int]]:
    return [[(place * 5 + number) % 200 for place in range(1 + 3 * number)] for number in range(count)]


def served(engine: Engine, max_tokens: Sequence[int], n: Sequence[int] = ()) -> list[list[int]]:
    """The tokens of every answer."""
    for prompt, most, answers in zip_longest(prompts(len(max_tokens)), max_tokens, n, fillvalue=1):
        engine.add(prompt, replace(GREEDY, max_tokens=most, n=answers))
    told = heard(engine)
    return [told[key].token_ids for key in sorted(told)]


@pytest.mark.parametrize("rows", [3, 8, 13])
def test_tokens_are_those_of_an_engine_without_graphs(tiny: LoadedModel, rows: int) -> None:
    """Of 12 requests 10 run at once: more rows than the smallest set of graphs has, and chunks of one token."""
    settings = {"max_running": 10, "max_tokens_per_step": 16, "max_context_tokens": 64}
    engine, graphs = with_graphs(tiny, rows, **settings)
    plain = tiny_engine(tiny, **settings).engine
    told, expected = (served(each, range(2, 14), [1, 2] * 6) for each in (engine, plain))
    assert told == expected
    assert graphs.ran


def test_more_tokens_may_be_awaited_than_a_graph_has_rows(tiny: LoadedModel) -> None:
    """Nine answers end together and three go on: their tokens stand among twelve, and the graphs have four rows."""
    engine, graphs = with_graphs(tiny, 4, max_running=12, max_context_tokens=64)
    plain = tiny_engine(tiny, max_running=12, max_context_tokens=64).engine
    told, expected = (served(each, [3] * 9 + [8] * 3) for each in (engine, plain))
    assert told == expected
    assert [len(tokens) for tokens in told] == [3] * 9 + [8] * 3
    assert graphs.ran


def test_all_sizes_write_into_one_piece_of_logits(tiny: LoadedModel) -> None:
    engine, graphs = with_graphs(tiny, 8, max_context_tokens=64)
    seen: set[int] = set()
    run = engine.runner.run

    def watched(plan: Any, tokens: Any, awaited: Awaited | None = None) -> Any:
        step = run(plan, tokens, awaited)
        if len(step.rows) == len(plan.scheduled) and plan.num_tokens == len(plan.scheduled):
            seen.add(step.logits.data_ptr())
        return step

    engine.runner.run = watched  # type: ignore[method-assign]
    served(engine, range(3, 19, 2))
    assert len(set(graphs.ran)) == 4
    assert seen == {graphs._logits.data_ptr()}
