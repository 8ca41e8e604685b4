"""How many blocks fit, said in bytes, blocks, tokens and requests; and every refusal names its numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine import memory_profile
from reference_impl.engine.memory_profile import MemoryProfile, free_bytes, profile_memory, shown_bytes
from reference_impl.model.loader import LoadedModel

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[3]
MIB = 2**20
CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 100 MiB available, no control groups and nothing to watch a step with."""
    (tmp_path / "meminfo").write_text("MemTotal:  999999 kB\nMemAvailable:   102400 kB\n")
    monkeypatch.setattr(memory_profile, "PROC", tmp_path)
    monkeypatch.setattr(memory_profile, "CGROUP", tmp_path / "cgroup")
    return tmp_path


def test_a_budget_is_cut_into_whole_blocks(tiny: LoadedModel, system: Path) -> None:
    profile = profile_memory(tiny, block_size=16, budget_bytes=MIB + 5_000)
    one = 16 * tiny.config.kv_bytes_per_token(4)
    assert profile.block_bytes == one
    assert profile.num_blocks == MIB // one
    assert profile.kv_tokens == 16 * profile.num_blocks
    assert profile.bytes_per_token == tiny.config.kv_bytes_per_token(4)
    assert profile.step_bytes is None, "a budget is taken as it is: nothing is computed for it"


def test_without_a_budget_it_is_the_share_of_what_is_free_without_the_largest_step(
    tiny: LoadedModel, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(memory_profile, "step_bytes", lambda *given: asked.append(given) or 20 * MIB)
    attention = TorchAttention()
    profile = profile_memory(
        tiny, block_size=16, share=0.5, max_tokens_per_step=512, max_running=90, attention=attention
    )
    assert asked == [(tiny.transformer, 512, 90, attention, 16, None)]
    assert profile.kv_bytes <= 40 * MIB < profile.kv_bytes + profile.block_bytes
    assert profile.lines()[1].endswith("largest step 20 MiB, free before 100 MiB, of which 50% may be used")


def test_without_a_budget_there_are_no_more_blocks_than_all_who_run_could_fill(tiny: LoadedModel, system: Path) -> None:
    profile = profile_memory(tiny, block_size=16, max_context_tokens=100, max_running=3)
    assert profile.num_blocks == 3 * 7
    asked_for = profile_memory(tiny, block_size=16, max_context_tokens=100, max_running=3, budget_bytes=MIB)
    assert asked_for.kv_bytes == MIB


def test_it_says_bytes_blocks_tokens_and_requests() -> None:
    profile = MemoryProfile(1_456, 16, 2**19, 513 * MIB, 8_192)
    assert profile.lines() == [
        "KV memory 728 MiB: 1,456 blocks of 16 tokens = 23,296 tokens, "
        "at most 2 requests of the longest length (8,192 tokens)",
        "weights 513 MiB",
    ]
    assert "at most 1 request of the longest" in MemoryProfile(600, 16, 1, 1, 8_192).lines()[0]
    assert "less than one request of the longest" in MemoryProfile(500, 16, 1, 1, 8_192).lines()[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget_bytes": 5_000}, r"KV memory of 4\.9 KiB holds no block of 16 tokens, which takes 8 KiB: give more"),
        ({"budget_bytes": 200 * MIB}, "KV memory of 200 MiB is more than the 100 MiB that are free: ask for less"),
        ({"share": 0}, "memory share must be above 0 and at most 1, got 0"),
        ({"share": 1.5}, r"memory share must be above 0 and at most 1, got 1\.5"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"share": 1e-9}, "of 100 MiB free, less 0 bytes for the largest step, holds no block"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    tiny: LoadedModel, system: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        profile_memory(tiny, **{"block_size": 16} | options)


def test_a_system_that_does_not_say_what_is_free_needs_a_budget(tiny: LoadedModel, system: Path) -> None:
    (system / "meminfo").unlink()
    with pytest.raises(ValueError, match="does not say how much memory is free: give KV memory in bytes"):
        profile_memory(tiny, block_size=16)
    assert profile_memory(tiny, block_size=16, budget_bytes=MIB).num_blocks == 128


@pytest.mark.parametrize(
    ("folder", "limit", "used"),
    [(".", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_a_control_groups_limit_counts_if_it_leaves_less(system: Path, folder: str, limit: str, used: str) -> None:
    group = system / "cgroup" / folder
    group.mkdir(parents=True)
    for name, text in (
        (limit, f"{80 * MIB}"),
        (used, f"{50 * MIB}"),
        ("memory.stat", f"anon 7\ninactive_file {10 * MIB}"),
    ):
        (group / name).write_text(f"{text}\n")
    assert free_bytes(CPU) == 40 * MIB, "files that were read are given up when memory is wanted"
    (group / limit).write_text("max\n")
    assert free_bytes(CPU) == 100 * MIB


_TWO_STEPS = """
from reference_impl.attention.torch_attention import TorchAttention
from reference_impl.engine.memory_profile import step_bytes
from reference_impl.model.loader import load_model
model = load_model("tiny").transformer
step_bytes(model, 16, 4, TorchAttention(), 16)
small, large = (step_bytes(model, tokens, 4, TorchAttention(), 16) for tokens in (16, 2_048))
print(small, large)
"""


def test_a_larger_step_needs_more(tiny: LoadedModel) -> None:
    """In a process of its own: one that gave memory back to its own heap before takes it from there, unseen."""
    run = [sys.executable, "-c", _TWO_STEPS]
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'labs'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(run, env=os.environ | path, capture_output=True, text=True, check=True, timeout=120)
    small, large = done.stdout.split()
    if "None" in (small, large):
        pytest.skip("this system does not show the peak of a process")
    hidden = 2_048 * tiny.config.hidden_size * 4
    assert int(large) >= int(small) + 2 * hidden


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1536, "1.5 KiB"),
        (2**20, "1 MiB"),
        (2**40, "1,024 GiB"),
        (20 * 2**30, "20 GiB"),
    ],
)
def test_bytes_are_said_in_a_few_digits(amount: int, text: str) -> None:
    assert shown_bytes(amount) == text
