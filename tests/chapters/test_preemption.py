"""The chapter "Preemption": its replays are the engine's, its keys are computed, and what it says in words holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from labkit.event_log import check_log
from labkit.figures import Figure, Table
from labkit.player import Player
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.swap import Recovery, SwapCost
from reference_impl.sched import ContinuousBatching, Limits
from reference_impl.sim.arrivals import Arrival, poisson
from reference_impl.sim.cost import CostModel
from reference_impl.sim.device import DEVICES, MODELS
from reference_impl.sim.simulator import Settings, simulate
from reference_impl.sim.work import StepWork
from tests.chapters.reading import number

CHAPTER = "preemption"
ROOT = Path(__file__).resolve().parents[2]
COST = CostModel(DEVICES["h100-sxm"], MODELS["llama-3.1-8b"])


def model(chapter: Any, change: tuple[str, str] | None = None) -> dict[str, Any]:
    """The names of the page's own scheduler, with a part of its text replaced if asked."""
    source = "\n".join(cell for cell in chapter.cells if "def compute" in cell or "def serve" in cell)
    if change is not None:
        assert change[0] in source
        source = source.replace(*change)
    names: dict[str, Any] = {}
    exec(source, names)
    return names


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_opening_is_a_replay_of_the_workload_through_the_engine(chapter: Any) -> None:
    source = workload("azure_conv")
    pairs = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    rows = [(prompt, output) for prompt, output in pairs if output >= 1][: int(chapter.glued["requests"])]
    memory = KVManager(int(chapter.glued["kv_gib"]) * 2**30 // (16 * 131_072), 16, watermark=0.05)
    scheduler = ContinuousBatching(memory, Limits(2_048, 1_024, 200_000))
    coming = (Arrival(0.0, prompt, 8 * output, 8 * output) for prompt, output in rows)
    done = simulate(poisson(coming, 4, 0), scheduler, COST, Settings(account_every=64))
    assert done.output_tokens / done.duration_s == pytest.approx(number(chapter.glued["kept_rate"]), abs=1)
    assert done.preemptions == int(chapter.glued["kept_preempted"])
    assert number(chapter.glued["kept_rate"]) > number(chapter.glued["full_rate"])


def test_the_story_shows_at_each_step_what_the_page_says_of_it(chapter: Any) -> None:
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Player))
    events = chapter.names["story"]["events"]
    check_log(events)
    assert len(figure) == len({event["call"] for event in events})
    after = {event["call"]: event["state"] for event in events if "state" in event}
    said = {name: int(text) for name, text in chapter.glued.items() if text.isdigit()}
    victim, away, back, again = (said[name] for name in ("first_victim", "out_step", "in_step", "again_step"))
    assert victim < away < back < again
    assert "2" in after[victim - 1]["tables"]
    assert "2" not in after[victim]["tables"], "its blocks go"
    assert after[victim - 1]["num_free"] == 0
    assert "1" in after[away]["host"]
    assert "1" not in after[back]["host"]
    assert "1" not in after[away]["tables"]
    made = after[victim - 1]["tokens"]["2"] - 5
    assert said["made_before"] == made + 1, "the last token that it made has no KV yet"
    assert said["again_tokens"] == 5 + said["made_before"]
    for state in after.values():
        assert sum(state["ref_counts"]) == sum(map(len, state["tables"].values()))
    came_in = [event["call"] for event in events if event["kind"] == "admit"]
    assert not [call for call in came_in if away <= call < back], "nobody comes in while one is on the host"
    assert not [event for event in events if event["kind"] == "preempt" and event["seq"] == 0], "the first is spared"


def test_the_model_says_the_same_words_however_little_memory_or_budget_there_is(chapter: Any) -> None:
    serve = model(chapter)["serve"]
    prompts = chapter.names["prompts"]
    plenty, steps, computed = serve(prompts, 9, 100, 100)
    for memory in range(4, 12):
        for budget in (1, 2, 3, 5, 16):
            for whole in (True, False):
                answers, taken, work = serve(prompts, 9, memory, budget, whole)
                assert answers == plenty
                assert taken >= steps
                assert work >= computed


def test_a_victim_that_comes_back_with_another_token_is_seen_in_its_answer(chapter: Any) -> None:
    lost = model(chapter, ('victim["kv"] = []', 'victim["kv"] = []; victim["tokens"][-1] = 0'))
    prompts = chapter.names["prompts"]
    right, wrong = (names["serve"](prompts, 9, 6, 16) for names in (model(chapter), lost))
    assert right[0] != wrong[0]
    assert right[1:] == wrong[1:], "neither steps nor work tell"


def test_both_prices_are_those_of_the_engine(chapter: Any) -> None:
    price, tokens = chapter.names["price"], int(number(chapter.glued["victim_tokens"]))

    def recompute_s(count: int) -> float:
        return COST.step_s(StepWork(0, 0, count, count * (count + 1) // 2, count))

    for how, each in (("block", 1), ("layer", 64)):
        for size, said_ms in zip(price["sizes"], price["swap_ms"][how], strict=True):
            prices = SwapCost(size * 131_072, 64e9, each * COST.rates.copy_s, recompute_s)
            assert prices.swap_s(-(-tokens // size)) * 1e3 == pytest.approx(said_ms)
            cheaper = prices.cheaper(tokens, -(-tokens // size)) is Recovery.SWAP
            assert cheaper == (said_ms < price["recompute_ms"])
            if how == "layer":
                assert cheaper == (size >= int(chapter.glued["cross"]))
    assert recompute_s(tokens) * 1e3 == pytest.approx(float(chapter.glued["recompute_ms"]), abs=0.05)
    assert float(chapter.glued["moved_ms"]) == pytest.approx(2 * 128 * 2**20 / 64e9 * 1e3, abs=0.05)


def test_the_keys_of_the_questions_are_computed_and_every_option_has_its_figures(chapter: Any) -> None:
    victim, change = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    again = {row["victim"]: row["recomputed"] for row in chapter.names["seen"]["victims"]}
    assert again["most_freed"] == max(again.values())
    assert again["last"] not in (max(again.values()), min(again.values())), "in the middle"
    assert victim.answer == "The one with the most tokens."
    days = chapter.names["days"]
    single = {name: days[name]["ttft_p50_s"] for name in chapter.names["single"]}
    assert min(single, key=lambda name: single[name]) == "without the date"
    assert change.answer == "The date in front."
    assert all(re.match(r"[\d.]+ s at the median\.", text) for text in change.options.values())


def test_the_rule_with_the_fewest_preemptions_does_not_compute_the_least_again(chapter: Any) -> None:
    said = {name: number(chapter.glued[name]) for name in ("fewest", "fewest_again", "most_victims", "victims_again")}
    assert said["fewest"] < said["most_victims"]
    assert said["fewest_again"] > said["victims_again"]


def test_chunks_shorten_the_gap_here_and_where_it_was_measured(chapter: Any) -> None:
    for row in chapter.names["seen"]["stall"]:
        for whose in ("ours", "published"):
            assert row[whose]["chunked_ms"] < row[whose]["whole_ms"]
            assert row[whose]["later"] > 0
    short, _, long = chapter.names["seen"]["stall"]
    for whose in ("ours", "published"):
        grows = long[whose]["whole_ms"] / short[whose]["whole_ms"]
        assert grows > long["prompt"] / short["prompt"], "whole, the gap grows faster than the prompt"


def test_a_first_chunk_that_fits_lets_in_a_request_that_never_does(chapter: Any) -> None:
    assert number(chapter.glued["bug_computed"]) > 5 * number(chapter.glued["cured_computed"])
    for full_fit, preempted in ((False, int(chapter.glued["bug_preempted"])), (True, 0)):
        memory = KVManager(int(4 * 100_000 / 0.9) // 16, 16, full_fit=full_fit)
        times = (0.0, 0.0, 0.0, 0.0, 1.0)
        scheduler = ContinuousBatching(memory, Limits(2_048, 1_024, 200_000))
        done = simulate((Arrival(at, 100_000, 2_000, 2_000) for at in times), scheduler, COST)
        assert done.preemptions == preempted


def test_each_cause_of_the_incident_is_told_by_what_it_alone_changes(chapter: Any) -> None:
    days = chapter.names["days"]
    before, day = days["before"], days["incident"]
    assert before["ttft_p99_s"] < 1 < day["ttft_p50_s"]
    assert before["preemptions"] == 0 < day["preemptions"]
    assert days["without the date"]["hit_rate"] == before["hit_rate"] > 0.5
    for name in ("without long answers", "without the large budget", "with a watermark"):
        assert days[name]["hit_rate"] == 0
    gaps = {name: days[name]["gap_p99_ms"] for name in chapter.names["single"]}
    assert min(gaps, key=lambda name: gaps[name]) == "without the large budget"
    assert day["most_running"] * int(chapter.glued["system_blocks"]) > 0.5 * chapter.names["setting"]["blocks"]
    assert all(row["refused"] == 0 for row in days.values())


def test_the_plan_brings_monday_back_at_its_second_step_and_long_answers_at_its_third(chapter: Any) -> None:
    days = chapter.names["days"]
    before, first, second, third = (days[name] for name in ("before", "first", "second", "third"))
    assert before["ttft_p50_s"] < first["ttft_p50_s"] < days["incident"]["ttft_p50_s"] / 2
    assert second["ttft_p99_s"] == pytest.approx(before["ttft_p99_s"], rel=0.1)
    assert third["ttft_p99_s"] < 1
    assert max(row["preemptions"] for row in (first, second, third)) == 0
    assert max(row["gap_max_s"] for row in (first, second, third)) < 0.05


def test_every_plot_describes_itself_and_names_the_source_of_its_data(chapter: Any) -> None:
    figures = [shown for shown in chapter.shown if isinstance(shown, Figure)]
    assert len(figures) == 2
    for figure in figures:
        assert len(figure.description.split()) >= 20
        assert figure.table.rows
    assert workload("azure_conv").description in figures[1].note
    assert "link at its data sheet's peak" in figures[0].note
    assert sum(isinstance(shown, Table) for shown in chapter.shown) == 4


def test_the_answers_to_the_exercises_hold(chapter: Any) -> None:
    answer = (ROOT / "solutions" / "chapters" / "preemption.md").read_text(encoding="utf-8")
    rows = [[int(cell) for cell in row.split("|")[1:5]] for row in re.findall(r"^\| \d.*\|$", answer, re.MULTILINE)]
    traced = model(
        chapter,
        (
            "        for r in list(running):\n            if len",
            "        for r in list(running):\n            trace(r, steps)\n            if len",
        ),
    )
    held: dict[tuple[int, int], int] = {}

    def trace(request: dict[str, Any], step: int) -> None:
        if len(request["tokens"]) < request["end"]:
            held[step, request["name"]] = traced["blocks"](len(request["kv"]))

    traced["trace"] = trace
    _, steps, computed = traced["serve"]([[1] * 6, [2] * 6], 6, 5, 16)
    assert [row[:3] for row in rows] == [[s, held.get((s, 0), 0), held.get((s, 1), 0)] for s in range(1, steps + 1)]
    assert sum(row[3] for row in rows) == computed
    assert f"{steps} steps, {computed} tokens computed" in answer
    _, steps, computed = traced["serve"]([[1] * 6, [2] * 6], 6, 50, 16)
    assert f"{steps} steps and {computed} tokens" in answer
    line = re.search(r"    (if blocks\(needed\) \+ .*:)\n", chapter.source)
    assert line is not None
    source = "\n".join(cell for cell in chapter.cells if "def compute" in cell or "def serve" in cell)
    source = source.replace("whole=True):", "whole=True, keep=0):").replace("if blocks(needed) > free():", line[1])
    names: dict[str, Any] = {}
    exec(source, names)
    plain, kept = (names["serve"](chapter.names["prompts"], 9, 6, 16, True, keep) for keep in (0, 2))
    assert plain[0] == kept[0]
    assert f"{kept[2]} tokens computed instead of {plain[2]}" in chapter.source
    assert f"{kept[1]} steps instead of {plain[1]}" in chapter.source


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "math", "numpy", "matplotlib"}
