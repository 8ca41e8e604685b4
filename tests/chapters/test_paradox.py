"""The chapter "The paradox of free memory": its refusals are the engine's, and what it says of each cause holds."""

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
from reference_impl.memory.contiguous import ContiguousAllocator, attack, external_fragmentation, units_moved
from reference_impl.memory.paradox import arrivals
from tests.chapters.reading import number

CHAPTER = "paradox"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(chapter: Any) -> dict[str, Any]:
    return chapter.names["run"]


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_opening_is_two_moments_of_one_run_of_the_engine(chapter: Any, run: dict[str, Any]) -> None:
    source = workload("azure_conv")
    lengths = zip(source.prompt_tokens.tolist(), source.output_tokens.tolist(), strict=True)
    rows = [(p, new) for p, new in lengths if new >= 1 and p + new <= run["capacity"]][: run["arrivals"]]
    memory, ends, met = ContiguousAllocator(run["capacity"]), {}, {}
    wanted_moments = {moment["request"]: moment for pair in ("opening", "blind") for moment in run[pair]}
    refused = 0
    for request, (step, prompt, output) in enumerate(arrivals(rows, run["capacity"], run["load"], 0)):
        for done in [owner for owner, end in ends.items() if end <= step]:
            memory.free(done)
            del ends[done]
        sizes = [size for _, size in memory.holes()]
        if request in wanted_moments:
            met[request] = (prompt + output, sum(sizes), max(sizes), external_fragmentation(memory.holes()))
        if max(sizes, default=0) < prompt + output:
            refused += 1
        else:
            memory.allocate(request, prompt + output)
            ends[request] = step + output
    assert refused == int(chapter.glued["refused"])
    for request, moment in wanted_moments.items():
        assert met[request] == (moment["wanted"], moment["free"], moment["largest"], pytest.approx(moment["metric"]))
    no, yes = run["opening"]
    assert no["largest"] < no["wanted"] <= yes["wanted"] <= yes["largest"] <= yes["free"] < no["free"]
    assert 2 * no["free"] > run["capacity"]
    assert number(chapter.glued["no_free"]) == no["free"]
    assert number(chapter.glued["no_gib"]) == pytest.approx(no["free"] * 819_200 / 2**30, abs=0.05)


def test_the_metric_is_lower_where_it_refuses_less_than_where_it_admits_more(chapter: Any, run: dict[str, Any]) -> None:
    low, high = run["blind"]
    assert not low["admitted"]
    assert high["admitted"]
    assert low["wanted"] <= low["free"], "a refusal by holes, not by fullness"
    assert low["wanted"] <= high["wanted"]
    assert high["metric"] - low["metric"] > 0.3, "a blind spot that everybody can see"


def test_compaction_would_move_all_that_lies_above_the_lowest_hole(run: dict[str, Any]) -> None:
    no, _ = run["opening"]
    first = no["holes"][0][0]
    assert run["moved"] == run["capacity"] - first - no["free"]
    memory = ContiguousAllocator(10)
    for owner, size in enumerate((2, 3, 4)):
        memory.allocate(owner, size)
    memory.free(0)
    assert units_moved(memory.compact()) == 7


def test_the_story_is_refused_with_more_free_than_it_is_admitted_with(chapter: Any) -> None:
    events = chapter.names["story"]["events"]
    check_log(events)
    (figure,) = (shown for shown in chapter.shown if isinstance(shown, Player))
    assert len(figure) == len(events)
    assert number(chapter.glued["story_less"]) < number(chapter.glued["story_free"])
    assert number(chapter.glued["story_wanted"]) <= number(chapter.glued["story_less"])
    for event in events:
        for table in event["state"]["tables"].values():
            assert table == list(range(table[0], table[0] + len(table))), "one range a request"


def test_each_cause_shows_in_its_own_observation_and_not_in_that_of_another(chapter: Any) -> None:
    cause = chapter.names["causes"]
    tokens, newcomer = cause["tokens"], cause["newcomer"]
    holes, kept, rounded, leak, mark, cache, policy = (
        cause[name] for name in ("fragmented", "reserved", "rounded", "leaked", "watermark", "cached", "policy")
    )
    assert holes["largest"] < newcomer == holes["needed"] <= holes["free"]
    for full in (kept, rounded):
        assert full["free"] == 0
        assert full["held"] < tokens / 4
    assert kept["at_end"] == kept["given"], "a reservation is filled at the end"
    assert rounded["at_end"] < 0.6 * rounded["given"], "what is rounded up is not"
    assert (kept["internal"], rounded["internal"] > 0) == (0, True)
    assert leak["idle_free"] + leak["missing"] == tokens
    assert leak["missing"] == 3 * newcomer
    assert leak["held"] == newcomer
    assert leak["free"] == leak["idle_free"] - newcomer
    assert mark["largest"] >= newcomer, "it is refused though there is room"
    assert mark["admitted_at"] == newcomer + mark["kept"]
    assert cache["blank"] < newcomer
    assert cache["free"] == tokens
    assert cache["blank"] + cache["evicted"] == newcomer
    assert (policy["refusals"], policy["waiting"]) == (0, 1)
    assert policy["free"] >= newcomer
    table = next(shown for shown in chapter.shown if isinstance(shown, Table) and len(shown.rows) == 7)
    assert [row[0] for row in table.rows][:4] == [
        "external fragmentation",
        "reservation",
        "internal fragmentation",
        "leak",
    ]


def test_the_string_is_first_fit_as_the_engine_does_it(chapter: Any) -> None:
    names = chapter.names
    memory, engine = "." * 20, ContiguousAllocator(20)
    for owner, (name, size) in enumerate((("a", 4), ("b", 3), ("c", 4), ("d", 2), ("e", 4))):
        memory = names["first_fit"](memory, name, size)
        engine.allocate(owner, size)
    for owner, name in ((0, "a"), (2, "c")):
        memory = memory.replace(name, ".")
        engine.free(owner)
    assert names["holes"](memory) == [size for _, size in engine.holes()]
    assert names["metric"](memory) == pytest.approx(external_fragmentation(engine.holes()))
    assert names["first_fit"](memory, "x", 5) is None
    assert names["first_fit"](memory, "x", 4).index("x") == engine.allocate(9, 4)


def test_the_comb_leaves_the_share_that_the_page_says_and_is_no_shortest_program(chapter: Any) -> None:
    assert chapter.glued["comb_percent"] == "75"
    for row in chapter.names["seen"]["adversary"]["rows"]:
        assert row["free"] / 4_096 == pytest.approx(1 - 1 / row["size"])
        assert row["shortest"] == len(attack(4_096, row["size"])) < row["calls"]


def test_the_keys_of_the_questions_are_right(chapter: Any) -> None:
    evaluation, rise, on_call, failure, ranges = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert evaluation.answer.startswith("External fragmentation")
    assert rise.answer.startswith("Yes, although")
    before, after = re.findall(r"`([^`]+)`", rise.question)
    assert chapter.names["metric"](after) > chapter.names["metric"](before)
    assert on_call.answer.startswith("Log free memory, largest hole and wanted size")
    assert "F is 0.78" in failure.question
    assert "blocks" in failure.answer
    assert ranges.answer.startswith("Blocks of 16")
    assert ranges.options[ranges.answer].startswith("0 such refusals")
    assert all(len(quiz.options) == 4 for quiz in (evaluation, rise, on_call, failure, ranges))


def test_only_blocks_refuse_nobody_for_whom_enough_is_free(run: dict[str, Any]) -> None:
    stuck = {name: kind["stuck"] for name, kind in run["kinds"].items()}
    assert stuck["blocks"] == 0 < stuck["best"] < stuck["first"] < stuck["buddy"]
    assert all(kind["stuck"] <= kind["refused"] for kind in run["kinds"].values())


def test_every_figure_describes_itself_and_names_the_source_of_its_data(chapter: Any, run: dict[str, Any]) -> None:
    figures = [shown for shown in chapter.shown if isinstance(shown, Figure)]
    assert len(figures) == 2
    for figure in figures:
        assert len(figure.description.split()) >= 20
        assert figure.table.rows
        assert figure.note == run["source"] == workload("azure_conv").description


def test_the_bug_has_a_sign(chapter: Any) -> None:
    assert (chapter.glued["bug_missing"], chapter.glued["bug_over"], chapter.glued["bug_pages"]) == (
        "59",
        "4,224",
        "264",
    )


def test_the_answers_to_the_exercises_hold(chapter: Any) -> None:
    names = dict(chapter.names)
    answer = (ROOT / "solutions" / "chapters" / "paradox.md").read_text(encoding="utf-8")
    come, memory = names["first_fit"], "." * 12
    for name, size in (("a", 3), ("b", 2), ("c", 4), ("d", 3)):
        memory = come(memory, name, size)
    memory = memory.replace("a", ".").replace("c", ".")
    assert f"`{memory}`" in answer
    assert f"= {names['metric'](memory):.2f}" in answer
    memory = come(memory, "e", 4)
    assert f"`{memory}`" in answer
    assert come(memory, "g", 5) is None
    assert names["metric"](memory) == 0
    memory = memory.replace("b", ".")
    assert f"`{memory}`" in answer
    assert f"`{come(memory, 'g', 5)}`" in answer
    chapter.run_answer(3, names)
    curves = [[names["usable"](text, size) for size in range(1, 29)] for text in (names["four"], names["one"])]
    assert curves[0] != curves[1]
    assert curves[0][0] == curves[1][0] == sum(names["holes"](names["four"]))


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"\b[\w'-]+\b", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "math", "numpy", "matplotlib"}
