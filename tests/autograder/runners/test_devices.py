"""A submission is graded where its lab has use for it and this machine can."""

from __future__ import annotations

from typing import Any

import pytest

from autograder.nvml import Gpu
from autograder.runners import devices


class FakeLab:
    id = "a_lab"

    def __init__(self, *found: str) -> None:
        self.devices = found


CPU_ONLY, BOTH = FakeLab("cpu"), FakeLab("cpu", "cuda")


@pytest.fixture(params=[("cpu",), ("cpu", "cuda")], ids=["without a GPU", "with a GPU"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setattr(devices, "here", lambda: request.param)
    return tuple(request.param)


def choose(lab: Any, wanted: str) -> str:
    return devices.choose(lab, wanted)


def test_auto_takes_a_gpu_only_if_there_is_one_and_the_lab_has_use_for_it(machine: tuple[str, ...]) -> None:
    assert choose(BOTH, "auto") == machine[-1]
    assert choose(CPU_ONLY, "auto") == "cpu"


def test_a_cpu_is_always_there(machine: tuple[str, ...]) -> None:
    assert choose(BOTH, "cpu") == choose(CPU_ONLY, "cpu") == "cpu"


def test_a_gpu_that_is_asked_for_is_used_or_its_lack_is_told(machine: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="a_lab has no group that runs on a GPU"):
        choose(CPU_ONLY, "cuda")
    if "cuda" in machine:
        assert choose(BOTH, "cuda") == "cuda"
    else:
        with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
            choose(BOTH, "cuda")


def test_a_class_is_graded_on_gpus_of_the_first_ones_kind() -> None:
    found = [Gpu("GPU-1", "nvidia0", "X"), Gpu("GPU-2", "nvidia1", "Y"), Gpu("GPU-3", "nvidia2", "X")]
    assert devices.of_one_kind(found) == (found[0], found[2])
    assert devices.of_one_kind([]) == ()


def test_another_device_is_refused_by_name(machine: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="'tpu'; one of auto, cpu, cuda"):
        choose(BOTH, "tpu")


def test_a_machine_without_a_gpu_for_this_process_has_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: ())
    assert devices.here() == ("cpu",)
