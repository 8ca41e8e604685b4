"""The chapter "What was measured on a GPU": its numbers are those of the kept records, and its words hold for them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from labkit.figures import Figure, Table
from reference_impl.bench.kernel_cases import DECODE_CASES
from tests.chapters.reading import number

CHAPTER = "measured"
RESULTS = Path(__file__).resolve().parents[2] / "reference_impl" / "bench" / "results"


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_page_stays_short(chapter: Any) -> None:
    assert len(re.sub(r"\{glue:text\}", "", chapter.prose).split()) <= 1_200


def test_the_opening_holds_less_to_read_takes_longer(chapter: Any, records: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in records["kernels"]["decode"]}
    equal, unequal = (
        rows[chapter.names["seen"][part]["name"] if part == "unequal" else chapter.names["seen"][part]]
        for part in ("equal", "unequal")
    )
    assert number(chapter.glued["equal_mb"]) == round(equal["kv_bytes"] / 1e6)
    assert number(chapter.glued["unequal_mb"]) == round(unequal["kv_bytes"] / 1e6)
    assert number(chapter.glued["unequal_us"]) == round(unequal["results"]["textbook"]["median_us"])
    assert unequal["kv_bytes"] < equal["kv_bytes"]
    assert number(chapter.glued["slower"]) > 1.5
    lengths = next(case.lengths for case in DECODE_CASES if case.name == unequal["name"])
    assert number(chapter.glued["full"]) == round(100 * sum(lengths) / len(lengths) / max(lengths))
    assert abs(number(chapter.glued["full"]) - number(chapter.glued["padded_share"])) <= 5, "the rule that it teaches"


def test_what_is_said_of_the_peers_can_be_counted_in_the_record(chapter: Any, records: dict[str, Any]) -> None:
    rows = records["kernels"]["decode"]
    paged = [row["paged_peer"] for row in rows if row["paged_peer"]]
    glued = chapter.glued
    assert (int(glued["paged_rows"]), int(glued["batches"])) == (len(paged), len(rows))
    assert int(glued["ahead"]) == sum(peer["met"] for peer in paged)
    assert int(glued["all_ahead"]) == sum(row["peer"]["met"] for row in rows if row["peer"])
    assert number(glued["worst_times"]) == round(min(peer["times"] for peer in paged), 2)
    assert int(glued["missed"]) == sum(not row["goal"]["met"] for row in rows)
    ours_over_textbook = {
        row["name"]: row["results"]["ours"]["median_us"] / row["results"]["textbook"]["median_us"]
        for row in rows
        if "median_us" in row["results"]["textbook"]
    }
    ahead = {name: times for name, times in ours_over_textbook.items() if times > 1}
    assert int(glued["textbook_ahead"]) == len(ahead) > 0
    assert number(glued["furthest_percent"]) == round(100 * (ahead[glued["furthest"]] - 1)) > 0
    equal = {case.name for case in DECODE_CASES if len(set(case.lengths)) == 1}
    assert ahead.keys() <= equal, "the page says that only equal lengths suit the textbook"
    for row in (row for row in rows if row["peer"]):
        ours = row["results"]["ours"]["median_us"]
        assert row["peer"]["times"] == pytest.approx(row["results"][row["peer"]["name"]]["median_us"] / ours, rel=1e-3)


def test_each_figure_shows_every_row_of_its_record_and_says_where_and_when(
    chapter: Any, records: dict[str, Any]
) -> None:
    kernels, jobs, clients = (shown for shown in chapter.shown if isinstance(shown, Figure))
    for figure, suite, rows in (
        (kernels, "kernels", records["kernels"]["decode"]),
        (jobs, "offline", records["offline"]["runs"]),
        (clients, "serve", records["serve"]["rates"]),
    ):
        machine = records[suite]["machine"]
        assert len(figure.table.rows) == len(rows)
        assert f"{machine.get('gpu') or machine['device']}, {records[suite]['date']}" in figure.note
        assert len(figure.description) > 80
    first = records["kernels"]["decode"][0]
    assert figure_cells(kernels.table, 0)[1] == f"{100 * first['results']['ours']['share']:.0f} %"
    for name, rate in chapter.names["offline"]["peers"].items():
        assert f"the same with {name}" in jobs.shapes
        assert f"{rate:,.0f} tokens/s" in jobs.shapes


def figure_cells(table: Table, place: int) -> list[str]:
    return list(table.rows[place])


def test_the_batch_job_is_the_published_one_and_its_step_adds_up(chapter: Any, records: dict[str, Any]) -> None:
    run = next(run for run in records["offline"]["runs"] if run["goal"])
    glued = chapter.glued
    assert number(glued["job_rate"]) == round(run["tokens_per_s"])
    assert run["step"]["kinds"]["attention"] <= run["step"]["gpu_ms"] <= run["step"]["wall_ms"]
    assert float(glued["step_attention"]) + float(glued["step_host"]) <= 100
    shares = [run["share"] for run in records["offline"]["runs"]]
    assert max(shares) < 1, "a floor is a floor"
    nearest = max(records["offline"]["runs"], key=lambda run: run["share"])
    assert nearest["kv_bytes"] == max(run["kv_bytes"] for run in records["offline"]["runs"]), (
        "the page says: most to read"
    )
    llama = next(run for run in records["offline"]["runs"] if run["model"] == "llama-3.2-1b")
    assert llama["tokens_per_s"] > run["tokens_per_s"], "the page says faster"
    assert float(glued["llama_host"]) > float(glued["step_host"])


def test_what_is_said_of_clients_and_of_the_budget_holds(chapter: Any, records: dict[str, Any]) -> None:
    glued, rows = chapter.glued, {row["allocator"]: row for row in reversed(records["budget"]["rows"])}
    top = max(records["serve"]["rates"], key=lambda row: row["rate_per_s"])
    assert number(glued["good_rate"]) == top["rate_per_s"]
    assert top["good_share"] > 0.9, "the page says that goodput has not fallen yet"
    paged = rows["paged"]
    assert (paged["prefix_cache"], paged["prompts"]) == ("none", "own")
    assert number(glued["budget_gain"]) == round(paged["tokens_per_s"] / rows["contiguous"]["tokens_per_s"], 1)
    assert number(glued["budget_running"]) > number(glued["budget_gain"]) > 1, "the page says which is smaller, and why"
    again, once = (row for row in records["budget"]["rows"] if row["prompts"] == "shared")
    assert (again["reused_tokens"], once["prefix_cache"]) == (0, "hash")
    assert number(glued["once_gain"]) == round(once["tokens_per_s"] / again["tokens_per_s"], 2) > 1, "a gain"
    assert number(glued["once_preempted"]) == once["preemptions"] > number(glued["again_preempted"])
    assert number(glued["job_shared"]) < 0.2 * number(glued["job_tokens"]), "the page says that little is shared"
    (table,) = (shown for shown in chapter.shown if isinstance(shown, Table))
    assert len(table.rows) == len(records["budget"]["rows"])
