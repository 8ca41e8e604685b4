"""What torch does of a call's work is seen, and a call can be made without its kernels: interpreted and on a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.triton_here import import_triton

if not (DEVICE := import_triton()):
    pytest.skip("Triton is not installed here", allow_module_level=True)

import triton
import triton.language as tl

from labkit import watch


@triton.jit
def double(source, target, size: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, size)
    tl.store(target + at, tl.load(source + at) * 2)


no_gpu = pytest.mark.skipif(DEVICE != "cpu", reason="NumPy takes no tensor of a GPU")
gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")


def seen(run: Callable[[], Any]) -> str:
    watcher = watch.Watch(DEVICE)
    # On a GPU a first call may compile.
    run()
    with watcher.looking():
        run()
    return watcher.computed


X = torch.arange(16.0, device=DEVICE)
N = torch.arange(16, device=DEVICE)


@pytest.mark.parametrize(
    "run",
    [
        lambda: double[(1,)](X, torch.empty_like(X), size=16),
        lambda: torch.empty(3, device=DEVICE).copy_(X[:3]),
        lambda: X.half().view(4, 4).transpose(0, 1).contiguous(),
        lambda: torch.zeros(4, device=DEVICE).fill_(2.0),
        lambda: torch.cumsum(N, 0) + N[N > 3].sum(),
        lambda: N.tolist(),
    ],
    ids=["a kernel", "copy", "cast and views", "fill", "integers", "reading integers"],
)
def test_allocating_copying_casting_and_integers_are_no_computing(run: Callable[[], Any]) -> None:
    assert seen(run) == ""


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda: X * 2, "aten::mul"),
        (lambda: X.view(4, 4) @ X.view(4, 4), "aten::mm"),
        (lambda: torch.zeros_like(X).index_put_((N,), X), "aten::index_put_"),
        (lambda: X.sum().item(), "aten::sum"),
        (lambda: X.tolist(), "Tensor.tolist"),
        pytest.param(lambda: X.numpy(), "Tensor.numpy", marks=no_gpu),
        pytest.param(lambda: X.cpu(), "aten::_to_copy", marks=gpu),
        pytest.param(lambda: torch.empty(16).copy_(X), "aten::copy_", marks=gpu),
    ],
)
def test_computing_on_floats_and_reading_them_is_told_by_name(run: Callable[[], Any], name: str) -> None:
    assert seen(run) == name


@gpu
def test_what_is_on_the_host_is_no_work_of_a_gpus_kernels() -> None:
    assert seen(lambda: torch.ones(3) * 2) == ""


def test_a_launch_without_kernels_writes_nothing_and_the_next_one_does() -> None:
    target = torch.zeros_like(X)
    with watch.without_kernels():
        double[(1,)](X, target, size=16)
    assert not target.any()
    double[(1,)](X, target, size=16)
    assert torch.equal(target, X * 2)


LOOKS_WITHOUT_THE_COMPILER = """
import sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from autograder.worker import record
from labkit import watch
with watch.Watch().looking():
    torch.zeros(3)
recorder = object.__new__(record.Recorder)
TorchDispatchMode.__init__(recorder)
recorder._deaf = True
with recorder:
    torch.zeros(3)
assert "torch._dynamo" not in sys.modules
"""


def test_looking_does_not_load_torchs_compiler() -> None:
    subprocess.run([sys.executable, "-c", LOOKS_WITHOUT_THE_COMPILER], check=True)
