"""The chapter "Paging": its numbers are the engine's, its log is the engine's, and what it says in words holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.player import Player
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.memory import BlockAllocator, BlockTable
from reference_impl.memory.contiguous import ContiguousAllocator
from reference_impl.memory.paradox import paradox
from tests.chapters.reading import number

CHAPTER = "paging"
ROOT = Path(__file__).resolve().parents[2]


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_opening_refusal_can_be_replayed_call_by_call(chapter: Any) -> None:
    moment = paradox(seed=0)
    assert moment is not None
    ranges = ContiguousAllocator(moment.capacity)
    for call, *arguments in moment.history:
        getattr(ranges, call)(*arguments)
    assert sum(size for _, size in ranges.holes()) == number(chapter.glued["free"])
    assert max(size for _, size in ranges.holes()) == number(chapter.glued["largest"]) < number(chapter.glued["wanted"])
    assert number(chapter.glued["free"]) > number(chapter.glued["capacity"]) / 2, "the heading says more than half"
    assert number(chapter.glued["needed"]) <= number(chapter.glued["blocks_free"]), "the page says admitted"


def test_the_player_plays_the_engines_log_and_the_worked_slot_is_the_block_tables(chapter: Any) -> None:
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Player))
    story = chapter.names["seen"]["story"]
    assert len(figure) == len({event["call"] for event in story["events"]})
    table = BlockTable(story["block_size"], story["table"], story["tokens"])
    chosen = int(number(chapter.glued["chosen"]))
    assert table.slot_mapping(chosen, chosen + 1) == [int(number(chapter.glued["chosen_slot"]))]
    slots = table.slot_mapping(0, story["tokens"])
    assert all(place != token for token, place in enumerate(slots)), "an example that shows nothing"
    assert chapter.glued["chosen_physical"] != chapter.glued["story_block"], "which of the two is which"
    refused = next(event for event in story["events"] if event["kind"] == "refused")
    assert int(chapter.glued["refused_step"]) == refused["call"]
    state = [event["state"] for event in story["events"] if event["call"] == refused["call"] and "state" in event][-1]
    free = [block for block, references in enumerate(state["ref_counts"]) if references == 0]
    assert len(free) == state["num_free"] == int(chapter.glued["refused_free"])
    assert 1 < len(free) < int(chapter.glued["refused_needed"]), "a refusal by count, with blocks to count"
    assert free[-1] - free[0] >= len(free), "the page says that it did not matter where they lie: they lie apart"
    admitted = story["events"][-1]["state"]["tables"][str(refused["seq"])]
    assert len(admitted) == int(chapter.glued["refused_needed"])
    assert admitted != sorted(admitted), "the blocks that it gets lie apart"


def test_the_tail_shares_are_those_of_an_allocator_that_holds_the_requests(chapter: Any) -> None:
    requests = workload("azure_conv")
    lengths = (requests.prompt_tokens + requests.output_tokens)[:200].tolist()
    for size in (16, 256):
        blocks = BlockAllocator(sum(-(-length // size) for length in lengths), size)
        for request, length in enumerate(lengths):
            blocks.allocate(request, length)
        assert blocks.num_free_blocks == 0
        assert chapter.names["slot"](blocks.block_table(7), 5, size) == blocks.slot_mapping(7, 5, 6)[0]
    whole = requests.prompt_tokens + requests.output_tokens
    for size, name in ((16, "tail16"), (256, "tail256")):
        held = np.ceil(whole / size) * size
        assert number(chapter.glued[name]) == pytest.approx(100 * (1 - whole.sum() / held.sum()), abs=0.05)
    assert number(chapter.glued["rule16"]) == pytest.approx(number(chapter.glued["tail16"]), rel=0.1)


def test_what_the_page_says_of_the_four_policies_holds(chapter: Any) -> None:
    rows = {row["policy"]: row for row in chapter.names["rows"]}
    held = {policy: row["held"] for policy, row in rows.items()}
    assert held["reserve_max"] < held["pow2"] < held["oracle"] < held["paged"], "the order agrees with the paper's"
    assert number(chapter.glued["paged_gain"]) > 2
    assert number(chapter.glued["oracle_gain"]) > number(chapter.glued["exact_gain"]) > 1.2, "less, and still ahead"


def test_the_loss_of_each_policy_is_in_the_column_that_the_page_names(chapter: Any) -> None:
    rows = {row["policy"]: row for row in chapter.names["rows"]}
    for row in rows.values():
        assert sum(row[share] for share in ("held", "reserved", "never_used", "not_given")) == pytest.approx(1)
    assert rows["oracle"]["never_used"] > rows["oracle"]["reserved"], "the fault of buddies, not of the future"
    assert rows["oracle_first_fit"]["never_used"] == 0, "exact ranges of exact lengths"
    assert rows["oracle_first_fit"]["not_given"] > rows["oracle_first_fit"]["reserved"] > 0, "in the order of the page"
    assert list(rows)[2:4] == ["oracle", "oracle_first_fit"], "the page speaks of the third row and the fourth"
    names = chapter.names["names"]
    assert list(names) == list(rows)
    assert [policy for policy, row in rows.items() if row["published"] is None] == ["oracle_first_fit"]


def test_the_quiz_has_one_answer_and_the_bug_overwrites_the_strangers_token(chapter: Any) -> None:
    (quiz,) = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert len(quiz.options) == 4
    assert chapter.glued["bug_shown"] == "KEEz"


def test_the_exercise_to_trace_is_answered_as_a_block_table_answers_it() -> None:
    answer = (ROOT / "solutions" / "chapters" / "paging.md").read_text(encoding="utf-8")
    table = BlockTable(4, [5, 2, 7], 11)
    slots = [table.slot_mapping(token, token + 1)[0] for token in (5, 8, 10)]
    assert f"token 5 in {slots[0]}, token 8 in {slots[1]}, token 10 in {slots[2]}" in answer
    for size, share in ((16, 15), (32, 27), (8, 8), (4, 3)):
        assert round(100 * (size - 1) / 2 / (42 + (size - 1) / 2)) == share
        assert f"{share} %" in answer
    assert "leaves 22 slots of it empty, 34 %" in answer, "at 64 the rule does not hold: one block, whatever remains"
    assert (64 - 42, round(100 * (64 - 42) / 64)) == (22, 34)


def test_the_chapter_is_at_most_2500_words(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
