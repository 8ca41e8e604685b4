"""What a graph of decodes reads and writes, on any device: its steps run by hand instead of captured.

That captured ones give the tokens of a CPU is in `test_gpu_engine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import pytest

from reference_impl.engine.decode_graphs import PREFIX_GRAPHS, PREFIX_STEPS, DecodeGraphs
from reference_impl.engine.engine import Engine
from reference_impl.engine.outputs import FinishReason
from reference_impl.engine.runner import Awaited
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine import driving
from tests.reference_impl.engine.driving import GREEDY, heard, tiny_engine
from tests.reference_impl.engine.faults import heard_through
from tests.reference_impl.engine.graphs_by_hand import OfItsTensors, give_graphs

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True, params=["off", "on"], ids=["one step after the other", "steps overlap"])
def overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(driving, "OVERLAP", request.param)
    return str(request.param)


def with_graphs(
    tiny: LoadedModel, rows: int, *, cascade_bytes: int | None = None, **settings: Any
) -> tuple[Engine, DecodeGraphs, list[tuple[int, ...]]]:
    """An engine whose steps with prompts are launched; its graphs, and their sizes and prefixes as they run."""
    engine = tiny_engine(tiny, **settings).engine
    graphs, ran = give_graphs(
        engine, OfItsTensors(), max_rows=rows, max_tokens=1, max_context_tokens=64, cascade_bytes=cascade_bytes
    )
    return engine, graphs.decodes, ran


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
    engine, _, ran = with_graphs(tiny, rows, **settings)
    plain = tiny_engine(tiny, **settings).engine
    told, expected = (served(each, range(2, 14), [1, 2] * 6) for each in (engine, plain))
    assert told == expected
    assert ran


def test_more_tokens_may_be_awaited_than_a_graph_has_rows(tiny: LoadedModel) -> None:
    """Nine answers end together and three go on: their tokens stand among twelve, and the graphs have four rows."""
    engine, _, ran = with_graphs(tiny, 4, max_running=12, max_context_tokens=64)
    plain = tiny_engine(tiny, max_running=12, max_context_tokens=64).engine
    told, expected = (served(each, [3] * 9 + [8] * 3) for each in (engine, plain))
    assert told == expected
    assert [len(tokens) for tokens in told] == [3] * 9 + [8] * 3
    assert ran


def test_all_sizes_write_into_one_piece_of_logits(tiny: LoadedModel) -> None:
    engine, graphs, ran = with_graphs(tiny, 8, max_context_tokens=64)
    seen: set[int] = set()
    run = engine.runner.run

    def watched(plan: Any, tokens: Any, awaited: Awaited | None = None) -> Any:
        step = run(plan, tokens, awaited)
        if len(step.rows) == len(plan.scheduled) and plan.num_tokens == len(plan.scheduled):
            seen.add(step.logits.data_ptr())
        return step

    engine.runner.run = watched  # type: ignore[method-assign]
    served(engine, range(3, 19, 2))
    assert len(set(ran)) == 4
    assert seen == {graphs._logits.data_ptr()}


def with_system_prompt(
    tiny: LoadedModel, cascade_bytes: int | None, answers: int = 3, most: int = 24
) -> list[tuple[int, ...]]:
    """Answers behind eleven tokens of which eight lie in the same two blocks; the first prompt fills its step.

    The size and prefix of each graph that ran.
    """
    engine, _, ran = with_graphs(
        tiny, 4, cascade_bytes=cascade_bytes, prefix_cache="hash", max_tokens_per_step=12, max_context_tokens=64
    )
    for number in range(answers):
        engine.add([*range(11), 100 + number], replace(GREEDY, max_tokens=most))
    heard(engine)
    return ran


def test_a_prefix_that_came_some_steps_in_a_row_has_a_graph_of_its_own(tiny: LoadedModel) -> None:
    ran = with_system_prompt(tiny, cascade_bytes=1)
    three = [prefix for size, prefix in ran if size == 4]
    assert three[: PREFIX_STEPS - 1] == [0] * (PREFIX_STEPS - 1)
    assert set(three[PREFIX_STEPS - 1 :]) == {8}
    assert len(three) > PREFIX_STEPS


def test_what_is_spared_decides_and_nothing_is_looked_for_unless_asked(tiny: LoadedModel) -> None:
    """Three sequences spare 2 x 8 tokens of 256 bytes a layer."""
    token_bytes = tiny.config.kv_bytes_per_token(4) // tiny.config.num_layers
    assert (4, 8) in with_system_prompt(tiny, cascade_bytes=16 * token_bytes)
    assert (4, 8) not in with_system_prompt(tiny, cascade_bytes=16 * token_bytes + 1)
    assert {prefix for _, prefix in with_system_prompt(tiny, cascade_bytes=None)} == {0}


def test_one_sequence_and_another_prefix_between_give_no_graph(tiny: LoadedModel) -> None:
    assert {prefix for _, prefix in with_system_prompt(tiny, cascade_bytes=1, answers=1)} == {0}
    assert {prefix for _, prefix in with_system_prompt(tiny, cascade_bytes=1, most=PREFIX_STEPS - 1)} == {0}


def test_of_graphs_with_prefixes_the_one_that_was_used_longest_ago_goes(tiny: LoadedModel) -> None:
    _, graphs, _ = with_graphs(tiny, 2)
    first = graphs_of(graphs, 4)
    for prefix_tokens in range(8, 4 * (PREFIX_GRAPHS + 1), 4):
        graphs_of(graphs, prefix_tokens)
    assert graphs._graph(2, 4) is first, "all of them are kept"
    graphs_of(graphs, 4 * (PREFIX_GRAPHS + 1))
    assert len(graphs._prefixed) == PREFIX_GRAPHS
    assert graphs._graph(2, 4) is first
    assert (2, 8) not in graphs._prefixed


def test_a_graph_that_could_not_be_captured_is_not_tried_again(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"prefix_cache": "hash", "max_tokens_per_step": 12, "max_running": 4, "max_context_tokens": 64}
    engine, graphs, _ = with_graphs(tiny, 4, cascade_bytes=1, **parts)

    def no_room(*of: Any) -> Any:
        raise RuntimeError("no room for a graph")

    monkeypatch.setattr(graphs._capture, "step", no_room)
    for number in range(6):
        engine.add([*range(11), 100 + number], replace(GREEDY, max_tokens=24))
    told, errors = heard_through(engine)
    assert len(errors) == 1
    ends = [told[key].finish for key in sorted(told)]
    assert ends == [FinishReason.ERROR] * 4 + [FinishReason.LENGTH] * 2


def graphs_of(graphs: DecodeGraphs, prefix_tokens: int) -> Any:
    """The graph after as many steps with this prefix as it takes."""
    return [graphs._graph(2, prefix_tokens) for _ in range(PREFIX_STEPS)][-1]


def test_where_every_layer_has_a_window_no_prefix_is_read_once(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in tiny.transformer.layers:
        monkeypatch.setattr(layer, "window", 6)
    assert {prefix for _, prefix in with_system_prompt(tiny, cascade_bytes=1)} == {0}
