"""Which GPUs a process may use, and what slows one: told by a library that stands in for NVIDIA's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autograder import nvml
from autograder.nvml import Gpu, gpus, only, slowed

FIRST, SECOND, THIRD = (Gpu(f"GPU-{letters}", f"nvidia{minor}", "a GPU") for letters, minor in
                        (("aab1", 0), ("aac2", 3), ("bb03", 1)))  # fmt: skip


class Library:
    """Three GPUs, a driver that knows the reasons under `names`, and `bits` as its answer."""

    def __init__(self, bits: int = 0, *names: str) -> None:
        self.bits = bits
        for name in names:
            setattr(self, name, self._reasons)

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802 - NVML's name
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, place: Any, handle: Any) -> int:  # noqa: N802
        handle._obj.value = place.value + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:  # noqa: N802
        known = [gpu.uuid.encode() for gpu in (FIRST, SECOND, THIRD)]
        if uuid.value not in known:
            return 6
        handle._obj.value = known.index(uuid.value) + 1
        return 0

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, size: Any) -> int:  # noqa: N802
        text.value = self._of(handle).uuid.encode()
        return 0

    def nvmlDeviceGetName(self, handle: Any, text: Any, size: Any) -> int:  # noqa: N802
        text.value = self._of(handle).name.encode()
        return 0

    def nvmlDeviceGetMinorNumber(self, handle: Any, minor: Any) -> int:  # noqa: N802
        minor._obj.value = int(self._of(handle).node.removeprefix("nvidia"))
        return 0

    def _reasons(self, handle: Any, reasons: Any) -> int:
        reasons._obj.value = self.bits
        return 0

    @staticmethod
    def _of(handle: Any) -> Gpu:
        return (FIRST, SECOND, THIRD)[handle.value - 1]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(nvml, "_library", lambda: found)
    monkeypatch.setattr(nvml, "_all", nvml._all.__wrapped__)
    return found


@pytest.mark.parametrize(
    ("visible", "left"),
    [
        (None, (FIRST, SECOND, THIRD)),
        ("", ()),
        ("1", (SECOND,)),
        ("2,0", (THIRD, FIRST)),
        ("GPU-aac2", (SECOND,)),
        ("GPU-b, 0", (THIRD, FIRST)),
        ("GPU-aa", ()),
        ("0,7,1", (FIRST,)),
        ("-1", ()),
        ("MIG-17", ()),
    ],
)
def test_a_process_has_what_the_variable_leaves_in_its_order(
    library: Library, visible: str | None, left: tuple[Gpu, ...]
) -> None:
    assert gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == left


def test_a_process_that_is_started_has_the_first_by_uuid(library: Library) -> None:
    assert only(gpus({"CUDA_VISIBLE_DEVICES": "1,0"})) == {"CUDA_VISIBLE_DEVICES": "GPU-aac2"}
    assert only(()) == {}


def test_without_the_library_the_first_node_is_all_that_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nvml, "_library", lambda: None)
    monkeypatch.setattr(nvml, "_all", nvml._all.__wrapped__)
    monkeypatch.setattr(nvml, "DEV", tmp_path)
    assert gpus({}) == ()
    for name in ("nvidia10", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus({}) == (Gpu("", "nvidia3"),)
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()
    assert only(gpus({})) == {}
    assert slowed("GPU-aab1") == ()


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
)
def test_heat_and_brakes_slow_a_gpu_and_idleness_and_its_power_limit_do_not(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    idle_and_power_limit = 0x1 | 0x4
    monkeypatch.setattr(nvml, "_library", lambda: Library(idle_and_power_limit, call))
    assert slowed("GPU-aab1") == ()
    monkeypatch.setattr(nvml, "_library", lambda: Library(0x1 | 0x20 | 0x80, call))
    assert slowed("GPU-aab1") == ("the driver's limit of temperature", "power brake")
    assert slowed("GPU-unknown") == ()
    monkeypatch.setattr(nvml, "_library", lambda: Library(0x20))
    assert slowed("GPU-aab1") == (), "a driver that cannot tell"


@pytest.mark.gpu
def test_the_real_library_knows_the_gpu_that_torch_has() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and torch finds none here")
    first = gpus()[0]
    assert str(torch.cuda.get_device_properties(0).uuid) in first.uuid
    assert Path("/dev", first.node).exists()
    assert nvml.reasons_of(first.uuid) is not None, "the driver does not tell what holds its clocks"
