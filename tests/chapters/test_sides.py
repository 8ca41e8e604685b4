"""The chapter "Left, right, mask, position": its helpers are the engine's, and what it says of each fault holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labkit.figures import Figure
from labkit.quizzes import Quiz
from labkit.switch import Switch
from labkit.workloads import workload
from reference_impl.padding.batch import attention_bias, pad_batch, position_ids

CHAPTER = "sides"
ROOT = Path(__file__).resolve().parents[2]


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_pages_helpers_are_the_engines_batch(chapter: Any, side: str) -> None:
    prompts, number = chapter.names["prompts"], chapter.names["number"]
    ids, mask = chapter.names["pad"](prompts, side)
    expected_ids, expected_mask = pad_batch([[number[word] for word in p.split()] for p in prompts], 0, side)
    assert ids.tolist() == expected_ids.tolist()
    assert mask.tolist() == expected_mask.tolist()


def test_positions_and_looks_are_the_engines_for_any_mask(chapter: Any) -> None:
    for seed in range(50):
        mask = np.random.default_rng(seed).random((3, 7)) < 0.6
        assert chapter.names["count_real"](mask).tolist() == position_ids(torch.tensor(mask)).tolist()
        look = attention_bias(torch.tensor(mask))[:, 0] == 0
        assert chapter.names["may_look"](mask).tolist() == look.tolist()


def test_the_model_goes_on_with_its_own_sentences_by_a_wide_margin(chapter: Any) -> None:
    names = chapter.names
    for text in names["texts"]:
        # After one word it may waver, as the page says: two sentences begin alike.
        scores = names["alone"](text)[1:-1] @ names["head"]
        best = np.sort(scores, axis=-1)
        assert [names["words"][token] for token in scores.argmax(axis=-1)] == text.split()[2:]
        assert (best[:, -1] - best[:, -2]).min() > 0.9


def test_left_padding_gives_every_row_what_it_says_alone_and_the_other_ways_do_not(chapter: Any) -> None:
    go_on, prompts, truth = (chapter.names[name] for name in ("go_on", "prompts", "truth"))
    assert go_on(prompts) == truth
    for way in ({"side": "right"}, {"masked": False}, {"counted": False}):
        said = go_on(prompts, **way)
        assert said[0] == truth[0], "the longest row is right"
        assert said != truth, way
    assert chapter.glued["alone_b"] == truth[1].replace(" .", "") + "."
    assert chapter.glued["wrong_b"].rstrip(".") == go_on(prompts, side="right")[1].rstrip(" .")


def test_the_figure_shows_what_the_engine_made_and_the_model_says(chapter: Any) -> None:
    (switch,) = (shown for shown in chapter.shown if isinstance(shown, Switch))
    assert len(switch.figures) == 4
    for name, batch in chapter.names["evidence"]["batches"].items():
        mask = torch.tensor(batch["mask"])
        assert batch["positions"] == position_ids(mask).tolist()
        live = name.startswith("left") or "later" in name
        assert bool(mask[:, -1].all()) == live
        figure = switch.figures[name[0].upper() + name[1:]]
        assert ("ends in a real token" in figure.description) or ("end in a pad" in figure.description)
        if "later" in name:
            said = [answer.split()[:2] for answer in chapter.names["truth"]]
            assert [row[-2:] for row in batch["rows"]] == said == chapter.names["evidence"]["answers"]


def test_the_share_of_answers_at_stake_is_that_of_a_second_count(chapter: Any) -> None:
    prompts = workload("azure_conv").prompt_tokens.tolist()
    batches = [prompts[start : start + 16] for start in range(0, len(prompts) - 15, 16)]
    full = sum(batch.count(max(batch)) for batch in batches)
    assert float(chapter.glued["survivors"]) == pytest.approx(full / len(batches), abs=0.005)
    assert float(chapter.glued["at_stake"]) == pytest.approx(100 * (1 - full / len(batches) / 16), abs=0.05)


def test_both_together_change_nothing_and_either_alone_changes_scores_from_the_first_pad(chapter: Any) -> None:
    curves = chapter.names["curves"]
    assert max(curves["both"]) < 1e-12
    assert min(curves["mask, no positions"]) > 0.1
    assert min(curves["positions, no mask"]) > 0.1
    assert chapter.glued["b_positions"] == "0 0 0 0 1 2"


def test_the_keys_of_the_questions_are_computed_and_the_case_is_told_truly(chapter: Any) -> None:
    columns, case = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert columns.answer.startswith("None")
    assert case.answer.startswith("Positions are counted")
    go_on, prompts, words = (chapter.names[name] for name in ("go_on", "prompts", "words"))
    assert len({tuple(go_on(prompts, filler=word)) for word in range(len(words))}) == 1
    assert len({tuple(go_on(prompts, masked=False, filler=word)) for word in range(len(words))}) > 1
    # The table's second line tells the wrong side from the fourth by the first word of every shorter row.
    truth, right = chapter.names["truth"], go_on(prompts, side="right")
    assert all(said.split()[0] != known.split()[0] for said, known in zip(right[1:], truth[1:], strict=True))


def test_the_bug_is_wrong_where_the_page_says_and_right_in_the_tests_it_names(chapter: Any) -> None:
    next_words, go_on, prompts = (chapter.names[name] for name in ("next_words", "go_on", "prompts"))
    assert chapter.glued["bug_row"] == prompts[2]
    assert next_words(prompts)[2] == chapter.glued["bug_says"] != go_on(prompts)[2].split()[0]
    equal = ["The cat sat on", "A quick brown fox", "I really like this"]
    for batch in ([prompts[1]], equal):
        assert next_words(batch) == [go_on([prompt])[0].split()[0] for prompt in batch]


def test_every_figure_describes_itself(chapter: Any) -> None:
    figures = [shown for shown in chapter.shown if isinstance(shown, Figure)]
    (switch,) = (shown for shown in chapter.shown if isinstance(shown, Switch))
    assert len(figures) == 1
    for figure in [*figures, *switch.figures.values()]:
        assert len(figure.description.split()) >= 12
        assert figure.table.rows
        assert 'role="img"' in figure.svg


def test_the_folded_answer_to_exercise_3_runs_for_both_sides_and_for_holes(chapter: Any) -> None:
    names: dict[str, Any] = {"np": np}
    chapter.run_answer(3, names)
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], dtype=bool)
    assert names["last_real"](np.arange(12).reshape(3, 4), mask).tolist() == [1, 7, 10]
    with pytest.raises(ValueError, match="no real token"):
        names["last_real"](np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))


def test_the_model_answer_to_the_trace_exercise_is_what_the_engine_gives() -> None:
    answer = (ROOT / "solutions" / "chapters" / "sides.md").read_text(encoding="utf-8")
    _, before = pad_batch([[1, 2, 3], [4]], 0)
    after = torch.cat([before, torch.ones(2, 1, dtype=torch.bool)], dim=1)

    def told(mask: torch.Tensor, row: int) -> str:
        places = position_ids(mask)[row].tolist()
        return f"mask {' '.join(str(int(x)) for x in mask[row])}, positions {' '.join(map(str, places))}"

    for row in (0, 1):
        assert f"row {row + 1}: {told(before, row)}; then {told(after, row)}" in answer
    assert (attention_bias(after)[1, 0, 3] == 0).nonzero().flatten().tolist() == [2, 3]


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "numpy", "matplotlib"}
