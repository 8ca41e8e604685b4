"""The page "Start here": what can be earned is what the notebooks and the hidden tests say, and its check can fail."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from autograder.course import Course
from autograder.judge.suite import hidden_tests
from autograder.release import site_pages
from labkit.figures import Table
from labkit.player import Player
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.padding import pad_rows
from tests.chapters.reading import number

CHAPTER = "start"
ROOT = Path(__file__).resolve().parents[2]


def points_of(lab: str) -> dict[str, float]:
    notebook = json.loads((ROOT / "labs" / lab / f"{lab}.ipynb").read_text(encoding="utf-8"))
    metas = [cell["metadata"].get("nbgrader", {}) for cell in notebook["cells"]]
    return {meta["grade_id"]: meta["points"] for meta in metas if meta.get("grade")}


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    used = set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source))
    assert used == set(chapter.glued)


def test_what_each_way_can_earn_is_what_the_notebooks_and_the_hidden_tests_say(chapter: Any) -> None:
    course = Course.open(ROOT)
    every, anywhere = [], []
    for lab in course.labs():
        points = points_of(lab.id)
        # A test that does not run takes no point; a group needs a GPU if all of its tests do.
        on_gpu = set(points) - {test.group for test in hidden_tests(lab) if test.device != "cuda"}
        every.append(sum(points.values()))
        anywhere.append(sum(worth for group, worth in points.items() if group not in on_gpu))
    (table,) = (shown for shown in chapter.shown if isinstance(shown, Table))
    *labs, together = table.rows
    assert [(number(row[2]), number(row[3])) for row in labs] == list(zip(anywhere, every, strict=True))
    assert {row[1] for row in table.rows} == {"0"}
    assert [number(cell) for cell in together[1:]] == [0, sum(anywhere), sum(every)]
    assert any(group.startswith("bandwidth_") for group in on_gpu), "the page tells them by this name"
    assert number(chapter.glued["total"]) == sum(every)
    assert number(chapter.glued["speed"]) == sum(every) - sum(anywhere) > 0
    assert int(chapter.glued["labs"]) == len(labs)


def test_the_first_prediction_is_that_of_the_engines_own_rectangle(chapter: Any) -> None:
    prompts = workload("azure_conv").prompt_tokens[:8].tolist()
    rows = pad_rows([["token"] * length for length in prompts], "<pad>", side="left")
    pads = sum(row.count("<pad>") for row in rows)
    slots = sum(map(len, rows))
    assert number(chapter.glued["slots"]) == slots
    assert number(chapter.glued["padding"]) == pytest.approx(100 * pads / slots, abs=0.05)
    assert number(chapter.glued["tokens"]) == slots - pads
    assert chapter.glued["source"] == workload("azure_conv").description
    assert re.sub(r"\D+", " ", chapter.glued["shown"].replace(",", "")).split() == [str(p) for p in prompts]


@pytest.mark.parametrize(
    "broken",
    [
        lambda lengths: sum(lengths),
        lambda lengths: len(lengths) * min(lengths),
        lambda lengths: max(lengths),
        lambda lengths: len(lengths) * lengths[0],
        lambda lengths: len(lengths) * lengths[-1],
        lambda lengths: sum(lengths) + max(lengths) - min(lengths),
    ],
    ids=["tokens", "shortest", "one row", "the first", "the last", "a pad or two"],
)
def test_the_check_of_the_page_fails_on_what_is_wrong_and_says_why(chapter: Any, broken: Any) -> None:
    check = chapter.names["check"]
    check(chapter.names["slots"])
    with pytest.raises(AssertionError, match=r"\]: \d+ slots; you counted \d+"):
        check(broken)


def test_the_answer_to_exercise_1_names_the_examples_that_sum_passes(chapter: Any) -> None:
    examples = [[3], [3, 4, 3], [5, 5], [1, 9, 1, 1]]
    assert all(str(example) in "\n".join(chapter.cells) for example in examples)
    alike = [example for example in examples if sum(example) == len(example) * max(example)]
    answer = chapter.source.split("Answer to 1")[1].split("```")[0]
    assert [json.loads(found) for found in re.findall(r"`(\[[^`]+\])`", answer)] == alike


def test_the_model_answer_to_exercise_2_is_the_best_of_all_splits() -> None:
    text = (ROOT / "solutions" / "chapters" / "start.md").read_text(encoding="utf-8")
    code = re.search(r"\n\n((?:    [^\n]*\n)+)", text)
    assert code is not None
    names: dict[str, Any] = {}
    exec("if True:\n" + code[1], names)

    def slots(parts: Any) -> int:
        return sum(len(part) * max(part) for part in parts)

    for lengths in ([7, 1], [3, 3, 3], [374, 396, 879, 91, 91, 381, 1313, 388], [1, 9, 2, 8, 3]):
        splits = (
            (
                [n for n, low in zip(lengths, side, strict=True) if low],
                [n for n, low in zip(lengths, side, strict=True) if not low],
            )
            for side in itertools.product((True, False), repeat=len(lengths))
        )
        least = min(slots(parts) for parts in splits if all(parts))
        found = names["best"](lengths)
        assert slots(found) == least
        assert sorted(found[0] + found[1]) == sorted(lengths)


def test_the_story_refuses_once_and_ends_with_blocks_out_of_order(chapter: Any) -> None:
    (player,) = (shown for shown in chapter.shown if isinstance(shown, Player))
    assert len(player) <= 15, "it is there to learn the figure on"
    events = chapter.names["story"]["events"]
    (refused,) = (event for event in events if event["kind"] == "refused")
    assert str(refused["call"]) == chapter.glued["refused_step"]
    assert int(chapter.glued["needed"]) > int(chapter.glued["free"]) == 1, "the page says: is free"
    blocks = [int(block) for block in chapter.glued["takes"].split(",")]
    assert blocks != sorted(blocks)
    assert [b - a for a, b in itertools.pairwise(sorted(blocks))] != [1] * (len(blocks) - 1), "in a row"


def test_the_page_says_how_reading_times_are_counted_as_the_build_counts_them(chapter: Any) -> None:
    said = re.search(r"(\d+) words a minute, (\d+) seconds for a line .*?, (\d+) seconds for a figure", chapter.source)
    assert said is not None
    assert tuple(map(int, said.groups())) == (site_pages._WORDS_A_MINUTE, site_pages._LINE_S, site_pages._FIGURE_S)


def test_the_page_installs_the_lab_that_it_offers(chapter: Any) -> None:
    assert "_generated/lab3_block_allocator.zip" in chapter.source
    assert "unzip lab3_block_allocator.zip\n    cd padding-to-paging-lab3_block_allocator\n" in chapter.source
    assert ".venv/bin/pip install . notebook\n" in chapter.source


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"[A-Za-z0-9']+", chapter.prose)) <= 2_500
    assert len([shown for shown in chapter.shown if isinstance(shown, Quiz)]) == 1
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "numpy", "matplotlib", "json", "pathlib", "sys"}
