"""What `engine bench kernels` measures and keeps: cases that are what they say, contenders that are right, a record
whose figures fit together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from reference_impl.attention import reference
from reference_impl.attention.fp8 import FP8
from reference_impl.attention.work_list import WorkList
from reference_impl.bench import kernel_cases, kernels
from reference_impl.bench.cascade import CASCADE_CASES
from reference_impl.bench.cases import NotHere
from reference_impl.bench.kernel_cases import DECODE_CASES, DecodeCase, draw
from reference_impl.bench.prefill_cases import PREFILL_CASES
from reference_impl.bench.textbook_decode import fits, textbook_decode
from reference_impl.cli import main
from tests.reference_impl.attention.decode_problems import check, drawn

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = Path(kernels.__file__).parent / "results" / "kernels.json"


def test_a_drawn_batch_has_the_lengths_and_no_block_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cases, "REPLICA_BYTES", 100_000)
    case = DecodeCase("small", (5, 33, 16), 4, 2, 32, 16)
    batch = draw(case, torch.Generator().manual_seed(0))
    used = batch.block_tables[batch.block_tables >= 0]
    assert sorted(used.tolist()) == list(range(1 + 3 + 1))
    assert batch.context_lens.tolist() == [5, 33, 16]
    assert case.kv_bytes == 2 * (5 + 33 + 16) * 2 * 32 * 2
    assert len(batch.replicas) == -(-100_000 // case.kv_bytes)
    assert not torch.equal(batch.replicas[0].key_cache, batch.replicas[1].key_cache)


def test_a_batch_in_8_bits_is_half_of_the_bytes_and_brings_its_scales(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cases, "REPLICA_BYTES", 1_000)
    wide = DecodeCase("wide", (5, 33, 16), 4, 2, 32, 16)
    case = replace(wide, narrow=True)
    batch = draw(case, torch.Generator(device).manual_seed(0))
    data = batch.replicas[0]
    assert 2 * case.kv_bytes == wide.kv_bytes
    assert data.key_cache.dtype == data.value_cache.dtype == FP8
    assert data.query.dtype == torch.bfloat16
    shape = (3, case.heads, case.kv_heads, case.head_dim, case.dtype, device)
    work = WorkList(*shape, kv_dtype=case.kv_dtype).refresh(batch.context_lens)
    kernels._ours(batch, work)[0]()
    caches = (data.key_cache, data.value_cache, batch.block_tables, batch.context_lens)
    want = reference.paged_decode(data.query, *caches, batch.scale, **batch.scaled)
    assert float((data.out.double() - want).norm() / want.norm()) <= kernels.ERRORS[case.dtype]
    assert set(draw(wide, torch.Generator(device).manual_seed(0)).scaled) == set()
    for contender in (kernels._textbook, kernels._padded):
        with pytest.raises(NotHere):
            contender(batch)


def test_a_window_counts_only_the_bytes_that_it_shows() -> None:
    assert DecodeCase("w", (100, 5), 1, 1, 8, 16, window=10).kv_bytes == 2 * (10 + 5) * 8 * 2


def test_cases_have_names_of_their_own_and_some_were_held_out() -> None:
    assert len(set(kernels.case_names())) == len(kernels.case_names())
    assert sum(case.held_out for case in DECODE_CASES) >= 5


@pytest.mark.parametrize("group", [1, 3])
def test_the_textbooks_kernel_is_right_where_it_fits(device: torch.device, group: int) -> None:
    problem = drawn([3, 16, 40], heads=2 * group, head_dim=32, device=device)
    contiguous = [tensor.contiguous() for tensor in problem.inputs]
    out = torch.full_like(contiguous[0], float("nan"))
    textbook_decode(*contiguous, problem.scale, out)
    check(problem, out)
    want = reference.paged_decode(*problem.inputs, problem.scale)
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)
    assert not fits(80, 16)
    with pytest.raises(ValueError, match="head_dim 80"):
        textbook_decode(
            contiguous[0].new_zeros(1, 2, 80), *(contiguous[1].new_zeros(1, 16, 1, 80),) * 2, *contiguous[3:], 1.0, out
        )


def test_the_kept_record_has_every_case_and_figures_that_fit_together() -> None:
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    rows = kept["decode"] + kept.get("prefill", []) + kept.get("cascade", []) + kept["store"]
    # The record may be older than what is measured now.
    without = [] if "prefill" in kept else [case.name for case in PREFILL_CASES]
    without += [] if "cascade" in kept else [case.name for case in CASCADE_CASES]
    narrow = [case.name for case in DECODE_CASES if case.narrow]
    without += [] if any(row["name"] in narrow for row in rows) else narrow
    assert [row["name"] for row in rows] == [name for name in kernels.case_names() if name not in without]
    by_name = {case.name: case for case in DECODE_CASES}
    for row in kept["decode"]:
        case, ours = by_name[row["name"]], row["results"][kernels.OURS]
        assert (row["kv_bytes"], row["held_out"]) == (case.kv_bytes, case.held_out)
        assert row["floor_us"] == pytest.approx(case.kv_bytes / kept["ceilings"]["read_gb_s"] / 1e3, rel=2e-3)
        assert row["goal"]["met"] == (ours["share"] >= row["goal"]["share"])
        for found in row["results"].values():
            assert "skipped" in found or found["share"] == pytest.approx(row["floor_us"] / found["median_us"], rel=2e-3)
            assert found.get("error", 0) <= kernels.ERRORS[case.dtype]
    for row in kept["store"]:
        assert row["share"] <= 1, "faster than the ceiling: it is none"
    assert kernels.line(kept["decode"][0]).startswith("1 x 16k")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the kernels would be timed")
def test_without_a_gpu_the_command_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels"]) == 1
    assert capsys.readouterr().err.strip() == (
        "engine bench kernels: the kernels are timed on an NVIDIA GPU, and torch finds none here"
    )
    assert main(["bench", "kernels", "--only", "no such case"]) == 1
    assert "no case has 'no such case' in its name" in capsys.readouterr().err
