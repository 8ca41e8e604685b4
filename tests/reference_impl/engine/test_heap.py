"""What lives as long as an engine is looked at by no collection, and everything else is as it was."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from reference_impl.cli import main
from reference_impl.engine.engine import Engine
from reference_impl.engine.heap import frozen_heap
from reference_impl.engine.outputs import Piece


class Node:
    """Something that can hold itself."""

    def __init__(self) -> None:
        self.itself: object = self


LONG_LIVED = Node()


def is_looked_at(node: Node) -> bool:
    """Whether collections come by it."""
    return any(held is node for held in gc.get_objects())


def test_what_was_there_is_not_looked_at() -> None:
    with frozen_heap():
        assert not is_looked_at(LONG_LIVED)
        assert is_looked_at(Node())
    assert is_looked_at(LONG_LIVED)


def test_garbage_is_found_that_was_made_before_it_and_within_it() -> None:
    gc.disable()
    try:
        before = weakref.ref(Node())
        with frozen_heap():
            assert before() is None
            within = weakref.ref(Node())
            gc.collect()
            assert within() is None
    finally:
        gc.enable()


def test_garbage_in_cycles_does_not_pile_up_while_it_lasts() -> None:
    with frozen_heap():
        lived = [weakref.ref(Node()) for _ in range(20_000)]
        assert sum(node() is not None for node in lived) < 10_000


def test_it_ends_with_an_error_as_without() -> None:
    thresholds = gc.get_threshold()
    with pytest.raises(KeyError), frozen_heap():
        raise KeyError("its own")
    assert is_looked_at(LONG_LIVED)
    assert gc.get_threshold() == thresholds


def test_one_within_another_ends_with_the_outer_one() -> None:
    with frozen_heap():
        with frozen_heap():
            pass
        assert not is_looked_at(LONG_LIVED)
    assert is_looked_at(LONG_LIVED)


TINY = ["--model", "tiny", "--dtype", "float32", "--device", "cpu"]


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--model", "tiny", "--prompt", "Hello", "--max-tokens", "2"],
        [
            "bench",
            "offline",
            *TINY,
            "--lengths",
            "azure_code",
            "--requests",
            "2",
            "--turns",
            "1",
            "--memory-share",
            "0.001",
        ],
        ["bench", "serve", *TINY, "--rates", "200", "--requests", "2"],
        [
            "bench",
            "budget",
            *TINY,
            "--kv-tokens",
            "128",
            "--requests",
            "6",
            "--max-prompt",
            "24",
            "--max-context",
            "32",
        ],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_command_that_owns_an_engine_freezes_it_while_it_steps(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reference_impl.bench.serving_command.RESULTS", tmp_path)
    was_frozen: list[bool] = []
    step = Engine.step

    def watched(engine: Engine) -> list[Piece]:
        was_frozen.append(not is_looked_at(LONG_LIVED))
        return step(engine)

    monkeypatch.setattr(Engine, "step", watched)
    assert main(words) == 0
    assert was_frozen[-1], "the last step; a benchmark's first ones only warm it up"
    assert is_looked_at(LONG_LIVED)


def test_a_server_is_frozen_while_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    was_frozen: list[bool] = []

    def served(*parts: object, **options: object) -> None:
        was_frozen.append(not is_looked_at(LONG_LIVED))

    monkeypatch.setattr("reference_impl.engine.server.http_server.serve", served)
    assert main(["serve", "--model", "tiny", "--port", "0"]) == 0
    assert was_frozen == [True]
