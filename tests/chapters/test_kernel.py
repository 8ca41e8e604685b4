"""The chapter "The kernel on a GPU": its numbers are the record's, its shares the engine's, and its words hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.figures import Figure, Table
from labkit.quizzes import Quiz
from labkit.switch import Switch
from labkit.workloads import workload

CHAPTER = "kernel"
ROOT = Path(__file__).resolve().parents[2]
SOLUTIONS = ROOT / "solutions" / "chapters" / "kernel.md"


def number(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """The kept record of the kernels, read without the chapter's help."""
    text = (ROOT / "reference_impl" / "bench" / "results" / "kernels.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_opening_is_the_records_eight_times_the_bytes_in_a_fifth_of_the_time(
    chapter: Any, record: dict[str, Any]
) -> None:
    rows = {row["name"]: row for row in record["decode"]}
    one, many = rows["1 x 16k, 32/8, 128"], rows["64 x 2k, 32/8, 128"]
    glued = chapter.glued
    assert one["kv_bytes"] == 16_384 * 2 * 8 * 128 * 2
    assert many["kv_bytes"] == number(glued["more"]) * one["kv_bytes"]
    assert number(glued["one_us"]) == round(one["results"]["textbook"]["median_us"])
    assert number(glued["many_us"]) == round(many["results"]["textbook"]["median_us"])
    assert number(glued["less_time"]) == round(number(glued["one_us"]) / number(glued["many_us"]))
    assert (glued["device"], glued["date"]) == (record["machine"]["gpu"], record["date"])
    assert number(glued["multiprocessors"]) == record["machine"]["multiprocessors"]
    assert number(glued["one_share"]) == round(100 * one["results"]["ours"]["share"])
    assert number(glued["many_share"]) == round(100 * many["results"]["ours"]["share"])


def test_the_floors_are_those_of_the_record_and_decode_stands_on_bytes(chapter: Any, record: dict[str, Any]) -> None:
    names = chapter.names
    for row in record["decode"]:
        batch = names["decode"][row["name"]]
        assert names["bytes_us"](batch) == pytest.approx(row["floor_us"], rel=1e-3)
        assert names["operations_us"](batch) < names["bytes_us"](batch) / 10
    # 4 operations for each number, token and query head, by hand, over a group that fills the smallest product.
    tokens, heads, head_dim = 64 * 2048, 32, 128
    assert names["operations_us"](names["many"]) == pytest.approx(4 * tokens * heads * head_dim * 8 / 4 / 989e12 * 1e6)


def test_the_chain_by_hand_and_littles_law(chapter: Any, record: dict[str, Any]) -> None:
    glued = chapter.glued
    alone = next(row for row in record["decode"] if row["name"] == "1 x 16k, 32/8, 128")
    step_s = alone["results"]["textbook"]["median_us"] * 1e-6 / (16_384 / 16)
    read_s = record["ceilings"]["read_gb_s"] * 1e9
    assert number(glued["step_us"]) == round(step_s * 1e6, 2)
    assert number(glued["block_kib"]) * 1024 == 16 * 2 * 128 * 2
    assert number(glued["moving"]) == round(8 * 8192 / step_s / 1e9)
    assert number(glued["needed_mb"]) == round(read_s * step_s / 1e6, 1)
    assert number(glued["needed_programs"]) == round(read_s * step_s / 8192)


def test_the_textbook_stands_on_the_higher_floor_in_every_batch_with_blocks_of_16(
    chapter: Any, record: dict[str, Any]
) -> None:
    times = {row["name"]: row["results"]["textbook"].get("median_us") for row in record["decode"]}
    kept = [name for name, time in times.items() if time and "block" not in name and "window" not in name]
    assert sorted(chapter.names["predicted"]) == sorted(kept)
    above = [times[name] / chapter.names["predicted"][name] - 1 for name in kept]
    assert number(chapter.glued["off_least"]) == round(100 * min(above))
    assert number(chapter.glued["off_most"]) == round(100 * max(above))
    assert max(above) < 0.25


def test_the_page_cuts_where_the_engines_work_list_cuts(chapter: Any) -> None:
    names = chapter.names
    cut = names["seen"]["batch"]["shares"]
    assert [names["pieces"](program) for program in names["shares"](names["lengths"])] == cut
    for who, length in enumerate(names["lengths"]):
        assert sum(n for share in cut for of, n in share if of == who) == length, "every token is read once"
    sizes = [sum(-(-n // 16) for _, n in share) for share in cut]
    assert max(sizes) - min(sizes) <= 1, "shares differ by one grain at most"
    partial = [sum(n < names["lengths"][who] for who, n in share) for share in cut]
    assert max(partial) <= 2, "a share has at most two pieces of sequences that lie in others too"


def test_the_batch_is_the_workloads(chapter: Any) -> None:
    requests = workload("azure_conv")
    made = requests.output_tokens >= 1
    expected = (requests.prompt_tokens + requests.output_tokens // 2)[made][:64].tolist()
    assert chapter.names["lengths"] == expected
    assert number(chapter.glued["batch_longest"]) == max(expected)


def test_every_way_reads_every_token_and_a_program_takes_the_place_that_is_free_first(chapter: Any) -> None:
    names = chapter.names
    total = sum(names["lengths"])
    for way, programs in names["ways"].items():
        assert sum(names["ends"][way]) == total * (4 if way == "one_head" else 1)
        assert sum(n for program in programs for _, n in program) == sum(names["ends"][way])
    assert names["busy"]([[(0, 5)], [(1, 2)], [(2, 1)], [(3, 3)]], places=2) == [5, 6]
    assert names["late"]["one_head"] > names["late"]["grouped"] > 2 > 1.4 > names["late"]["split"]
    assert names["late"]["shares"] < 1.05
    assert max(n for program in names["ways"]["split"] for _, n in program) == 512, "the page says parts of 512"
    longest_first = names["busy"](sorted(names["ways"]["split"], key=lambda program: -program[0][1]))
    assert max(longest_first) < max(names["ends"]["split"]), "the folded answer says that split gains"
    assert number(chapter.glued["lpt_late"]) == number(chapter.glued["longest_late"]), "and that grouped gains no more"


def test_the_switch_shows_each_way_with_a_row_for_each_place(chapter: Any) -> None:
    (switch,) = (shown for shown in chapter.shown if isinstance(shown, Switch))
    ends = chapter.names["ends"]
    assert len(switch.figures) == len(ends) == 4
    for figure, found in zip(switch.figures.values(), ends.values(), strict=True):
        assert [number(tokens) for _, _, tokens in figure.table.rows] == found
        assert f"{max(found):,} tokens" in figure.description
    (table,) = (shown for shown in chapter.shown if isinstance(shown, Table))
    assert [row[4] for row in table.rows] == [f"{late:.2f}" for late in chapter.names["late"].values()]
    assert table.rows[0][5] == table.rows[1][5] == "0", "whole sequences need no merge"


def test_a_piece_costs_what_the_page_says(chapter: Any) -> None:
    numbers = 4 * (128 + 1)
    piece = number(chapter.glued["piece_bytes"])
    assert piece == 2 * 4 * numbers, "answer and log-sum-exp of four heads, in 32 bits, written and read"
    assert number(chapter.glued["part512_cost"]) == round(100 * piece / (512 * 512), 1)
    assert number(chapter.glued["part64_cost"]) == round(100 * piece / (64 * 512))


def test_what_is_said_of_the_fixed_cost_holds(chapter: Any, record: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in record["decode"]}
    one = rows["1 x 16k, 32/8, 128"]
    assert number(chapter.glued["cut_us"]) == round(rows["64 x 2k, 32/8, 128"]["cut_us"])
    assert number(chapter.glued["fixed"]) == round(one["results"]["ours"]["median_us"] - one["floor_us"], 1)
    lacking = []
    for name in ("8 x 4k, 32/8, 128", "64 x 2k, 32/8, 128", "256 x 1k, 32/8, 128"):
        floor, ours = rows[name]["floor_us"], rows[name]["results"]["ours"]
        lacking.append(floor / (floor + chapter.names["fixed_us"]) - ours["share"])
    assert number(chapter.glued["eight_better"]) == pytest.approx(-100 * lacking[0], abs=0.06)
    assert number(chapter.glued["large_less"]) == pytest.approx(100 * lacking[2], abs=0.06)
    assert lacking[0] < 0, "eight sequences come above what is foretold"
    assert abs(lacking[1]) < 0.02 < lacking[2], "more is missing on the largest batch than a fixed cost says"
    assert lacking == sorted(lacking), "the more there is to read, the more is missing beside the fixed cost"


def test_the_bug_wraps_at_the_first_block_behind_2_to_the_31(chapter: Any) -> None:
    begins = chapter.names["begins"]
    stride = 480 * 576
    wrong = [block for block in range(7_700, 7_800) if begins(block, stride) != block * stride]
    assert wrong == list(range(7_768, 7_800))
    assert number(chapter.glued["wrong_block"]) == wrong[0]
    assert begins(wrong[0], stride) < 0
    with np.errstate(over="ignore"):
        assert int(np.int64(wrong[0]) * np.int64(stride)) == wrong[0] * stride, "64 bits mend it"
    assert number(chapter.glued["own_tokens"]) == 2**31 / (16 * 8 * 128) * 16
    assert number(chapter.glued["shared_tokens"]) == 2**31 / (16 * 8 * 128 * 2 * 32) * 16
    assert number(chapter.glued["own_tokens"]) * 2 * 32 * 8 * 128 * 2 > 80e9, "no such GPU holds so many"


def test_the_quizzes_have_their_answers(chapter: Any) -> None:
    first, second, third = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert first.answer == "2 %"
    assert number(second.answer.removesuffix(" times")) == round(chapter.names["late"]["grouped"], 1)
    assert third.answer.startswith("From the second call on")


def test_every_figure_names_its_source(chapter: Any) -> None:
    figures = [shown for shown in chapter.shown if isinstance(shown, Figure)]
    assert len(figures) == 2
    for figure in figures:
        assert f"{chapter.glued['device']}, {chapter.glued['date']}" in figure.note
        assert len(figure.description) > 80


def test_the_traced_answer_for_instructors_is_what_the_pages_model_gives(chapter: Any) -> None:
    text, names = SOLUTIONS.read_text(encoding="utf-8"), chapter.names
    lengths = [96, 16, 32]
    for way, programs in (
        ("grouped", names["grouped"](lengths)),
        ("split", names["split"](lengths, 32)),
        ("shares", names["shares"](lengths, 3)),
    ):
        ends = names["busy"](programs, 3)
        row = " | ".join(str(tokens) for tokens in [*ends, max(ends)])
        assert f"| {way} | {row} |" in text
        pieces = [who for program in programs for who, n in names["pieces"](program) if n < lengths[who]]
        assert set(pieces) <= {0}
        assert f"of {len(pieces)} p" in text or not pieces


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imported = set(re.findall(r"^(?:from|import) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imported <= {"labkit", "numpy", "matplotlib"}
