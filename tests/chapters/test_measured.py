"""The chapter "What was measured on a GPU": its numbers are those of the kept records, and its words hold for them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import labkit
from chapters.evidence import measured as evidence_of_the_page
from labkit.figures import Figure, Table
from reference_impl.bench.kernel_cases import DECODE_CASES
from reference_impl.bench.kernels import PAGED_PEERS
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
    padded = 100 * unequal["results"]["torch SDPA, padded"]["share"]
    assert chapter.glued["padded_says"].startswith(f"{padded:.0f} %")
    assert abs(number(chapter.glued["full"]) - padded) <= 5, "the rule that it teaches"


def test_what_is_said_of_the_peers_can_be_counted_in_the_record(chapter: Any, records: dict[str, Any]) -> None:
    rows = records["kernels"]["decode"]
    paged = [row["paged_peer"] for row in rows if row["paged_peer"]]
    glued = chapter.glued
    assert int(glued["batches"]) == len(rows)
    assert paged, "the book's own record has peers in it; one without is for RESULTS="
    ahead, worst = sum(peer["met"] for peer in paged), min(peer["times"] for peer in paged)
    assert (
        f"in {len(paged)} of {len(rows)} batches, and ours is at or above the best in {ahead}." in glued["paged_says"]
    )
    assert f"where it is {worst:.2f} times as fast as" in glued["paged_says"]
    assert int(glued["all_ahead"]) == sum(row["peer"]["met"] for row in rows if row["peer"])
    assert int(glued["missed"]) == sum(not row["goal"]["met"] for row in rows)
    ours_over_textbook = {
        row["name"]: row["results"]["ours"]["median_us"] / row["results"]["textbook"]["median_us"]
        for row in rows
        if "median_us" in row["results"]["textbook"]
    }
    ahead_of_ours = {name: times for name, times in ours_over_textbook.items() if times > 1}
    equal = {case.name for case in DECODE_CASES if len(set(case.lengths)) == 1}
    assert ahead_of_ours.keys() <= equal, "the page says that only equal lengths suit the textbook"
    most = max(ahead_of_ours, key=lambda name: ahead_of_ours[name])
    assert round(100 * (ahead_of_ours[most] - 1)) > 0
    assert glued["textbook_says"].startswith(f"in {len(ahead_of_ours)} such batches")
    assert glued["textbook_says"].endswith(f"by up to {100 * (ahead_of_ours[most] - 1):.0f} % ({most})")
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
    assert nearest["kv_bytes"] == max(run["kv_bytes"] for run in records["offline"]["runs"])
    assert glued["nearest"].endswith("where there is most to read")
    llama = next(run for run in records["offline"]["runs"] if run["model"] == "llama-3.2-1b")
    assert llama["tokens_per_s"] > run["tokens_per_s"], "the page says faster"
    assert llama["share"] < run["share"], "the page says that it stays further from its floor"
    llama_waits = 100 * (1 - llama["step"]["gpu_ms"] / llama["step"]["wall_ms"])
    assert llama_waits > float(glued["step_host"])
    assert f"{100 * llama['share']:.0f} %: in {llama_waits:.1f} % of a step the GPU waits" in glued["llama_says"]


def test_what_is_said_of_clients_and_of_the_budget_holds(chapter: Any, records: dict[str, Any]) -> None:
    glued, rows = chapter.glued, {row["allocator"]: row for row in reversed(records["budget"]["rows"])}
    top = max(records["serve"]["rates"], key=lambda row: row["rate_per_s"])
    assert number(glued["good_rate"]) == top["rate_per_s"]
    assert top["good_share"] > 0.9, "the page says that goodput has not fallen yet"
    assert glued["good_falls"] == "was not reached"
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


# Whoever measures again has another machine: none of its records may leave the course without a page.


def _without_peers(records: dict[str, Any]) -> None:
    kernels = records["kernels"]
    kernels["peers"] = {name: f"not installed: {name}" for name in kernels["peers"]}
    for row in kernels["decode"]:
        others = {name: found for name, found in row["results"].items() if name in PAGED_PEERS}
        row["results"] |= {name: {"reason": "not installed"} for name in others}
        row["paged_peer"] = None


def _with_one_peer_on_one_batch(records: dict[str, Any]) -> None:
    _without_peers(records)
    records["kernels"]["peers"]["flashinfer"] = "0.6.13"
    first = records["kernels"]["decode"][0]
    ours = first["results"]["ours"]
    first["results"]["FlashInfer"] = {"median_us": 1.03 * ours["median_us"], "share": ours["share"] / 1.03}
    first["paged_peer"] = {"name": "FlashInfer", "times": 1.03, "met": True}


def _on_a_slower_gpu(records: dict[str, Any]) -> None:
    for record in records.values():
        record["machine"] |= {"device": "NVIDIA A10", "gpu": "NVIDIA A10"}
    for row in records["kernels"]["decode"]:
        for name in ("textbook", "torch SDPA, padded"):
            if "share" in row["results"][name]:
                row["results"][name]["median_us"] *= 2
                row["results"][name]["share"] /= 2
    script, llama = records["offline"]["runs"][:2]
    llama["share"] = script["share"] + 0.01
    records["offline"]["runs"][-1]["kv_bytes"] = 1
    records["serve"]["rates"][-1]["good_share"] = 0.5


@pytest.fixture
def elsewhere(
    page: Callable[[str], Any], records: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[dict[str, Any]], None]], Any]:
    """The page where the records are others."""

    def run(changed: Callable[[dict[str, Any]], None]) -> Any:
        others = copy.deepcopy({name: records[name] for name in ("kernels", "offline", "serve", "budget")})
        changed(others)
        for name, record in others.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        monkeypatch.setattr(evidence_of_the_page, "RESULTS", tmp_path)
        monkeypatch.setattr(labkit, "evidence", lambda name: evidence_of_the_page.build())
        return page(CHAPTER)

    return run


@pytest.mark.parametrize("changed", [_without_peers, _with_one_peer_on_one_batch, _on_a_slower_gpu])
def test_every_sentence_has_its_words_on_another_machine(elsewhere: Any, changed: Any) -> None:
    found = elsewhere(changed)
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", found.source)) == set(found.glued)
    assert all(text.strip() for text in found.glued.values())


def test_a_machine_without_peers_says_so_and_shows_no_column_of_dashes(elsewhere: Any) -> None:
    found = elsewhere(_without_peers)
    assert found.glued["paged_says"] == (
        "No kernel of another project that reads from blocks was there when this was measured."
    )
    kernels = next(shown for shown in found.shown if isinstance(shown, Figure))
    assert tuple(kernels.table.header) == ("Batch", "ours", "torch SDPA, padded", "textbook")


def test_one_peer_is_named_alone(elsewhere: Any) -> None:
    said = elsewhere(_with_one_peer_on_one_batch).glued["paged_says"]
    assert (
        "read from blocks too: FlashInfer's usual kernel, of FlashInfer 0.6.13. One of them could be timed in 1 of "
        in said
    )
    assert "unequal batch of the opening" not in said


def test_a_slower_gpu_is_told_as_it_is_and_not_held_beside_an_h100(elsewhere: Any) -> None:
    found = elsewhere(_on_a_slower_gpu)
    assert found.glued["textbook_says"].startswith("the textbook's kernel comes nearest on ")
    assert found.glued["padded_says"].endswith("is not read that fast.")
    assert found.glued["job_others"] == "No other engine has served it on a GPU of this kind."
    assert found.glued["llama_says"].startswith("It reaches ")
    assert found.glued["good_falls"] == "was passed on the way"
    assert not found.glued["nearest"].endswith("most to read")
    _, jobs, _ = (shown for shown in found.shown if isinstance(shown, Figure))
    assert "the same with" not in jobs.shapes
