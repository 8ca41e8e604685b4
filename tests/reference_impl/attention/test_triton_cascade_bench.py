"""The cascade rows of `engine bench kernels`: cases that are what they say, contenders that are right, figures that fit
together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from reference_impl.attention import reference
from reference_impl.bench import cascade, kernels
from reference_impl.bench.cascade import CASCADE_CASES, CascadeBatch, CascadeCase, draw_cascade

pytestmark = pytest.mark.usefixtures("one_thread")

KEPT = Path(kernels.__file__).parent / "results" / "kernels.json"
SMALL = CascadeCase("small", 32, (5, 16, 33), 4, 2, 32, dtype=torch.float32)


@pytest.fixture
def batch(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> CascadeBatch:
    """Of little memory, and timed by a clock of which every call takes 20 microseconds."""
    monkeypatch.setattr(cascade, "REPLICA_BYTES", 100_000)
    monkeypatch.setattr(cascade.device_clock, "replay_s", lambda calls: 20e-6)
    return draw_cascade(SMALL, torch.Generator(device).manual_seed(0))


def test_all_sequences_name_the_blocks_of_the_prefix_and_no_other_block_twice(batch: CascadeBatch) -> None:
    assert batch.context_lens.tolist() == [37, 48, 65]
    assert all(torch.equal(row[:2], batch.prefix_table) for row in batch.block_tables)
    own = batch.block_tables[:, 2:]
    assert sorted([*batch.prefix_table.tolist(), *own[own >= 0].tolist()]) == list(range(2 + 1 + 1 + 3))
    assert len(batch.replicas) == -(-100_000 // SMALL.kv_bytes[cascade.CASCADE])
    assert not torch.equal(batch.replicas[0].key_cache, batch.replicas[1].key_cache)


def test_the_prefix_counts_once_or_once_a_sequence() -> None:
    token = 2 * 2 * 32 * 4
    assert SMALL.kv_bytes == {cascade.CASCADE: (32 + 54) * token, cascade.PLAIN: (3 * 32 + 54) * token}
    for case in CASCADE_CASES:
        assert case.prefix_tokens % case.block_size == 0, "blocks that sequences share are full"


def test_both_contenders_are_right_and_each_is_held_against_its_own_bytes(batch: CascadeBatch) -> None:
    row = cascade.measure_row(batch, read_bytes_per_s=1e10)
    assert row["times_plain"] == 1
    for name, found in row["results"].items():
        assert found["floor_us"] == pytest.approx(SMALL.kv_bytes[name] / 1e4, rel=1e-3)
        assert found["share"] == pytest.approx(found["floor_us"] / 20, rel=1e-3)
    assert cascade.line(row).startswith("small")


def test_a_contender_that_is_wrong_is_not_timed(batch: CascadeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.paged_decode
    monkeypatch.setattr(cascade.reference, "paged_decode", lambda *args: right(*args[:5], args[5] * 1.1))
    with pytest.raises(ValueError, match="small: relative error of cascade"):
        cascade.measure_row(batch, read_bytes_per_s=1e10)


def test_the_kept_rows_are_the_cases_and_their_figures_fit_together() -> None:
    kept: dict[str, Any] = json.loads(KEPT.read_text(encoding="utf-8"))
    if "cascade" not in kept:
        pytest.skip("the record was made before cascade decode was measured")
    cases = {case.name: case for case in CASCADE_CASES}
    assert [row["name"] for row in kept["cascade"]] == list(cases)
    for row in kept["cascade"]:
        case, ours, plain = cases[row["name"]], row["results"][cascade.CASCADE], row["results"][cascade.PLAIN]
        assert row["held_out"] == case.held_out
        assert row["times_plain"] == pytest.approx(plain["median_us"] / ours["median_us"], rel=2e-3)
        for name, found in row["results"].items():
            assert found["kv_bytes"] == case.kv_bytes[name]
            assert found["floor_us"] == pytest.approx(found["kv_bytes"] / kept["ceilings"]["read_gb_s"] / 1e3, rel=2e-3)
            assert found["share"] == pytest.approx(found["floor_us"] / found["median_us"], rel=2e-3)
            assert found["error"] <= kernels.ERRORS[case.dtype]
