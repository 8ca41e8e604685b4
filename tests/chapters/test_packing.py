"""The chapter "Buckets, sorting, packing": its rows are the engine's, and each fault is found by whom it says."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labkit.figures import Figure, Table
from labkit.quizzes import Quiz
from labkit.switch import Switch
from labkit.workloads import workload
from reference_impl.padding import bucketed, pack_rows, static_batch
from reference_impl.padding.account import ModelShape
from reference_impl.padding.batch import pack, packed_bias
from tests.chapters.reading import number

CHAPTER = "packing"
ROOT = Path(__file__).resolve().parents[2]


def test_every_number_in_the_prose_was_computed_and_every_computed_one_is_used(chapter: Any) -> None:
    assert set(re.findall(r"\{glue:text\}`([^`]+)`", chapter.source)) == set(chapter.glued)


def test_the_pages_row_is_the_engines(chapter: Any) -> None:
    row, texts, words = (chapter.names[name] for name in ("row", "texts", "words"))
    assert texts == chapter.names["seen"]["prompts"]
    ids, boundaries, positions = pack([[words.index(word) for word in text.split()] for text in texts])
    assert [array.tolist() for array in chapter.names["pack"](texts)] == [
        ids.tolist(),
        boundaries.tolist(),
        positions.tolist(),
    ]
    assert (row["boundaries"], row["positions"]) == (boundaries.tolist(), positions.tolist())


def test_slices_compute_what_the_engines_block_diagonal_bias_defines(chapter: Any) -> None:
    names = chapter.names
    ids, boundaries, positions = names["pack"](names["texts"])
    bias = packed_bias(torch.tensor(boundaries))[0, 0].double().numpy()
    x = names["token_table"][ids] + names["position_table"][positions]
    for query, key, value, out in names["layers"]:
        scores = (x @ query) @ (x @ key).T / np.sqrt(names["D"]) + bias
        share = np.exp(scores - scores.max(axis=1, keepdims=True))
        x = x + share / share.sum(axis=1, keepdims=True) @ (x @ value) @ out
    assert np.abs(names["run"](ids, boundaries, positions) - x).max() < 1e-9


def test_the_figures_show_the_engines_looks_and_passes(chapter: Any) -> None:
    passes, looks = (shown for shown in chapter.shown if isinstance(shown, Switch))
    shown = chapter.names["seen"]["shown"]
    assert shown["prompts"] == workload("azure_conv").prompt_tokens[: len(shown["prompts"])].tolist()
    assert shown["passes"]["Packed"] == pack_rows(shown["prompts"], shown["budget"])
    edges = [edge for edge in chapter.names["seen"]["edges"] if edge <= shown["budget"]]
    assert shown["passes"]["Padded, in buckets"] == bucketed(shown["prompts"], edges, shown["budget"])
    assert list(passes.figures) == list(shown["passes"])
    assert "0.0 % padding" in passes.figures["Packed"].description
    assert all("0.0 %" not in figure.description for name, figure in passes.figures.items() if name != "Packed")
    kept, lost = looks.figures.values()
    assert "None of them" in kept.description
    lengths = [len(text.split()) for text in chapter.names["texts"]]
    own, everything = (sum(n * (n + 1) // 2 for n in sizes) for sizes in (lengths, [sum(lengths)]))
    assert f"{own} looks" in kept.description
    assert f"{everything} looks are allowed. {everything - own} of them" in lost.description


def test_a_bucket_waits_as_a_second_replay_says_request_by_request(chapter: Any) -> None:
    requests = workload("azure_conv")
    edges = np.quantile(requests.prompt_tokens, np.arange(1, 16) / 16)
    waiting: list[list[int]] = [[] for _ in range(16)]
    waits, slots, tokens = [], 0, 0
    for place, length in enumerate(requests.prompt_tokens.tolist()):
        queue = waiting[sum(length > edge for edge in edges)]
        queue.append(place)
        if len(queue) == 16:
            waits += [requests.arrival_s[place] - requests.arrival_s[one] for one in queue]
            slots += 16 * max(requests.prompt_tokens[one] for one in queue)
            tokens += sum(requests.prompt_tokens[one] for one in queue)
            queue.clear()
    glued = chapter.glued
    assert number(glued["wait16"]) == pytest.approx(np.mean(waits), abs=0.05)
    assert number(glued["worst16"]) == pytest.approx(max(waits), abs=0.5)
    assert number(glued["late16"]) == pytest.approx(np.percentile(waits, 95), abs=0.5)
    assert number(glued["share16"]) == pytest.approx(100 * (1 - tokens / slots), abs=0.05)


def test_what_the_page_says_of_waiting_holds_on_this_workload(chapter: Any) -> None:
    by_bucket, by_window = chapter.names["by_bucket"], chapter.names["by_window"]
    for ways in (by_bucket, by_window):
        lost, waits = [share for share, _ in ways.values()], [float(wait.mean()) for _, wait in ways.values()]
        assert lost == sorted(lost, reverse=True)
        assert waits == sorted(waits)
    for count, (_, waits) in by_bucket.items():
        assert waits.mean() == pytest.approx(count * 15 / (2 * chapter.names["rate"]), rel=0.15)
    assert number(chapter.glued["told16"]) == pytest.approx(number(chapter.glued["wait16"]), rel=0.1)
    assert chapter.names["prompts"].max() <= chapter.names["seen"]["budget"], "no prompt is longer than the budget"


def test_first_fit_is_the_engines_and_the_example_is_as_bad_as_the_bound_allows(chapter: Any) -> None:
    first_fit, glued = chapter.names["first_fit"], chapter.glued
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 30, size=40).tolist()
        rows = [[lengths[i] for i in row] for row in pack_rows(lengths, 50)]
        assert first_fit(lengths, 50) == rows
        assert all(sum(a) + sum(b) > 50 for a, b in pairwise(rows)), "why four rows are impossible in the question"
    assert first_fit([5, 4, 3, 3, 3, 2], 10) == [[5, 4], [3, 3, 3], [2]]
    assert int(float(glued["case_bound"])) == int(glued["case_found"]) == 3
    prompts, budget = workload("azure_conv").prompt_tokens.tolist(), chapter.names["seen"]["budget"]
    assert number(glued["packed_rows"]) == len(pack_rows(prompts, budget))
    assert number(glued["fewest"]) == -(-sum(prompts) // budget) <= number(glued["packed_rows"])
    parts = [prompts[start : start + 64] for start in range(0, len(prompts), 64)]
    found = sum(len(pack_rows(part, budget)) for part in parts)
    least = sum(-(-sum(part) // budget) for part in parts)
    assert number(glued["room_rows"]) == found
    assert ("needs fewer" in glued["room_said"]) == (found == least)


def test_the_table_of_ways_is_the_engines(chapter: Any) -> None:
    (table,) = (shown for shown in chapter.shown if isinstance(shown, Table) and shown.header[0].startswith("Way"))
    ways = chapter.names["seen"]["ways"]
    assert [row[0] for row in table.rows] == [way["name"] for way in ways]
    assert table.rows[-1][2:] == ("0.0", "0.0")
    assert ways[-1]["passes"] == min(way["passes"] for way in ways)


def test_the_pairs_of_the_first_row_are_counted_again(chapter: Any) -> None:
    lengths = workload("azure_conv").prompt_tokens[:16].tolist()
    own = sum(sum(range(1, length + 1)) for length in lengths)
    whole = sum(range(1, sum(lengths) + 1))
    assert number(chapter.glued["triangles"]) == pytest.approx(own / 1e6, abs=0.05)
    assert number(chapter.glued["triangle"]) == pytest.approx(whole / 1e6, abs=0.05)
    assert number(chapter.glued["pairs_times"]) == pytest.approx(whole / own, abs=0.05)


def test_the_table_of_faults_says_who_finds_what(chapter: Any) -> None:
    (table,) = (shown for shown in chapter.shown if isinstance(shown, Table) and shown.header[0] == "Fault")
    found = {name: [cell == "found" for cell in cells] for name, *cells in table.rows}
    assert list(table.header[1:]) == ["A as alone", "All as alone", "Other words in A", "Other length of A"]
    assert found == {
        "No boundaries": [False, True, True, True],
        "Positions run on": [False, True, False, True],
        "Boundaries one too late": [False, True, True, True],
    }
    # What is called found is far above rounding, and what is not found is nothing but rounding.
    for sizes in chapter.names["asked"].values():
        assert all(size < 1e-9 or size > 0.1 for size in sizes.values())


def test_the_printed_changes_are_zero_only_where_the_table_says_not_found(chapter: Any) -> None:
    names = chapter.names
    assert len(names["same_length"].split()) == len(names["texts"][0].split())
    assert len(names["longer"].split()) == len(names["texts"][0].split()) + 1
    assert all(new != old for new, old in zip(names["same_length"].split(), names["texts"][0].split(), strict=True))
    for way in (names["no_boundaries"], names["one_too_late"]):
        assert names["moved"](way, names["same_length"]) > 0.1


def test_the_keys_of_the_questions_are_computed(chapter: Any) -> None:
    wait, rows, wrong, missed = (shown for shown in chapter.shown if isinstance(shown, Quiz))
    assert wait.answer == "16 times as long"
    assert rows.answer == "3"
    assert wrong.answer == "Those of B and C."
    assert missed.answer == "Positions run on"


def test_the_bug_loses_the_boundaries_for_the_second_caller_alone(chapter: Any) -> None:
    boundaries_from, positions = chapter.names["boundaries_from"], chapter.names["positions"]
    assert boundaries_from(positions).tolist() == [0, 6, 9, 11]
    assert boundaries_from(positions, mask=np.ones_like(positions)).tolist() == [0, 11]
    assert chapter.glued["bug_found"] == "[ 0 11]"
    # The other hole that the page names: a piece of a long row starts at no position 0.
    assert boundaries_from(np.array([1024, 1025, 0, 1])).tolist() == [2, 4]


def test_reserving_for_answers_loses_what_a_second_count_says(chapter: Any) -> None:
    requests = workload("azure_conv")
    prompts, outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
    reserved = needed = padded = held = used = 0
    for start in range(0, len(prompts) - 15, 16):
        ask, say = prompts[start : start + 16], outputs[start : start + 16]
        room = sum(ask) + 16 * (max(say) - 1)
        reserved, needed = reserved + room, needed + sum(ask) + sum(say) - 16
        padded += 16 * (max(ask) + max(say) - 1)
        held += room * (max(say) - 1)
        # A request that says n tokens writes n - 1 of them; after step t it has ask + t slots.
        used += sum(n * (o - 1) + (o - 1) * o // 2 for n, o in zip(ask, say, strict=True))
    glued = chapter.glued
    assert number(glued["life_packed"]) == pytest.approx(100 * (1 - needed / reserved), abs=0.05)
    assert number(glued["life_padded"]) == pytest.approx(100 * (1 - needed / padded), abs=0.05)
    assert number(glued["over_time"]) == pytest.approx(100 * (1 - used / held), abs=0.05)
    assert number(glued["over_time"]) > number(glued["life_packed"])
    shape = ModelShape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, dtype_bytes=2)
    batches = [static_batch(prompts[i : i + 16], outputs[i : i + 16], shape) for i in range(0, len(prompts) - 15, 16)]
    engine = sum(batches[1:], batches[0])
    assert number(glued["life_padded"]) == pytest.approx(100 * engine.slots_lost, abs=0.05), "as in the first chapter"
    assert number(glued["kv_bytes"]) == shape.kv_bytes_per_token
    mean_row = sum(prompts[: len(batches) * 16]) / len(batches)
    assert number(glued["shifted"]) == pytest.approx(mean_row * 15 / 16 * shape.kv_bytes_per_token / 1e9, abs=0.05)


def test_every_figure_describes_itself_and_names_the_source_of_its_data(chapter: Any) -> None:
    figures = [shown for shown in chapter.shown if isinstance(shown, Figure)]
    assert len(figures) == 2
    assert all(figure.note == chapter.glued["source"] for figure in figures)
    for switch in (shown for shown in chapter.shown if isinstance(shown, Switch)):
        figures += switch.figures.values()
    for figure in figures:
        assert len(figure.description.split()) >= 12
        assert figure.table.rows
        assert 'role="img"' in figure.svg


def test_the_folded_answer_to_exercise_3_gives_the_squares_it_names(chapter: Any) -> None:
    names: dict[str, Any] = {"np": np, "words": chapter.names["words"]}
    chapter.run_answer(3, names)
    hears = {
        name: names["hears"](chapter.names[name], chapter.names["texts"])
        for name in ("right", "positions_run_on", "no_boundaries", "one_too_late")
    }
    diagonal = np.eye(3, dtype=bool)
    assert (hears["right"] == diagonal).all()
    assert (hears["positions_run_on"] == diagonal).all()
    assert (hears["no_boundaries"] == np.triu(np.ones((3, 3), bool))).all()
    assert (hears["one_too_late"] == diagonal | np.eye(3, k=1, dtype=bool)).all()


def test_the_model_answer_to_the_trace_exercise_is_what_the_engine_gives() -> None:
    answer = (ROOT / "solutions" / "chapters" / "packing.md").read_text(encoding="utf-8")
    _, boundaries, positions = pack([[0] * length for length in (3, 1, 0, 4)])
    assert f"cu_seqlens {' '.join(map(str, boundaries.tolist()))}" in answer
    assert f"positions  {' '.join(map(str, positions.tolist()))}" in answer
    own = int((packed_bias(boundaries) == 0).sum())
    one = int((packed_bias(boundaries[[0, -1]]) == 0).sum())
    assert f"{own} looks with boundaries, {one} without" in answer


def test_the_chapter_keeps_to_2500_words_and_uses_labkit_alone(chapter: Any) -> None:
    assert len(re.findall(r"[A-Za-z0-9']+", chapter.prose)) <= 2_500
    imports = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(chapter.cells), re.MULTILINE))
    assert imports <= {"labkit", "numpy", "matplotlib"}
