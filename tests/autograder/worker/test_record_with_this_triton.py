"""What the recorder takes from Triton is there in the installed version; no GPU is needed to compile for one.

The launcher's order of arguments, the property that is hooked and the compiled kernel's facts are no public interface,
and the recorder meets them on a GPU only. A new Triton that changes one is noticed here. In a process of its own, for
in this one Triton interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.gpu.plan import Launch, Number, parse
from autograder.gpu.process import decoded

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
RECORD = """
import inspect, json, re
from types import SimpleNamespace
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction
from autograder.gpu.process import encoded
from autograder.worker import record

@triton.jit
def double(source, target, count, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, factor * tl.load(source + at, mask=at < count), mask=at < count)

signature = {"source": "*fp32", "target": "*fp32", "count": "i32", "factor": "fp32", "BLOCK": "constexpr"}
source = ASTSource(double, signature, {(4,): 256})
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
assert isinstance(CompiledKernel.run, property)
launched = []
kernel._run = lambda *arguments: launched.append(arguments)

# No GPU: its stream is a number.
torch.cuda.current_stream = lambda: SimpleNamespace(cuda_stream=7)
recorder = record.Recorder([])
data = torch.zeros(256)
with recorder.listening():
    kernel.run(4, 1, 1, 7, "function", kernel.packed_metadata, None, None, None, data, data, 1000, 2.0, 256)
assert isinstance(CompiledKernel.run, property) and len(launched) == 1
recorder._launch(kernel, (4, 1, 1), 8, (data, data, 1000, 2.0, 256))
call = re.search(r"kernel[.]run[(](.*?)[*]bound_args", inspect.getsource(JITFunction.run), re.S)
print(json.dumps({"plan": encoded(recorder.plan()), "order": " ".join(call[1].split())}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The plan of two launches, and how Triton's own launcher is called."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "labs")])
    # Triton wants to find a kernel's source in a file.
    program = tmp_path_factory.mktemp("record") / "record_here.py"
    program.write_text(RECORD, encoding="utf-8")
    ran = subprocess.run([sys.executable, "-P", str(program)], text=True, capture_output=True, env=environment)
    if "ptxas" in ran.stderr and "not found" in ran.stderr:
        pytest.skip("this Triton brings no ptxas")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, object] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_a_compiled_kernel_has_what_a_plan_needs(told: dict[str, object]) -> None:
    plan = parse(decoded(told["plan"]), [])
    (kernel,) = plan.kernels
    assert kernel.cubin.startswith(b"\x7fELF")
    assert kernel.name == "double"
    assert kernel.warps == 4


def test_a_launch_is_written_with_its_grid_and_without_what_is_constant(told: dict[str, object]) -> None:
    first, second = parse(decoded(told["plan"]), []).steps
    assert isinstance(first, Launch)
    assert isinstance(second, Launch)
    assert first == second
    assert first.grid == (4, 1, 1)
    assert [number.value for number in first.arguments if isinstance(number, Number)][-2:] == [1000, 2.0]
    assert len(first.arguments) == 4


def test_a_launch_on_another_stream_is_told(told: dict[str, object]) -> None:
    assert [kind for kind, _ in parse(decoded(told["plan"]), []).problems] == ["stream"]


def test_tritons_own_launcher_is_called_in_the_order_that_the_recorder_knows(told: dict[str, object]) -> None:
    words = [word.strip() for word in str(told["order"]).rstrip(", ").split(",")]
    assert words[3:6] == ["stream", "kernel.function", "kernel.packed_metadata"]
    # Grid, stream and function; then the packed metadata, the launch metadata and two hooks; then the kernel's own.
    assert len(words) == 9
