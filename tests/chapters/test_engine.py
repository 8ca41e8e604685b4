"""The chapter "An engine that adds up": its rows are the engine's, and what it says of each holds."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from labkit.figures import Figure, Table
from labkit.quizzes import Quiz
from labkit.switch import Switch
from labkit.workloads import workload
from reference_impl import bench
from reference_impl.memory import Demand
from reference_impl.sched import Request
from tests.reference_impl.engine.same_tokens import TIE, WAYS

CHAPTER = "engine"
ROOT = Path(__file__).resolve().parents[2]
NAMES = ("padded", "bucketed", "packed", "reserved", "power of two", "paged", "shared", "continuous", "chunked")


def number(text: str) -> float:
    return float(text.replace(",", "").removesuffix("%").removesuffix("s"))


@pytest.fixture(scope="module")
def builder() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "chapters" / "evidence" / "engine.py"))


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_every_row_serves_the_same_requests_in_the_same_bytes(seen: dict[str, Any], builder: dict[str, Any]) -> None:
    assert tuple(row["name"] for row in seen["rows"]) == NAMES
    queue = builder["requests"]()[: builder["REQUESTS"]]
    assert [[one.prompt_tokens, one.output_tokens] for one in queue] == seen["queue"]
    made = sum(answer for _, answer in seen["queue"])
    assert {row["output_tokens"] for row in seen["rows"]} == {made}
    assert sorted(map(id, builder["in_buckets"](queue))) == sorted(map(id, queue))
    for _, make in builder["LADDER"]:
        account = make().memory.account()
        assert account.free == account.capacity == builder["CAPACITY"]


def test_the_workload_is_that_of_the_book_and_only_what_prompts_say_is_invented(builder: dict[str, Any]) -> None:
    source = workload("azure_conv")
    fitting = [
        (prompt, answer)
        for prompt, answer in zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
        if 1 <= answer <= builder["ANSWER_LIMIT"] and prompt + builder["ANSWER_LIMIT"] <= builder["LONGEST"]
    ]
    alike, apart, longer = (builder["requests"](**kw) for kw in ({}, {"is_shared": False}, {"longer": 1.3}))
    for queue in (alike, apart):
        assert [(one.prompt_tokens, one.output_tokens) for one in queue] == fitting
    assert all(a.output_tokens <= b.output_tokens for a, b in zip(alike, longer, strict=True))
    assert all((one.prefix_hashes[0] == 0) == (one.prompt_tokens > 512) for one in alike)
    assert not any(0 in one.prefix_hashes for one in apart)
    for queue in (alike, apart):
        own = [block for one in queue for block in one.prefix_hashes if block]
        assert len(own) == len(set(own)), "nothing else is shared"


def test_the_columns_of_the_scoreboard_add_up(chapter: Any, seen: dict[str, Any]) -> None:
    (board,) = (shown for shown in chapter.shown if isinstance(shown, Table) and "The scoreboard" in shown.caption)
    assert len(board.rows) == 9
    for cells, row in zip(board.rows, seen["rows"], strict=True):
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert sum(number(cell) for cell in cells[4:]) == pytest.approx(100, abs=3)
        assert number(cells[2]) == pytest.approx(row["output_tokens"] / row["seconds"], abs=0.6)
        assert number(cells[1]) == round(row["running"])


def test_only_rectangles_compute_pads_and_what_was_needed_is_never_more_than_was_computed(seen: dict[str, Any]) -> None:
    needed = sum(prompt + answer - 1 for prompt, answer in seen["queue"])
    for row in seen["rows"]:
        assert row["needed"] == needed
        if row["name"] in ("padded", "bucketed"):
            assert row["padded"] == pytest.approx(1 - needed / row["computed"])
        else:
            assert row["padded"] == 0
        if row["name"] in ("packed", "reserved", "power of two"):
            assert row["computed"] == needed
        if row["name"] == "paged":
            assert row["computed"] == needed + row["recomputed"]


def test_a_packed_batch_gives_its_plan_no_rectangle_and_is_the_same_batch(builder: dict[str, Any]) -> None:
    plain = dict(builder["LADDER"])["padded"]()
    packed = dict(builder["LADDER"])["packed"]()
    for scheduler in (plain, packed):
        for place, prompt in enumerate((5, 300, 40)):
            scheduler.add(Request(place, prompt, 4))
    left, right = plain.schedule(), packed.schedule()
    assert left.rectangle is not None
    assert (left.rectangle.rows, left.rectangle.new_tokens) == (3, 300)
    assert right.rectangle is None
    assert left.scheduled == right.scheduled == {0: 5, 1: 300, 2: 40}


def test_the_check_by_hand_is_the_column_of_the_scoreboard(chapter: Any) -> None:
    for row in ("first", "last"):
        tokens, ms = (number(chapter.glued[f"{row}_{what}"]) for what in ("tokens", "ms"))
        assert number(chapter.glued[f"{row}_rate"]) == pytest.approx(1e3 * tokens / ms, rel=0.01)


def test_the_switch_has_a_figure_for_every_row_and_each_shows_its_series(chapter: Any, seen: dict[str, Any]) -> None:
    (switch,) = (shown for shown in chapter.shown if isinstance(shown, Switch))
    assert tuple(switch.figures) == NAMES
    window = chapter.names["window"]
    for figure, row in zip(switch.figures.values(), seen["rows"], strict=True):
        assert len(figure.description.split()) >= 20
        assert figure.note == seen["source"]
        assert len(figure.table.rows) == 13
        assert number(figure.table.rows[-1][0]) == window <= row["seconds"]
        assert all(sum(number(cell) for cell in cells[1:5]) == pytest.approx(100, abs=3) for cells in figure.table.rows)
        assert f"takes {row['seconds']:.0f} seconds" in figure.description


def test_the_square_changes_one_thing_at_a_time(chapter: Any, seen: dict[str, Any], builder: dict[str, Any]) -> None:
    square, rows = seen["square"], {row["name"]: row for row in seen["rows"]}
    for corner, row in (("reserved", "reserved"), ("paged", "paged")):
        assert square[corner]["static"]["tokens_per_s"] == rows[row]["tokens_per_s"]
    base = square["reserved"]["static"]["tokens_per_s"]
    both = square["paged"]["continuous"]["tokens_per_s"] / base
    alone = [square["paged"]["static"]["tokens_per_s"] / base, square["reserved"]["continuous"]["tokens_per_s"] / base]
    assert max(alone) < both < alone[0] * alone[1]
    _, worth, *_ = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert worth.answer == f"{both:.1f} times"
    assert len(worth.options) == 3
    glued = {name: number(chapter.glued[name]) for name in ("paging_static", "paging_joined", "joining_reserved")}
    assert glued["paging_static"] == round(alone[0], 1)
    assert glued["paging_joined"] == round(both / alone[1], 1) < glued["paging_static"]


def test_the_model_takes_as_many_steps_as_the_engine_where_it_can_and_nearly_where_it_leaves_something_out(
    chapter: Any, seen: dict[str, Any]
) -> None:
    """Static batches of equal ranges have no prompts to cut, no tails and nobody who gives way: the same steps."""
    counted, square = chapter.names["counted"], seen["square"]
    assert counted["reserved", False] == square["reserved"]["static"]["steps"]
    for memory, joins, way in (
        ("reserved", True, "continuous"),
        ("paged", False, "static"),
        ("paged", True, "continuous"),
    ):
        assert counted[memory, joins] == pytest.approx(square[memory][way]["steps"], rel=0.12)


def test_the_model_serves_everybody_within_its_capacity(chapter: Any) -> None:
    replay, paged = chapter.names["replay"], chapter.names["paged"]
    assert replay([(3, 1)] * 4, paged, False, 12) == (1, 4)
    assert replay([(3, 1)] * 5, paged, False, 12) == (2, 2.5)
    steps, once = replay([(2, 5)] * 6, paged, True, 14)
    assert steps * once == pytest.approx(30), "nobody makes a token twice"


def test_all_ways_answer_with_the_same_tokens_in_float32_and_the_engine_really_ran(
    chapter: Any, seen: dict[str, Any], builder: dict[str, Any]
) -> None:
    assert set(seen["tokens"]["float32"].values()) == {builder["ANSWERS"]}
    assert set(seen["tokens"]["float32"]) == set(builder["WAYS"])
    assert "seven ways" in chapter.source
    assert len(builder["WAYS"]) == 7
    assert number(chapter.glued["worst"]) == min(seen["tokens"]["bfloat16"].values())
    assert number(chapter.glued["new_tokens"]) == builder["NEW_TOKENS"]


def test_what_a_gpu_measured_is_of_requests_that_share_nothing_like_the_rows_above(seen: dict[str, Any]) -> None:
    record = json.loads((Path(bench.__file__).parent / "results" / "budget.json").read_text(encoding="utf-8"))
    plain = {
        row["allocator"]: row for row in record["rows"] if (row["prefix_cache"], row["prompts"]) == ("none", "own")
    }
    rows = seen["measured"]["rows"]
    assert rows.keys() == plain.keys()
    for name, row in rows.items():
        assert row == {key: plain[name][key] for key in row}, name


def test_what_is_said_of_the_long_test_is_what_it_does(chapter: Any) -> None:
    assert f"serves SmolLM2 in {len(WAYS)} ways" in chapter.source
    assert TIE == 1e-4
    assert "ties of less than 10⁻⁴" in chapter.source


def test_the_suspects_differ_from_before_in_one_thing_each(seen: dict[str, Any]) -> None:
    replays = seen["incident"]["replays"]
    before, growth, reuse = (replays[name] for name in ("before", "growth", "prefix"))
    assert growth["hit_rate"] == before["hit_rate"] > 0.2 > 0.01 > reuse["hit_rate"]
    assert reuse["output_tokens"] == before["output_tokens"] < growth["output_tokens"]
    assert replays["fragmentation"]["ttft_p99_s"] == pytest.approx(before["ttft_p99_s"], rel=0.1)
    assert replays["fragmentation"]["shares"]["tail"] > 10 * before["shares"]["tail"]
    assert replays["slots"]["most_running"] == seen["incident"]["few_slots"]
    assert replays["slots"]["preemptions"] == 0
    assert replays["slots"]["ttft_p99_s"] > replays["prefix"]["ttft_p99_s"]


def test_the_number_that_tells_the_suspects_apart_is_the_one_with_the_largest_gap(
    chapter: Any, seen: dict[str, Any]
) -> None:
    *_, quiz = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    growth, reuse = (seen["incident"]["replays"][name] for name in ("growth", "prefix"))
    moved = {
        "KV memory in use": reuse["shares"]["held"] / growth["shares"]["held"],
        "Tokens held, over requests that run": reuse["held_each"] / growth["held_each"],
    }
    assert quiz.answer == max(moved, key=moved.__getitem__)
    assert moved[quiz.answer] > 1.2 > moved["KV memory in use"]
    assert len(quiz.options) == 4


def test_the_bytes_of_lost_sharing_are_the_product_in_the_prose(chapter: Any) -> None:
    running, share, shared, kib = (number(chapter.glued[n]) for n in ("broken_running", "share", "shared", "kv_kib"))
    assert number(chapter.glued["lost"]) == pytest.approx(running * share / 100 * shared * kib / 2**20, rel=0.03)


def test_two_prompts_of_one_template_share_their_first_block_and_not_behind_a_time(builder: dict[str, Any]) -> None:
    from array import array

    kv = builder["blocks"]("hash")
    rules = list(range(100, 164))
    found = []
    for place, ids in enumerate(([*rules, 1], [*rules, 2], [7, *rules, 3])):
        grant = kv.admit(Demand(place, len(ids), 1, token_ids=array("i", ids)), len(ids))
        found.append(grant.num_reused)
        kv.commit(place, len(ids))
    assert found == [0, 64, 0]


def test_the_bug_computes_everything_and_the_mended_line_the_rest(chapter: Any) -> None:
    prefill, mended = chapter.names["prefill"], chapter.names["mended"]
    assert prefill(8_448, 8_192) == prefill(8_448, 0) == 9_216
    assert mended(8_448, 8_192) == 1_024
    assert mended(8_448, 0) == 9_216
    assert number(chapter.glued["bug_found"]) == pytest.approx(95.5)


def test_the_answers_to_the_exercises_hold(chapter: Any, seen: dict[str, Any]) -> None:
    answer = (ROOT / "solutions" / "chapters" / "engine.md").read_text(encoding="utf-8")
    names = chapter.names
    queue = [(3, 2), (2, 4), (4, 2), (1, 3)]
    assert "(3, 2), (2, 4), (4, 2), (1, 3)" in chapter.source

    def six(prompt: int, answer: int, done: int) -> int:
        return 6

    for name, room in (("paged", names["paged"]), ("reserved", six)):
        for word, joins in (("no", False), ("yes", True)):
            steps, once = names["replay"](queue, room, joins, 12)
            (row,) = (line for line in answer.splitlines() if line.startswith(f"| {name} | {word} |"))
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert int(cells[-1]) == steps
            assert len([cell for cell in cells[2:-1] if cell]) == steps
            assert sum(map(len, cells[2:-1])) == round(steps * once) == 11
    code = re.search(r"One way:\n\n((?:    [^\n]*\n|\n)+)", chapter.source)
    assert code is not None
    scope = {"replay": names["replay"], "seen": seen, "print": lambda pair: scope.update(pair=pair)}
    exec("if True:\n" + code[1], scope)
    assert scope["pair"][0] == number(chapter.glued["shared_steps"]) < number(chapter.glued["paged_steps"])
    assert 3_000 * seen["sizes"]["kv_bytes"] / 2**20 == 375
    assert round(8 * 375 / 1024, 1) == 2.9


def test_every_figure_describes_itself_and_names_the_source_of_its_data(chapter: Any, seen: dict[str, Any]) -> None:
    board, incident = (shown for shown in chapter.shown if isinstance(shown, Figure))
    for figure in (board, incident):
        assert len(figure.description.split()) >= 20
        assert figure.note.startswith(seen["source"])
        assert "cost model" in figure.note
    for cells, row in zip(board.table.rows, seen["rows"], strict=True):
        assert number(cells[1]) == round(row["tokens_per_s"])
        assert number(cells[3]) == round(row["seconds"])
    assert all(table.caption for table in chapter.shown if isinstance(table, Table))


def test_the_seed_item_stands_as_it_is_spelled(chapter: Any) -> None:
    title = "Post-incident analysis: KV-cache growth, fragmentation, and shared-prefix reuse in a streaming LLM service"
    assert f"(engine-postincident)=\n## {title}\n" in chapter.source


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "math", "numpy", "matplotlib"}
