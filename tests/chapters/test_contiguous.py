"""The chapter "Contiguous worlds": what it counts is the engine's, and what it says of each count holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from labkit.event_log import check_log
from labkit.figures import Figure, Table
from labkit.player import Player
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.memory import BuddyAllocator, ContiguousAllocator, Sizes
from reference_impl.memory.occupancy import occupancy
from reference_impl.memory.paradox import arrivals
from tests.chapters.reading import number

CHAPTER = "contiguous"
ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


@pytest.fixture(scope="module")
def queue(seen: dict[str, Any]) -> list[tuple[int, int]]:
    source = workload("azure_conv")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    return [(p, new) for p, new in pairs if new >= 1 and p + new <= seen["max_tokens"]]


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_memory_is_16_gib_and_a_token_of_the_model_takes_128_kib(chapter: Any, seen: dict[str, Any]) -> None:
    assert seen["kv_bytes"] == 2 * 32 * 8 * 128 * 2 == 128 * 1024
    assert number(chapter.glued["budget_gib"]) * 8 * 1024 == seen["capacity"]
    assert number(chapter.glued["kv_gib"]) * 8 * 1024 == seen["max_tokens"]


def test_growing_by_one_copies_the_triangle_and_doubling_less_than_twice_the_sequence(chapter: Any) -> None:
    copied = chapter.names["copied"]
    for final in (1, 2, 3, 7, 64, 65, 1_000):
        assert copied(final, lambda room: room + 1) == sum(range(1, final))
        powers = [2**k for k in range(20) if 2**k < final]
        assert copied(final, lambda room: 2 * room) == sum(powers) < 2 * final
    triangle, doubling = 8_192 * 8_191 // 2, 8_191
    assert number(chapter.glued["one_copied"]) == triangle
    assert number(chapter.glued["two_copied"]) == doubling
    assert number(chapter.glued["one_tib"]) == pytest.approx(triangle / 8 / MIB, abs=0.05)


def test_times_are_bytes_read_and_written_over_the_ceiling_of_the_kept_record(chapter: Any) -> None:
    record = json.loads((ROOT / "reference_impl/bench/results/kernels.json").read_text(encoding="utf-8"))
    copy, read = (1e9 * record["ceilings"][f"{name}_gb_s"] for name in ("copy", "read"))
    assert number(chapter.glued["copy_gb_s"]) == record["ceilings"]["copy_gb_s"]
    assert chapter.glued["device"] == record["machine"]["gpu"]
    per_token = 128 * 1024
    assert number(chapter.glued["one_s"]) == pytest.approx(2 * 8_192 * 8_191 / 2 * per_token / copy, abs=0.05)
    assert number(chapter.glued["two_ms"]) == pytest.approx(2e3 * 8_191 * per_token / copy, abs=0.05)
    moved = number(chapter.glued["mean_moved"]) * per_token
    assert number(chapter.glued["mean_ms"]) == pytest.approx(2e3 * moved / copy, abs=0.06)
    # The share is printed as a whole percent.
    there = moved / (number(chapter.glued["moved_share"]) / 100)
    assert number(chapter.glued["read_ms"]) == pytest.approx(1e3 * there / read, rel=0.02)
    assert 2 * number(chapter.glued["read_ms"]) == pytest.approx(number(chapter.glued["mean_ms"]), rel=0.1)


def test_the_shares_of_a_rule_are_all_of_the_memory_and_the_oracle_is_the_engines(
    seen: dict[str, Any], queue: list[tuple[int, int]]
) -> None:
    rules = {row["rule"]: row for row in seen["rules"]}
    for row in seen["rules"]:
        assert sum(row[part] for part in ("held", "reserved", "internal", "external")) == pytest.approx(1)
    sizes = Sizes(seen["capacity"], seen["max_tokens"], placement="first")
    met = occupancy("oracle", sizes, queue[:2_000], warm_up=500)
    assert rules["oracle"]["held"] == pytest.approx(met.held)
    assert rules["oracle"]["running"] == pytest.approx(met.mean_running)
    assert rules["reserve_max"]["running"] == seen["capacity"] // seen["max_tokens"]
    assert rules["reserve_max"]["external"] == 0
    assert rules["grow"]["copied"] > 0 == rules["limit"]["copied"]


def test_the_loop_for_a_callers_limit_counts_as_the_engine_counts(
    seen: dict[str, Any], queue: list[tuple[int, int]]
) -> None:
    import runpy

    from reference_impl.memory.policies import ReservedRanges, reserve_oracle

    builder = runpy.run_path(str(ROOT / "chapters" / "evidence" / "contiguous.py"))
    few = queue[:700]
    told = set()

    class Told(ReservedRanges):
        def admit(self, request: int, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Any:
            told.add(max_new_tokens)
            return super().admit(request, prompt_tokens, max_new_tokens, true_new_tokens)

    total, running = builder["keep"](Told(131_072, reserve_oracle), few)
    assert told == {seen["answer_limit"]}, "every caller allows as much as the page says"
    met = occupancy("oracle", Sizes(131_072, 8_192, placement="first"), few, warm_up=500)
    assert total == met.total
    assert running == pytest.approx(met.mean_running)


def test_the_figures_of_the_worked_request_follow_from_the_definitions(chapter: Any) -> None:
    held, end, given = 1_050, 1_200, 8_192
    assert min(end, given) - held == 150
    assert number(chapter.glued["example_internal"]) == max(0, given - end)


def test_each_search_refuses_as_a_replay_by_hand_does(seen: dict[str, Any], queue: list[tuple[int, int]]) -> None:
    """Holes from the ranges alone, no allocator: the four searches as the page says them."""
    few = queue[:1_500]
    capacity, load = seen["capacity"], seen["searches"]["load"]

    def play(rule: str) -> int:
        live: list[tuple[int, int, int]] = []
        last = refused = 0
        for step, prompt, output in arrivals(few, capacity, load, seed=0):
            live = sorted(row for row in live if row[2] > step)
            ends = [0, *(start + size for start, size, _ in live)]
            holes = [
                (low, high - low)
                for low, high in zip(ends, [*(start for start, _, _ in live), capacity], strict=True)
                if high > low
            ]
            fit = [hole for hole in holes if hole[1] >= prompt + output]
            if not fit:
                refused += 1
                continue
            key: Any = {
                "first": lambda hole: hole[0],
                "best": lambda hole: (hole[1], hole[0]),
                "next": lambda hole: (hole[0] < last, hole[0]),  # noqa: B023 - used at once
                "worst": lambda hole: (-hole[1], hole[0]),
            }[rule]
            start = min(fit, key=key)[0]
            last = start + prompt + output
            live.append((start, prompt + output, step + output))
        return refused

    import runpy

    builder = runpy.run_path(str(ROOT / "chapters" / "evidence" / "contiguous.py"))
    counts = {}
    for rule in ("first", "best", "next", "worst"):
        memory = builder["Searching"](capacity, rule)
        counts[rule] = builder["replay"](few, memory)["refused"]
        assert counts[rule] == play(rule), rule
        assert memory.looked > 0
    assert builder["replay"](few, ContiguousAllocator(capacity))["refused"] == counts["first"]
    assert builder["replay"](few, ContiguousAllocator(capacity, "best"))["refused"] == counts["best"]


def test_compaction_leaves_no_refusal_with_enough_free_and_moves_at_most_what_lives(seen: dict[str, Any]) -> None:
    compacted = seen["searches"]["compacted"]
    assert compacted["stuck"] == 0
    assert len(compacted["moved"]) == len(compacted["written"]) > 0
    assert all(0 < moved <= there for moved, there in zip(compacted["moved"], compacted["written"], strict=True))
    assert max(compacted["written"]) < seen["capacity"]


def test_a_compaction_copies_the_tokens_that_are_there_and_not_the_slots_that_wait_for_some() -> None:
    """Three ranges of a memory of 131,072; the first leaves at once, and what is behind it has 2 tokens more."""
    import runpy

    builder = runpy.run_path(str(ROOT / "chapters" / "evidence" / "contiguous.py"))
    moments = [(0, 40_000, 2), (0, 30_000, 5_000), (0, 50_000, 50), (2, 45_000, 100)]
    builder["replay"].__globals__["arrivals"] = lambda rows, capacity, load, seed: iter(moments)
    met = builder["replay"]([], ContiguousAllocator(131_072), compacts=True)
    assert (met["refused"], met["moved"], met["written"]) == (0, [80_004], [80_004])
    assert builder["replay"]([], ContiguousAllocator(131_072))["stuck"] == 1


def test_the_strings_search_as_the_engine_does(chapter: Any) -> None:
    names = chapter.names
    memory = names["memory"]
    assert [names["search"](memory, 2, rule, 9) for rule in ("first", "best", "next", "worst")] == [1, 6, 9, 13]
    for fit in ("first", "best"):
        engine, owner = ContiguousAllocator(len(memory), fit), 0  # type: ignore[arg-type]
        holes = names["holes"](memory)
        end = 0
        for start, size in [*holes, (len(memory), 0)]:
            engine.allocate(owner, start - end)
            if size:
                engine.allocate(100 + owner, size)
            end, owner = start + size, owner + 1
        for hole in range(len(holes)):
            engine.free(100 + hole)
        assert engine.holes() == holes
        for size in (1, 2, 3, 4, 5, 6, 7):
            found = names["search"](memory, size, fit)
            if found is None:
                assert size > max(length for _, length in holes)
            else:
                assert engine.allocate(999, size) == found
                engine.free(999)


def test_both_stories_are_logs_and_the_words_about_their_steps_hold(chapter: Any) -> None:
    growing, pairs = (shown for shown in chapter.shown if isinstance(shown, Player))
    story, buddies = chapter.names["story"]["events"], chapter.names["pair"]["events"]
    for figure, events in ((growing, story), (pairs, buddies)):
        check_log(events)
        assert len(figure) == len({event["call"] for event in events})
        assert sum(event["kind"] == "refused" for event in events) == 1
        for event in events:
            for table in event.get("state", {"tables": {}})["tables"].values():
                assert table == list(range(table[0], table[0] + len(table))), "one range a request"
    refused = next(event for event in story if event["kind"] == "refused")
    assert refused["call"] == int(chapter.glued["refused_step"])
    assert chapter.glued["refused_wanted"] == chapter.glued["refused_free"], "just enough is free"
    last = story[-1]
    assert (last["seq"], last["state"]["num_free"]) == (refused["seq"], 0)
    late = next(event for event in buddies if event["kind"] == "refused")
    assert "wants 5 places" in late["sentence"]
    assert not any(late["state"]["ref_counts"][4:12]), "the page says that eight in a row are free"


def test_the_keys_of_the_questions_are_right(chapter: Any, seen: dict[str, Any]) -> None:
    employees, fits = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert employees.question.startswith("You run an internal LLM inference service for employees.")
    assert employees.answer.startswith("Reserve the prompt")
    requests = workload("azure_conv")
    assert int(requests.output_tokens.max()) <= seen["answer_limit"]
    refused = {kind: seen["searches"]["kinds"][kind]["refused"] for kind in ("first", "best", "next", "worst")}
    assert min(refused, key=lambda kind: refused[kind]) == "best"
    assert fits.answer == "Best fit"
    assert all(len(quiz.options) == 4 for quiz in (employees, fits))
    (table,) = (shown for shown in chapter.shown if isinstance(shown, Table))
    assert [number(row[1]) for row in table.rows[:4]] == list(refused.values())


def test_every_figure_describes_itself_and_names_the_source_of_its_data(chapter: Any) -> None:
    bars, lines = (shown for shown in chapter.shown if isinstance(shown, Figure))
    for figure in (bars, lines):
        assert len(figure.description.split()) >= 20
        assert figure.table.rows
    assert bars.note == workload("azure_conv").description
    assert "no workload" in lines.note


def test_the_bug_refuses_though_a_hole_is_long_enough_and_the_other_order_does_not(chapter: Any) -> None:
    assert (chapter.glued["bug_first"], chapter.glued["bug_second"]) == ("0", "None")
    (cell,) = (cell for cell in chapter.cells if cell.startswith("def next_fit"))
    wrong = "            head = 0\n            looked += len(memory) - head\n"
    assert wrong in cell
    mended: dict[str, Any] = {}
    exec(cell.replace(wrong, "            looked += len(memory) - head\n            head = 0\n"), mended)
    assert mended["next_fit"]("a...abbbbb..", 3, 10) == 1
    assert mended["next_fit"]("a..abbbbb...", 4, 10) is None, "it ends where nothing fits"


def test_the_answers_to_the_exercises_hold(chapter: Any) -> None:
    answer = (ROOT / "solutions" / "chapters" / "contiguous.md").read_text(encoding="utf-8")
    memory = BuddyAllocator(16)
    sizes = {"a": 5, "b": 2, "c": 3, "d": 4}
    for owner, name in enumerate("abc"):
        memory.allocate(owner, sizes[name])
    assert memory.range_of(1) == (8, 2)
    memory.free(1)
    memory.allocate(3, sizes["d"])
    for owner, name in ((0, "a"), (2, "c"), (3, "d")):
        start, length = memory.range_of(owner)
        empty = length - sizes[name]
        said = f"{empty} slot" if empty else "none"
        assert f"| `{name}` | {start} | {length} | {said}" in answer
    assert memory.holes() == []
    names = dict(chapter.names)
    chapter.run_answer(3, names)
    packed, moved = names["compact"]("aa....bb..ccc...dd......ee")
    assert packed == "aabbcccddee" + "." * 15
    assert (moved, len(packed.strip("."))) == (9, 11), "as the answer says"
    assert names["compact"]("abc") == ("abc", 0)
    rows = {
        "256 longer": lambda room: room + 256,
        "1.5 times": lambda room: room * 3 // 2,
        "twice": lambda room: 2 * room,
    }
    for name, longer in rows.items():
        room, moves, copies = 256, 0, 0
        while room < 8_192:
            moves, copies, room = moves + 1, copies + room, longer(room)
        assert f"| {name} | {moves} | {copies:,} |" in answer, (name, moves, copies)
    assert sum(range(256, 1_400, 256)) == 3_840
    assert len(range(256, 1_400, 256)) == 5


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "math", "numpy", "matplotlib"}
