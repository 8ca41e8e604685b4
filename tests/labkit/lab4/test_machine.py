"""What lab 4 finds out about the machine: who runs the kernels, what they load, how fast they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from labkit import counting, speed
from labkit.checks.paged import batch

LABS = Path(__file__).parents[3] / "labs"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels here")
SHAPE = {"heads": 6, "kv_heads": 2, "head_dim": 32, "block_size": 4}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter with labkit."""
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=LABS, env=kept | environment, capture_output=True, text=True, check=False
    )


@no_gpu
def test_without_a_gpu_the_interpreter_is_chosen_before_triton_is_imported() -> None:
    pytest.importorskip("triton", reason="Triton is not installed here")
    done = python("import labkit; print(labkit.triton_here()); import triton; print(triton.knobs.runtime.interpret)")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "Triton's interpreter runs your kernels, on the CPU. It is right, and slow.",
        "cpu",
        "True",
    ]


@no_gpu
def test_triton_imported_too_early_is_said_with_what_to_do() -> None:
    pytest.importorskip("triton", reason="Triton is not installed here")
    done = python("import triton, labkit; labkit.triton_here()")
    assert done.stderr.splitlines()[-1] == (
        "RuntimeError: triton was imported before this cell: restart the kernel, then run the cells in order"
    )


@pytest.mark.parametrize(("missing", "named"), [("torch", "torch"), ("triton", "Triton")])
def test_what_is_not_installed_is_named_with_the_command(missing: str, named: str) -> None:
    done = python(f"import sys; sys.modules[{missing!r}] = None\nimport labkit; labkit.triton_here()")
    assert f"ImportError: {named} is not here: install it" in done.stderr.splitlines()[-1]
    assert "python -m pip install torch triton" in done.stderr


@no_gpu
@pytest.mark.parametrize(("version", "lanes"), [("one_head", 6), ("grouped", 2)])
def test_the_count_of_a_run_is_the_work_of_the_version(
    version: str, lanes: int, model_solution: SimpleNamespace
) -> None:
    lengths = [9, 0, 4, 1]
    found = counting.count(getattr(model_solution, version), batch(lengths, **SHAPE))
    assert found == counting.Work(lanes * 3, lanes * 14 * 2 * 32 * 4, 9)


@no_gpu
def test_a_load_without_its_mask_is_counted(
    cells: list[tuple[str, str]], solved: Callable[[dict[str, str]], SimpleNamespace]
) -> None:
    source = dict(cells)["grouped"].replace("from_value, mask=there[:, None], other=0.0", "from_value")
    wasteful = solved({"grouped": source}).grouped
    assert counting.count(wasteful, batch([3, 2], **SHAPE)).bytes > 2 * 5 * 2 * 32 * 4


@no_gpu
def test_the_interpreter_is_as_before_when_the_count_is_done(model_solution: SimpleNamespace) -> None:
    from triton.runtime.interpreter import interpreter_builder as builder

    def fails(*given: object) -> None:
        raise IndexError

    counting.count(model_solution.grouped, batch([3], **SHAPE))
    with pytest.raises(IndexError):
        counting.count(fails, batch([3], **SHAPE))
    assert not {"set_grid_idx", "create_masked_load"} & set(vars(builder))


@no_gpu
def test_a_wrong_formula_stands_beside_what_was_counted(model_solution: SimpleNamespace) -> None:
    table = counting.compare_counts(lambda *given: (1, 2, 3), model_solution.grouped, lengths=[5], **SHAPE)
    assert table is not None
    assert [row[-1] for row in table.rows] == ["NO", "NO", "NO"]
    assert [row[3] for row in table.rows] == ["2", f"{2 * 5 * 2 * 32 * 4:,}", "5"]


@no_gpu
def test_without_a_gpu_speed_is_one_sentence_and_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    def never(*given: object) -> None:
        raise AssertionError("it was run")

    speed.show(never, lengths=[2048] * 64)
    assert capsys.readouterr().out.startswith("Speed is measured on a GPU")


def test_the_share_of_a_copy_is_bytes_over_time() -> None:
    assert speed.Speed(call_s=2e-4, kv_bytes=300_000_000, copy_bytes_per_s=3e12).share == pytest.approx(0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_a_kernel_moves_less_than_a_copy_and_more_than_nothing(model_solution: SimpleNamespace) -> None:
    found = speed.measure(model_solution.paged_attention, [2048] * 64)
    assert found.kv_bytes == 64 * 2048 * 2 * 8 * 128 * 2
    assert 0.3 < found.share < 1.15
