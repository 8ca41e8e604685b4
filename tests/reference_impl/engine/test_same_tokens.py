"""Whatever part is exchanged, however memory runs out: the tokens are those of transformers on the same weights."""

from __future__ import annotations

from typing import Any

import pytest

from reference_impl.bench.beside_transformers import as_transformers
from reference_impl.model.loader import LoadedModel
from tests.reference_impl.engine.same_tokens import (
    WAYS,
    answers,
    difference,
    prompts_of,
    spread,
    transformers_answer,
)

FEW = {"lengths": [*spread(9, 260), 16, 17, 1], "new_tokens": 12}
ALL = {"lengths": spread(64, 1_500), "new_tokens": 64}


class Case:
    """Prompts, what transformers makes of them, and how often somebody parted from it at a tie."""

    def __init__(self, loaded: LoadedModel, lengths: list[int], new_tokens: int) -> None:
        self.loaded = loaded
        self.new_tokens = new_tokens
        self.prompts = prompts_of(loaded, lengths)
        pytest.importorskip("transformers", reason="transformers is not installed: nothing to hold the engine against")
        self.model = as_transformers("smollm2")
        self.expected = [transformers_answer(self.model, prompt, new_tokens) for prompt in self.prompts]

    def check(self, name: str) -> Any:
        built, everyone = answers(self.loaded, WAYS[name], self.prompts, self.new_tokens)
        parted = 0
        for number, (prompt, expected) in enumerate(zip(self.prompts, self.expected, strict=True)):
            assert len(everyone[number]) == WAYS[name].n
            for ours in everyone[number]:
                told = difference(self.model, prompt, ours, expected)
                assert not told, f"prompt {number} of {len(prompt)} tokens: {told}"
                parted += ours != expected
        print(f"{name}: {sum(map(len, everyone))} answers equal, {parted} of them up to a tie below 1e-4")
        self.check_it_was_that_way(name, built)
        return built

    def check_it_was_that_way(self, name: str, built: Any) -> None:
        """A way that is not gone proves nothing."""
        counters, way = built.engine.scheduler.counters, WAYS[name]
        if "preempted" in name or "too little" in name or "swapped" in name:
            assert counters.preemptions > 0
        if way.settings.get("recovery") == "swap":
            assert counters.swaps_in > 0
        if way.twice:
            assert counters.reused_tokens > 0
        if way.n > 1 and built.engine.scheduler.can_fork:
            assert counters.forks > 0
        assert built.engine.scheduler.memory.account().held == 0


@pytest.fixture(scope="module")
def few(smollm2: LoadedModel, one_thread: None) -> Case:
    return Case(smollm2, **FEW)


@pytest.fixture(scope="module")
def all_of_them(smollm2: LoadedModel) -> Case:
    return Case(smollm2, **ALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_a_dozen_prompts_get_the_tokens_of_transformers(few: Case, name: str) -> None:
    few.check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", WAYS)
def test_64_prompts_of_1_to_1500_tokens_get_the_64_tokens_of_transformers(all_of_them: Case, name: str) -> None:
    all_of_them.check(name)
