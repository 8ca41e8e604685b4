"""The prefill rows of `engine bench kernels`: cases that are what they say, contenders that are right, figures that fit
together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from reference_impl.attention import reference
from reference_impl.bench import kernels, prefill
from reference_impl.bench.prefill_cases import PREFILL_CASES, PrefillCase, draw_prefill

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = Path(kernels.__file__).parent / "results" / "kernels.json"
SMALL = [
    PrefillCase("equal prompts", ((20, 20),) * 2, 4, 2, 16, dtype=torch.float32),
    PrefillCase("equal chunks", ((9, 30),) * 2, 4, 2, 16, dtype=torch.float32),
    PrefillCase("unequal", ((20, 35), (70, 70), (1, 17)), 2, 2, 16, dtype=torch.float32),
]


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each contender takes as many milliseconds as it makes calls of torch or of ours."""
    monkeypatch.setattr(prefill.device_clock, "replay_s", lambda calls: len(calls[0]()) * 1e-3)


def test_operations_are_those_of_the_tokens_that_are_seen() -> None:
    assert PrefillCase("", ((3, 3),), 2, 1, 8).flops == 4 * 8 * 2 * (1 + 2 + 3)
    assert PrefillCase("", ((2, 5), (1, 1)), 2, 1, 8).flops == 4 * 8 * 2 * (4 + 5 + 1)


def test_a_drawn_batch_has_the_lengths_and_no_block_twice(device: torch.device) -> None:
    batch = draw_prefill(SMALL[2], torch.Generator(device).manual_seed(0))
    used = batch.block_tables[batch.block_tables >= 0]
    assert sorted(used.tolist()) == list(range(3 + 5 + 2))
    assert (batch.context_lens.tolist(), batch.cu_seqlens.tolist()) == ([35, 70, 17], [0, 20, 90, 91])
    assert not torch.equal(batch.replicas[0].key_cache, batch.replicas[1].key_cache)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch's flash kernel takes no float32 there")
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_all_contenders_are_right_and_a_row_says_how_they_compare(
    device: torch.device, no_clock: None, case: PrefillCase
) -> None:
    row = prefill.measure_row(draw_prefill(case, torch.Generator(device).manual_seed(0)))
    calls = 1 if case.equal else len(case.rows)
    assert row["results"][prefill.OURS]["of_dense"] == calls
    assert row["of_gathered"] == calls
    assert row["results"][prefill.DENSE]["tflop_s"] == pytest.approx(case.flops / calls / 1e9, rel=1e-3)
    assert row["goal"]["met"]
    assert prefill.line(row).startswith(case.name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch's flash kernel takes no float32 there")
def test_a_contender_that_is_wrong_is_not_timed(
    device: torch.device, no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference.attention
    monkeypatch.setattr(prefill.reference, "attention", lambda *args: right(*args[:3], args[3] * 1.1))
    with pytest.raises(ValueError, match="unequal: relative error"):
        prefill.measure_row(draw_prefill(SMALL[2], torch.Generator(device).manual_seed(0)))


def test_the_kept_rows_are_the_cases_and_their_figures_fit_together() -> None:
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    if "prefill" not in kept:
        pytest.skip("the record was made before prefill was measured")
    cases = {case.name: case for case in PREFILL_CASES}
    assert [row["name"] for row in kept["prefill"]] == list(cases)
    for row in kept["prefill"]:
        case, ours, dense = cases[row["name"]], row["results"][prefill.OURS], row["results"][prefill.DENSE]
        assert (row["flops"], row["held_out"]) == (case.flops, case.held_out)
        for found in row["results"].values():
            assert found["tflop_s"] == pytest.approx(case.flops / found["median_us"] / 1e6, rel=2e-3)
            assert found["of_dense"] == pytest.approx(dense["median_us"] / found["median_us"], rel=2e-3)
            assert found["error"] <= kernels.ERRORS[case.dtype]
        assert row["goal"]["met"] == (ours["of_dense"] >= prefill.DENSE_GOAL and row["of_gathered"] >= 1)
