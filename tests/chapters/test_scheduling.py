"""The chapter "Continuous batching": its replays are the simulator's, and what it says of each holds."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from labkit.event_log import check_log
from labkit.figures import Figure, Table
from labkit.player import Player
from labkit.quizzes import Quiz
from labkit.workloads import workload
from reference_impl.sched import FairShare, FirstCome, ShortestFirst
from reference_impl.sched.setup import build
from reference_impl.sim.arrivals import Arrival, poisson
from reference_impl.sim.simulator import Settings, simulate
from tests.chapters.reading import number

CHAPTER = "scheduling"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def builder() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "chapters" / "evidence" / "scheduling.py"))


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


@pytest.mark.parametrize("scheduler", ["static", "continuous"])
@pytest.mark.parametrize("rate", [3, 40])
def test_the_loop_that_keeps_a_row_a_request_is_the_simulator_to_the_microsecond(
    builder: dict[str, Any], scheduler: str, rate: float
) -> None:
    setup = replace(builder["SETUP"], scheduler=scheduler, max_running=32)
    arrivals = list(poisson(builder["conversations"](150), rate, 5))
    ours = builder["replay"](arrivals, build(setup))
    theirs = simulate(arrivals, build(setup), builder["COST"], Settings())
    assert theirs.completed == len(ours.served) == 150
    assert ours.seconds == pytest.approx(theirs.duration_s, abs=1e-6)
    for name, values in (
        ("ttft_s", [row.ttft_s for row in ours.served]),
        ("e2e_s", [row.last_s - row.arrival_s for row in ours.served]),
        ("tpot_s", [row.tpot_s for row in ours.served if row.output_tokens > 1]),
    ):
        assert sum(values) / len(values) == pytest.approx(theirs.latencies[name].mean, abs=1e-6), name
        assert max(values) == pytest.approx(theirs.latencies[name].maximum, abs=1e-6), name
    assert ours.made == theirs.output_tokens
    assert ours.rows == theirs.work.rows


def test_the_model_ends_each_request_where_the_engine_does_and_no_later_when_all_may_join(
    chapter: Any, builder: dict[str, Any]
) -> None:
    serve, ends = chapter.names["serve"], builder["small"]()
    answers, places = builder["ANSWERS"], builder["SLOTS"]
    assert serve(answers, places, joins=False) == ends["static"]
    assert serve(answers, places, joins=True) == ends["continuous"]
    for places in (1, 2, 3, 7):
        for answers in ([1], [5, 1, 1, 1], [2, 9, 3, 1, 4], [1] * 12):
            static, joined = (serve(answers, places, joins) for joins in (False, True))
            assert all(one <= other for one, other in zip(joined, static, strict=True))
            assert max(joined) >= -(-sum(answers) // places)


def test_the_figures_of_the_small_servers_are_counted(chapter: Any) -> None:
    (first, *_) = (shown for shown in chapter.shown if isinstance(shown, Figure))
    answers = [int(row[1]) for row in first.table.rows]
    for column, glued in ((2, "model_static"), (3, "model_joined")):
        steps = max(int(row[column]) for row in first.table.rows)
        assert number(chapter.glued[glued]) == round(100 * sum(answers) / 4 / steps)
    lanes = chapter.names["lanes"]
    for ends in (chapter.names["static"], chapter.names["joined"]):
        taken = [(place, step) for _, place, start, steps in lanes(ends) for step in range(start, start + steps)]
        assert len(taken) == len(set(taken)) == sum(answers), "no two requests in one place"


def test_the_share_of_a_static_batch_is_the_mean_over_the_mean_of_the_longest(chapter: Any) -> None:
    made = [new for new in workload("azure_conv").output_tokens.tolist() if new >= 1]
    for size, glued in ((16, "share16"), (256, "share256")):
        batches = [made[start : start + size] for start in range(0, len(made) - size + 1, size)]
        share = sum(map(sum, batches)) / sum(size * max(batch) for batch in batches)
        assert number(chapter.glued[glued]) == round(100 * share)
    assert number(chapter.glued["share256"]) < number(chapter.glued["share16"]) < 50


def test_the_story_is_a_log_and_each_scarcity_is_really_the_only_one(chapter: Any) -> None:
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Player))
    story = chapter.names["story"]
    check_log(story["events"])
    states = {event["call"]: event["state"] for event in story["events"] if "state" in event}
    assert len(figure) == len(states) == len(story["waits"]) + 1
    for wait in story["waits"]:
        assert sum(wait["tokens"].values()) <= story["budget"]
        assert len(wait["tokens"]) <= story["slots"]
        if wait["for"] == "tokens":
            assert sum(wait["tokens"].values()) == story["budget"]
        if wait["for"] == "slots":
            assert len(wait["tokens"]) == story["slots"]
            assert sum(wait["tokens"].values()) < story["budget"]
        if wait["for"] == "blocks":
            assert len(wait["tokens"]) < story["slots"]
            assert sum(wait["tokens"].values()) < story["budget"]
    assert [wait["for"] for wait in story["waits"]].count("blocks") == 1
    (refused,) = (event for event in story["events"] if event["kind"] == "refused")
    assert refused["seq"] == 4
    assert refused["call"] == int(chapter.glued["refused_step"])
    tokens = f"({4 * int(chapter.glued['refused_needed'])} tokens of memory needed, "
    assert f"{tokens}{4 * int(chapter.glued['refused_free'])} free)" in refused["sentence"]
    assert states[refused["call"]]["waiting"] == [4, 5], "request 5 stands behind the one that is refused"
    assert states[int(chapter.glued["slots_step"])]["num_free"] == int(chapter.glued["slots_free"]) > 1
    assert all(not event.get("fault") for event in story["events"])
    for wait in story["waits"]:
        if not wait["for"]:
            continue
        kinds = [event["kind"] for event in story["events"] if event["call"] == wait["step"]]
        sentences = [event["sentence"] for event in story["events"] if event["call"] == wait["step"]]
        (said,) = (n for n, sentence in enumerate(sentences) if f" Request {wait['line'][0]} waits: " in sentence)
        assert not {"write", "free"}.intersection(kinds[: said + 1]), "the reason is told before anything is given back"


def test_the_waiting_is_for_what_each_row_of_the_table_is_named_after(seen: dict[str, Any]) -> None:
    for row in seen["scarce"]:
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert max(row["shares"], key=row["shares"].get) == row["name"]
    tokens, slots, blocks = seen["scarce"]
    assert slots["served_per_s"] < tokens["served_per_s"], "few slots serve fewer"
    assert slots["tpot"]["p50"] < tokens["tpot"]["p50"] < blocks["tpot"]["p50"], "and keep tokens fast"


def test_a_reason_to_wait_is_counted_for_the_scarcity_that_it_is_about(builder: dict[str, Any]) -> None:
    what = builder["_what"]
    assert what("the step has its 2048 tokens") == "tokens"
    assert what("as many run as may") == "slots"
    assert what("too little memory is free") == what("a request was preempted in this step") == "blocks"


def test_the_law_of_little_holds_in_every_replay(chapter: Any, seen: dict[str, Any]) -> None:
    for rows in seen["load"].values():
        for row in rows:
            assert row["served_per_s"] * row["e2e_mean_s"] == pytest.approx(row["in_system"])
    rate, stay = number(chapter.glued["calm_rate"]), number(chapter.glued["calm_stay"])
    assert rate * stay == pytest.approx(number(chapter.glued["calm_inside"]), rel=0.02)
    inside = number(chapter.glued["calm_inside"]) * number(chapter.glued["mean_tokens"])
    assert number(chapter.glued["calm_kv"]) == pytest.approx(100 * inside / number(chapter.glued["kv_tokens"]), abs=1)


def test_the_subtraction_above_saturation_foretells_the_longest_wait(chapter: Any) -> None:
    rate, seconds = number(chapter.glued["over_rate"]), number(chapter.glued["over_s"])
    inside = number(chapter.glued["over_inside"])
    assert (28 - rate) * seconds == pytest.approx(inside, rel=0.02)
    told = (inside - number(chapter.glued["over_slots"])) / rate
    assert number(chapter.glued["over_wait"]) == pytest.approx(told, abs=0.6)
    assert number(chapter.glued["over_max"]) == pytest.approx(told, rel=0.25)


def test_a_rate_that_is_not_served_has_a_goodput_that_falls_while_tokens_rise(seen: dict[str, Any]) -> None:
    rates = {row["rate"]: row for row in seen["load"]["continuous"]}
    assert rates[24]["tokens_per_s"] > rates[22]["tokens_per_s"]
    assert rates[28]["good_per_s"] < rates[24]["good_per_s"] < rates[22]["good_per_s"]
    assert rates[22]["good_share"] > 0.95
    assert all(rates[rate]["ttft"]["p99"] < 0.5 for rate in rates if rate <= 20), "as the description says"
    static = seen["load"]["static"]
    assert static[0]["ttft"]["p50"] > 1
    assert static[-1]["ttft"]["p99"] > 120
    assert all(row["good_per_s"] < 0.6 for row in static)


def test_the_recorded_moments_keep_their_order_and_have_the_rate_that_is_said(
    chapter: Any, builder: dict[str, Any], seen: dict[str, Any]
) -> None:
    coming = builder["conversations"](builder["REQUESTS"])
    span = coming[-1].arrival_s - coming[0].arrival_s
    moments = [(row.arrival_s - coming[0].arrival_s) / (20 * span / 1_499) for row in coming]
    assert moments[-1] == pytest.approx(1_499 / 20)
    own = [replace(row, arrival_s=moment) for row, moment in zip(coming, moments, strict=True)]
    ttft = sorted(row.ttft_s for row in builder["replay"](own, build(builder["SETUP"])).served)
    assert seen["recorded"]["ttft"]["p99"] == pytest.approx(ttft[1_485])
    assert chapter.glued["recorded_rate"] == "20"


def test_one_row_of_the_plot_counted_again_by_hand(builder: dict[str, Any], seen: dict[str, Any]) -> None:
    (row,) = (row for row in seen["load"]["continuous"] if row["rate"] == 22)
    served = builder["replay"](
        poisson(builder["conversations"](builder["REQUESTS"]), 22, builder["SEED"]), build(builder["SETUP"])
    ).served
    ttft = sorted(one.first_s - one.arrival_s for one in served)
    good = [
        one
        for one in served
        if one.first_s - one.arrival_s <= 1.0
        and one.last_s - one.first_s <= 0.050 * max(1, one.output_tokens - 1) + 1e-12
    ]
    assert row["ttft"]["p50"] == pytest.approx(ttft[750])
    assert row["ttft"]["p99"] == pytest.approx(ttft[1_485])
    assert row["good_share"] == pytest.approx(len(good) / 1_500)


def test_no_order_is_a_free_lunch_and_fair_share_hides_the_job_from_people(seen: dict[str, Any]) -> None:
    first, shortest = seen["orders"]
    assert shortest["all"]["p50"] < first["all"]["p50"]
    assert shortest["short"]["p99"] < first["short"]["p99"]
    assert shortest["all"]["max"] > 4 * first["all"]["max"]
    assert shortest["long"]["p99"] > first["long"]["p99"]
    unfair, fair = seen["tenants"]["rows"]
    assert unfair["people"]["p50"] > 10 > 1 > fair["people"]["p99"]
    assert 1 < fair["job_s"] / unfair["job_s"] < 1.1


def test_queues_are_what_the_tables_call_them(builder: dict[str, Any]) -> None:
    """Three requests at once and one place: who is served first by each order."""
    setup = replace(builder["SETUP"], max_running=1)
    coming = [Arrival(0.0, length, 3, 3, tenant=tenant) for length, tenant in ((50, "a"), (40, "a"), (60, "b"))]
    order = {}
    for queue in (FirstCome(), ShortestFirst(), FairShare()):
        served = builder["replay"](coming, build(setup, queue=queue)).served
        order[type(queue).__name__] = sorted(range(3), key=lambda who: served[who].first_s)
    assert order == {"FirstCome": [0, 1, 2], "ShortestFirst": [1, 0, 2], "FairShare": [0, 2, 1]}


def test_the_keys_of_the_questions_are_right(chapter: Any, seen: dict[str, Any]) -> None:
    steps, scarce, longer = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert steps.answer == str(max(seen["small"]["ends"]["continuous"])) == "11"
    assert scarce.answer == "Blocks"
    few, many = seen["growth"][0], seen["growth"][-1]
    assert (few["requests"], many["requests"]) == (750, 3_000)
    assert longer.answer == f"About {many['ttft']['p50'] / few['ttft']['p50']:.0f} times as long"
    assert all(len(quiz.options) == 3 for quiz in (steps, scarce, longer))


def test_what_a_user_notices_is_the_definition_of_the_simulator(chapter: Any) -> None:
    ttft, tpot, longest = chapter.names["noticed"](2.0, [3.0, 3.5, 3.6, 5.0])
    assert (ttft, tpot, longest) == pytest.approx((1.0, 2 / 3, 1.4))


def test_every_figure_describes_itself_and_names_the_source_of_its_data(chapter: Any) -> None:
    small, load = (shown for shown in chapter.shown if isinstance(shown, Figure))
    for figure in (small, load):
        assert len(figure.description.split()) >= 20
        assert figure.table.rows
    assert "made-up" in small.note
    assert load.note.startswith(workload("azure_conv").description)
    assert "cost model" in load.note
    assert len([shown for shown in chapter.shown if isinstance(shown, Table)]) == 3
    assert all(table.caption for table in chapter.shown if isinstance(table, Table))


def test_the_bug_skips_a_request_and_the_mended_step_skips_none_in_any_order(chapter: Any) -> None:
    four = [("a", 1), ("b", 9), ("c", 2), ("d", 3)]
    (cell,) = (cell for cell in chapter.cells if cell.startswith("def one_step"))
    answer = re.search(r"```\{dropdown\} Answer to 3\n.*?\n\n((?:    [^\n]*\n)+)\nand for", chapter.source, re.DOTALL)
    check = re.search(r"and for the check\n\n((?:    [^\n]*\n|\n)+?)\n`", chapter.source, re.DOTALL)
    assert answer is not None
    assert check is not None
    line = "            running.remove(victim)\n"
    assert cell.count(line) == 1
    mend = "".join(f"        {text}\n" for text in answer[1].splitlines())
    names: dict[str, Any] = {"wrong": cell, "mended": cell.replace(line, mend + line)}
    skips = {}
    for name in ("wrong", "mended"):
        scope: dict[str, Any] = {}
        exec(names[name], scope)
        exec("if True:\n" + check[1], scope)
        skips[name] = [
            (order, free) for order in permutations(four) for free in range(5) if scope["skipped"](order, free)
        ]
    assert (tuple(four), 2) in skips["wrong"]
    assert skips["mended"] == []
    by_number = tuple(sorted(four, key=lambda one: one[1]))
    assert all(order != by_number for order, _ in skips["wrong"]), "the last in the list as victim is harmless"


def test_the_answers_to_the_even_exercises_hold(chapter: Any, seen: dict[str, Any]) -> None:
    answer = (ROOT / "solutions" / "chapters" / "scheduling.md").read_text(encoding="utf-8")
    answers = [3, 1, 4, 1, 5]
    static, joined = (chapter.names["serve"](answers, 2, joins) for joins in (False, True))
    for who, tokens in enumerate(answers):
        assert f"| {who} | {tokens} | {static[who]} | {joined[who]} |" in answer
    assert f"{max(static)} steps of 2 places, {2 * max(static)}, so {2 * max(static) - sum(answers)}" in answer
    assert f"{max(joined)} steps, {2 * max(joined)} places, so {2 * max(joined) - sum(answers)}" in answer
    assert max(chapter.names["serve"]([5, 4, 3, 1, 1], 2, True)) == 7, "what sorting by length would need"
    rates = {row["rate"]: row for row in seen["load"]["continuous"]}
    assert 19 < rates[28]["served_per_s"] < 21.5, "about 20 however many come"


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "math", "numpy", "matplotlib"}
