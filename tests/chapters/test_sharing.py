"""The chapter "Sharing": its counts are the engine's, its keys are computed, and what it says in words holds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from labkit.event_log import check_log
from labkit.figures import Figure, Table
from labkit.player import Player
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.memory import BlockAllocator
from reference_impl.memory.sharing import PUBLISHED_SAVED, beam_step, parallel_sampling, sharing
from tests.chapters.reading import number

CHAPTER = "sharing"
ROOT = Path(__file__).resolve().parents[2]


def counts(blocks: BlockAllocator, sequences: str) -> dict[int, int]:
    return dict(Counter(block for name in sequences for block in blocks.block_table(ord(name))))


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_opening_is_what_an_allocator_of_the_lab_does(chapter: Any) -> None:
    prompt, num_blocks = int(number(chapter.glued["prompt"])), int(chapter.glued["num_blocks"])
    blocks = BlockAllocator(num_blocks, 16)
    parallel_sampling(blocks, prompt, range(4))
    tables = [blocks.block_table(answer) for answer in range(4)]
    assert sum(map(len, tables)) == number(chapter.glued["entries"]) > num_blocks
    assert blocks.num_free_blocks == int(chapter.glued["free"])
    assert number(chapter.glued["spared"]) == sum(map(len, tables)) - len(
        {block for table in tables for block in table}
    )
    free = blocks.num_free_blocks
    copies = [len(blocks.append(answer)) for answer in range(4)]
    assert copies == [1, 1, 1, 0], "all but the last holder copy the tail"
    assert (free - blocks.num_free_blocks, chapter.glued["taken"]) == (3, "three")


def test_the_law_holds_in_every_state_that_the_player_shows(chapter: Any) -> None:
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Player))
    events = chapter.names["story"]["events"]
    check_log(events)
    assert len(figure) == len({event["call"] for event in events})
    states = [event["state"] for event in events if "state" in event]
    assert any(max(state["ref_counts"]) > 2 for state in states)
    for state in states:
        assert sum(state["ref_counts"]) == sum(map(len, state["tables"].values()))
        assert state["num_free"] == state["ref_counts"].count(0)


def test_the_story_shows_at_each_step_what_the_page_says_of_it(chapter: Any) -> None:
    events = chapter.names["story"]["events"]
    after = {event["call"]: event["state"] for event in events if "state" in event}
    glued = {name: int(text) for name, text in chapter.glued.items() if text.isdigit()}
    copied = [event["call"] for event in events if event["kind"] == "copy"]
    assert copied == [glued["first_copy"], glued["second_copy"]]
    assert after[glued["in_place"] - 1]["ref_counts"][glued["tail"]] == 1
    assert after[glued["full_fork"]]["tokens"]["3"] % 4 == 0, "a full tail"
    assert len(after[glued["full_write"]]["tables"]["3"]) == len(after[glued["full_fork"]]["tables"]["3"]) + 1
    assert after[glued["end"]]["num_free"] == after[glued["end"] - 1]["num_free"], "nothing becomes free"
    refused = after[glued["refused_step"]]
    assert refused["num_free"] == 0
    assert refused["tokens"]["5"] % 4, "its last block has an empty slot"
    assert refused["ref_counts"][refused["tables"]["5"][-1]] == 2
    assert [event["kind"] for event in events].count("refused") == 1
    assert after[glued["last"]]["tables"]["5"] == refused["tables"]["5"], "the same block, in place"
    assert glued["refused_step"] < glued["left"] < glued["last"]


def test_the_keys_of_the_questions_are_what_an_allocator_does(chapter: Any) -> None:
    fork, boundary, company = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    blocks = BlockAllocator(20, 16)
    parallel_sampling(blocks, 100, (0, 1))
    blocks.append(0)
    blocks.append(1)
    common = set(blocks.block_table(0)) & set(blocks.block_table(1))
    assert sorted(common) == list(range(6))
    assert fork.answer == "Blocks 0 to 5."
    many = BlockAllocator(100, 16)
    parallel_sampling(many, 1_024, range(8))
    free = many.num_free_blocks
    for sequence in range(8):
        many.append(sequence)
    assert boundary.answer == str(free - many.num_free_blocks) == "8"
    prompt, output = int(number(chapter.glued["prompt"])), int(chapter.glued["output"])
    one = BlockAllocator(1_000, 16)
    parallel_sampling(one, prompt, range(4))
    for sequence in range(4):
        one.append(sequence, output)
    held = one.num_blocks - one.num_free_blocks
    assert held == number(chapter.glued["shared"])
    assert company.answer == f"About {40 * 2**30 // (16 * 131_072) // held}."
    assert all(len(quiz.options) == 4 for quiz in (fork, boundary, company))


def test_the_model_holds_and_counts_what_the_reference_does(chapter: Any) -> None:
    names: dict[str, Any] = {}
    exec("\n".join(cell for cell in chapter.cells if "def fork" in cell), names)
    blocks = BlockAllocator(40, names["B"])

    def same(sequences: str) -> None:
        assert {block: held for block, held in names["refs"].items() if held} == counts(blocks, sequences)
        assert all(names["tables"][name] == blocks.block_table(ord(name)) for name in sequences)
        assert names["law"]()

    names["start"]("a", "one two three four five six")
    blocks.allocate(ord("a"), 6)
    same("a")
    for child in "bc":
        names["fork"]("a", child)
        blocks.fork(ord("a"), ord(child))
    same("abc")
    for name in "bacbcaab":
        names["write"](name, name)
        blocks.append(ord(name))
        same("abc")
    names["end"]("b")
    blocks.free(ord("b"))
    same("ac")
    assert names["read"]("a") == "one two three four five six a a a"


def test_a_beam_that_goes_on_twice_shares_what_it_has_written(chapter: Any) -> None:
    blocks = BlockAllocator(20, 4)
    parallel_sampling(blocks, 7, (0, 1, 2))
    for beam in range(3):
        blocks.append(beam)
    assert beam_step(blocks, (0, 1, 2), (0, 0, 2), iter((3,))) == [0, 3, 2]
    for beam in (0, 3, 2):
        blocks.append(beam)
    assert blocks.block_table(0)[:2] == blocks.block_table(3)[:2] != blocks.block_table(2)[:2]
    text = "\n".join(chapter.cells)
    assert text.index('fork("x", "v")') < text.index('end("y")'), "forks come before ends"


def test_what_is_saved_is_the_engines_sum_and_more_for_beams(chapter: Any) -> None:
    saved, size = chapter.names["saved"], 16
    source = workload("azure_conv")
    rows = [(p, o) for p, o in zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True) if o][:60]
    runs = [sharing(prompt, output, 4, "parallel", block_size=size) for prompt, output in rows]
    assert saved["parallel"]["4"] == pytest.approx(1 - sum(r.shared for r in runs) / sum(r.alone for r in runs))
    for width in saved["parallel"]:
        assert saved["parallel"][width] < saved["beam"][width] < 1 - 1 / int(width)
    assert number(chapter.glued["formula"]) == pytest.approx(number(chapter.glued["azure4"]), abs=6), "a fair estimate"


def test_short_prompts_save_little_as_the_table_says(chapter: Any) -> None:
    table = next(shown for shown in chapter.shown if isinstance(shown, Table) and "published" in shown.header)
    assert [row[0] for row in table.rows][::2] == [
        "like Alpaca, parallel",
        "like ShareGPT, parallel",
        "Azure, parallel",
    ]
    ours = [number(row[1].split()[0]) for row in table.rows[::2]]
    assert ours == sorted(ours)
    assert ours[-1] > 4 * ours[0], "it does not carry over"
    for (name, how), (low, high) in PUBLISHED_SAVED.items():
        row = next(row for row in table.rows if name in row[0].lower() and how in row[0])
        assert row[2] == f"{100 * low:.1f} to {100 * high:.1f} %"


def test_a_prefix_cache_computes_the_tail_again_and_copies_nothing(chapter: Any) -> None:
    ways, prompt, rest = chapter.names["ways"], int(number(chapter.glued["prompt"])), int(chapter.glued["rest"])
    assert ways["prompt"]["fork"] == {"computed": prompt, "copies": 3, "blocks": prompt // 16 + 4}
    assert ways["prompt"]["later"] == {"computed": prompt + 3 * rest, "copies": 0, "blocks": prompt // 16 + 4}
    assert ways["prompt"]["at_once"]["computed"] == 4 * prompt, "the trap"
    assert int(chapter.glued["whole_again"]) == 3 * 16
    assert chapter.glued["whole_more"] == "3"


def test_every_plot_describes_itself_and_names_the_source_of_its_data(chapter: Any) -> None:
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Figure))
    assert len(figure.description.split()) >= 20
    assert figure.table.rows
    assert workload("azure_conv").description in figure.note


def test_the_bug_frees_what_the_parent_reads_and_the_law_sees_it_before(chapter: Any) -> None:
    assert chapter.names["tables"]["parent"] == [0, 1]
    assert int(chapter.glued["bug_block"]) == 0
    assert number(chapter.glued["bug_counts"]) < number(chapter.glued["bug_entries"])


def test_the_answers_to_the_exercises_hold(chapter: Any) -> None:
    answer = (ROOT / "solutions" / "chapters" / "sharing.md").read_text(encoding="utf-8")
    blocks = BlockAllocator(6, 4)
    steps = (
        ("allocate", "a", 10),
        ("fork", "a", "b"),
        ("append", "b", 1),
        ("append", "a", 3),
        ("free", "b"),
        ("fork", "a", "c"),
        ("append", "c", 1),
    )
    rows = re.findall(r"^\| (?:[abc] |fork )[^|]*\|(.*)\|$", answer, re.MULTILINE)
    live: list[str] = []
    for (call, *arguments), row in zip(steps, rows, strict=True):
        getattr(blocks, call)(*(ord(item) if isinstance(item, str) else item for item in arguments))
        live = {"allocate": [*live, "a"], "fork": [*live, str(arguments[-1])], "free": ["a"]}.get(call, live)
        tables = [", ".join(map(str, blocks.block_table(ord(name)))) if name in live else "" for name in "abc"]
        held = counts(blocks, "".join(live))
        expected = [*tables, ", ".join(str(held.get(block, 0)) for block in range(6)), str(sum(held.values()))]
        assert [cell.strip() for cell in row.split("|")] == expected, call
    for prompt, alone, shared, share in ((30, 216, 209, 3), (630, 520, 247, 52)):
        end, full = -(-(prompt + 400) // 16), prompt // 16
        assert (8 * end, full + 8 * (end - full)) == (alone, shared)
        assert int(100 * (alone - shared) / alone) == share
        assert f"{share} % saved" in answer
    names: dict[str, Any] = {}
    chapter.run_answer(3, names)
    assert names["wrong"]({0: 2, 1: 2}, {"parent": [0, 1], "child": [0, 1]}) == []
    assert names["wrong"]({0: 1, 1: 2, 2: 1}, {"parent": [0, 1], "child": [0, 1, 2]}) == [0]
    assert names["wrong"](chapter.names["refs"], chapter.names["tables"]) == [0]


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "math", "numpy", "matplotlib"}
