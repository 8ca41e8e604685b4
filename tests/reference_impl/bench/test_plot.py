"""`engine bench plot`: every kind of record has a picture, in which its numbers stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from reference_impl.bench import kernel_pictures, pictures, plot
from reference_impl.cli import main

MACHINE = {"device": "NVIDIA H100 80GB HBM3"}
HEAD = {"date": "2026-11-25", "commit": "abc", "machine": MACHINE}
QUANTILES = {"p50": 0.02, "p90": 0.04, "p99": 0.2, "mean": 0.03, "max": 0.3}


def rate(rate_per_s: float, **changes: Any) -> dict[str, Any]:
    latencies = {"ttft_s": QUANTILES, "tpot_s": QUANTILES}
    return {"rate_per_s": rate_per_s, "output_tokens_per_s": 100.0, "good_share": 0.5} | latencies | changes


def way(allocator: str, prefix_cache: str, prompts: str, tokens_per_s: float) -> dict[str, Any]:
    said = {"allocator": allocator, "prefix_cache": prefix_cache, "prompts": prompts, "held_share": 0.5}
    return said | {"tokens_per_s": tokens_per_s, "gain": 1.0, "mean_running": 4.25, "peak_running": 9}


KERNELS = HEAD | {
    "suite": "kernels",
    "machine": {"gpu": "NVIDIA H100 80GB HBM3"},
    "ceilings": {"read_gb_s": 3136, "copy_gb_s": 2992},
    "decode": [
        {
            "name": "1 x 16k",
            "held_out": False,
            "goal": {"share": 0.75},
            "results": {"ours": {"share": 0.6}, "textbook": {"share": 0.1}},
        },
        {
            "name": "64 x 8k, window 1024",
            "held_out": True,
            "goal": {"share": 0.9},
            "results": {"ours": {"share": 0.86}, "textbook": {"skipped": "no window"}},
        },
    ],
    "store": [{"name": "store_kv, 8k tokens", "share": 0.86, "goal": {"share": 0.8}}],
}
PREFILL = {
    "name": "8 x 2k",
    "held_out": False,
    "goal": {"of_dense": 0.7},
    "results": {"ours": {"of_dense": 1.2, "tflop_s": 410.0}, "torch SDPA, dense": {"of_dense": 1.0, "tflop_s": 340.0}},
}
CASCADE = {
    "name": "cascade, 24 x 2000",
    "held_out": True,
    "times_plain": 2.31,
}
RUN: dict[str, Any] = {
    "model": "qwen3-0.6b",
    "dtype": "bfloat16",
    "lengths": "script",
    "is_real": True,
    "requests": 256,
    "output_tokens": 133_966,
    "tokens_per_s": 19_230.0,
    "floor_tokens_per_s": 27_505.0,
    "share": 0.7,
    "step": {"requests": 256, "wall_ms": 9.9, "kinds": {f"_kind{number}": 1.0 + number for number in range(9)}},
    "goal": {"tokens_per_s": 18_500.0, "met": True},
}
OFFLINE = HEAD | {"suite": "offline", "runs": [RUN]}
SERVE = HEAD | {
    "suite": "serve",
    "model": {"name": "qwen3-0.6b", "dtype": "bfloat16"},
    "workload": {"name": "azure_conv", "is_real": False, "requests": 400},
    "bounds": {"ttft_s": 0.45, "tpot_s": 0.04},
    "rates": [rate(4.0), rate(8.0), rate(16.0, tpot_s=None)],
}
BUDGET = HEAD | {
    "suite": "budget",
    "model": {"name": "llama-3.2-1b", "dtype": "bfloat16"},
    "memory": {"kv_bytes": 2**29, "kv_tokens": 16_384, "longest_tokens": 2_048},
    "workload": {"name": "sharegpt_8k", "is_real": True, "requests": 240},
    "rows": [way("contiguous", "none", "own", 1_950.0), way("paged", "hash", "shared", 7_900.0)],
}
CPU = HEAD | {
    "suite": "cpu",
    "machine": {"cpu": "AMD EPYC"},
    "offline": {"ours_tokens_per_s": 53.5, "theirs_tokens_per_s": 23.1, "model": "smollm2"},
    "concurrency": {
        "kv_tokens": 16_384,
        "rows": [
            {"allocator": "contiguous", "mean_running": 8.0, "peak_running": 8},
            {"allocator": "paged", "mean_running": 35.6, "peak_running": 105},
        ],
    },
}
MEMORY = HEAD | {
    "suite": "memory",
    "benchmarks": [{"name": "pool", "per_operation_s": 1e-7}, {"name": "simulator", "per_operation_s": 1e-3}],
}
RECORDS: dict[str, dict[str, Any]] = {
    "kernels": KERNELS,
    "offline": OFFLINE,
    "serve": SERVE,
    "budget": BUDGET,
    "cpu": CPU,
    "memory": MEMORY,
}


def words(figure: Any) -> list[str]:
    """Every text of a figure, titles, ticks and legends included."""
    from matplotlib.text import Text

    return [found.get_text() for found in figure.findobj(Text) if found.get_text()]


def write(folder: Path, name: str, record: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def test_there_is_a_picture_for_every_suite_of_the_records() -> None:
    assert RECORDS.keys() == plot.PICTURES.keys()


@pytest.mark.parametrize("suite", RECORDS)
def test_a_small_record_becomes_two_files(suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, f"{suite}-h100", RECORDS[suite])
    out = tmp_path / "made" / "here"
    assert main(["bench", "plot", "--json", str(tmp_path), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [f"{suite}-h100.png", f"{suite}-h100.svg"]
    assert (out / f"{suite}-h100.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / f"{suite}-h100.svg").read_text(encoding="utf-8")
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("suite", RECORDS)
def test_no_picture_is_wider_than_a_phone_or_without_a_name_for_its_axis(suite: str) -> None:
    figure = plot.PICTURES[suite](RECORDS[suite])
    assert figure.get_figwidth() * 72 == 360
    assert figure.get_suptitle()
    assert figure.axes[-1].get_xlabel()
    assert "2026-11-25" in "".join(words(figure)), "and when"


def test_kernels_show_each_contender_of_each_case_and_the_goal() -> None:
    figure = kernel_pictures.kernels(KERNELS)
    decode, store = figure.axes
    assert [handle.get_label() for handle in decode.get_legend_handles_labels()[0]] == ["ours", "textbook"]
    ours = next(line for line in decode.lines if line.get_label() == "ours")
    assert ours.get_xdata().tolist() == [0.6, 0.86]
    textbook = next(line for line in decode.lines if line.get_label() == "textbook")
    assert list(textbook.get_xdata()) == [0.1], "what was skipped has no mark"
    assert {"1 x 16k", "64 x 8k, window 1024*"} <= set(words(figure))
    assert "3,136 GB/s" in decode.get_xlabel()
    assert store.get_legend() is None, "one contender needs no legend"


def test_prefill_is_drawn_where_it_was_measured() -> None:
    figure = kernel_pictures.kernels(KERNELS | {"prefill": [PREFILL]})
    assert len(figure.axes) == 3
    prefill = figure.axes[1]
    assert "dense SDPA" in prefill.get_xlabel()
    assert prefill.get_xlim()[1] > 1.2, "faster than dense is within the picture"
    assert "8 x 2k: 410 TFLOP/s" in words(figure)


def test_decode_behind_a_common_prefix_is_drawn_where_it_was_measured() -> None:
    figure = kernel_pictures.kernels(KERNELS | {"cascade": [CASCADE]})
    cascade = figure.axes[1]
    assert "plain decode's speed" in cascade.get_xlabel()
    assert "24 x 2000*" in words(figure)
    assert next(list(line.get_xdata()) for line in cascade.lines if line.get_marker() == "o") == [2.31]
    assert cascade.get_xlim()[1] > 2.31


def test_every_contender_of_a_row_has_a_mark_of_its_own() -> None:
    names = ["ours", "textbook", "torch SDPA, padded", "FlashInfer", "FlashInfer, persistent", "vLLM, Triton"]
    row = KERNELS["decode"][0] | {"results": {name: {"share": 0.5} for name in names}}
    decode = kernel_pictures.kernels(KERNELS | {"decode": [row]}).axes[0]
    handles = decode.get_legend_handles_labels()[0]
    assert [handle.get_label() for handle in handles] == names
    assert len({(handle.get_color(), handle.get_marker()) for handle in handles}) == len(names)


def offline(**changes: Any) -> dict[str, Any]:
    return OFFLINE | {"runs": [RUN | changes]}


def test_peers_stand_beside_the_published_job_on_their_own_kind_of_gpu_only() -> None:
    assert "vLLM 0.20.2" in words(pictures.offline(OFFLINE))
    for other in (OFFLINE | {"machine": {"device": "NVIDIA H200"}}, offline(goal=None, lengths="azure_conv")):
        assert "vLLM 0.20.2" not in words(pictures.offline(other))


def test_each_of_several_jobs_is_held_against_its_own_floor() -> None:
    more = RUN | {"model": "llama-3.2-1b", "lengths": "azure_conv", "share": 0.42, "is_real": False, "goal": None}
    figure = pictures.offline(OFFLINE | {"runs": [RUN, more]})
    assert len(figure.axes) == 3
    found = words(figure)
    assert {"qwen3-0.6b, the published script", "llama-3.2-1b, azure_conv (sampled)"} <= set(found)
    assert "42%, 19,230 tokens/s" in found
    on_a_cpu = {"share": None, "floor_tokens_per_s": None, "step": None}
    assert len(pictures.offline(OFFLINE | {"runs": [RUN | on_a_cpu, more | on_a_cpu]}).axes) == 1


def test_the_smallest_kinds_of_kernel_are_one_bar() -> None:
    found = words(pictures.offline(OFFLINE))
    assert "kind8" in found
    assert "kind2" not in found
    assert "6.00" in found, "1 + 2 + 3 ms of all others"
    assert len(pictures.offline(offline(step=None, floor_tokens_per_s=None)).axes) == 1


def test_serve_shows_latency_in_its_units_with_the_bounds() -> None:
    first, pace, made, good = pictures.serve(SERVE).axes
    assert (first.get_ylabel(), pace.get_ylabel()) == ("TTFT, s", "TPOT, ms")
    medians = {line.get_label(): list(line.get_ydata()) for line in pace.lines}
    assert medians["p50"] == [20.0, 20.0], "in ms, and the rate that made no second token is left out"
    assert medians["p99"] == [200.0, 200.0]
    assert medians["bound"] == [40.0, 40.0]
    assert list(first.lines[0].get_xdata()) == [4.0, 8.0, 16.0]
    assert made.get_ylim()[0] == good.get_ylim()[0] == 0.0
    assert "Good: TTFT up to 0.45 s, TPOT up to 40 ms." in " ".join(words(pictures.serve(SERVE)))
    unbound = pictures.serve(SERVE | {"bounds": {"ttft_s": None, "tpot_s": None}})
    assert "Good: answered." in " ".join(words(unbound))


def test_budget_names_each_way_in_each_of_its_three_parts() -> None:
    found = words(pictures.budget(BUDGET))
    assert found.count("paged + prefix cache, shared prompts") == 3
    assert "7,900 (1.00x)" in found
    assert "4.2, at most 9" in found
    assert "512 MiB for 16,384 tokens" in " ".join(found)


def test_the_same_record_gives_the_same_picture(tmp_path: Path) -> None:
    first, second = (plot.draw(SERVE, tmp_path / name, "serve.json")[0] for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x", '{"suite": "speed"}', "no picture of suite 'speed'; there are kernels, offline, serve, budget"),
        ("x", "[1]", "no picture of suite None"),
        ("x", "{", "not JSON"),
        ("x", '{"suite": "serve"}', "x.json: no record of serve, KeyError('rates') is missing or wrong"),
    ],
)
def test_what_cannot_be_drawn_is_named_in_one_line(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    assert main(["bench", "plot", "--json", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert f"{name}.json" in shown
    assert shown.count("\n") == 1


def test_a_wrong_record_is_found_before_any_is_drawn(tmp_path: Path) -> None:
    write(tmp_path, "a", MEMORY)
    write(tmp_path, "b", {"suite": "speed"})
    with pytest.raises(ValueError, match=r"b\.json"):
        plot.draw_all(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no record there; run engine bench"):
        plot.draw_all(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="there is no such folder"):
        plot.draw_all(tmp_path / "nowhere", tmp_path)
    write(tmp_path, "a", MEMORY)
    with pytest.raises(ValueError, match="that is no folder"):
        plot.draw_all(tmp_path, tmp_path / "a.json")


def test_the_kept_records_can_be_drawn(tmp_path: Path) -> None:
    from reference_impl.bench.serving_command import RESULTS

    assert len(plot.draw_all(RESULTS, tmp_path)) == 2 * len(list(RESULTS.glob("*.json")))
