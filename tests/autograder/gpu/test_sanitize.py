"""What compute-sanitizer says is told by kernel and costs no point; where it says nothing nobody loses anything."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from autograder.gpu import sanitize
from autograder.gpu.plan import Kernel, Plan
from autograder.gpu.sanitize import NotExamined, accesses, examine
from autograder.gpu.subject import FromHere, FromWorker, sizes_of
from autograder.judge.verdicts import Verdict
from autograder.worker import tensors

NEW = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 2 bytes
=========     at attend_tile+0x2a0 in kernel.py:41
=========     by thread (0,0,0) in block (1,0,0)
=========     Access at 0x7f0000000000 is out of bounds
=========
========= Invalid __global__ write of size 2 bytes
=========     at attend+0x300 in kernel.py:50
=========
========= ERROR SUMMARY: 2 errors
"""
OLD = """\
========= Invalid __shared__ atomic of size 4 bytes
=========     at 0x2a0 in kernel.py:41:attend
========= Invalid __global__ read of size 4 bytes
=========     at 0x10 in somewhere_else
"""
KERNELS = ("attend", "attend_tile", "rm -rf")
PLAN = Plan((Kernel(b"", "attend", 0, 4, 0, 1),), (), (), (), ())
DATA: dict[str, list[Any]] = {"kernels": [], "buffers": [], "steps": [], "problems": []}
Tool = Callable[[str], None]


def test_an_access_is_told_by_kernel_whatever_the_form_of_the_report() -> None:
    assert accesses(NEW.splitlines(), KERNELS) == {("attend_tile", "read"): 1, ("attend", "write"): 1}
    assert accesses(OLD.splitlines(), KERNELS) == {("attend", "atomic"): 1, ("a kernel", "read"): 1}
    assert not accesses(["========= ERROR SUMMARY: 0 errors"], KERNELS)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Puts a program of that name in the way, which gets --log-file as it would."""

    def put(script: str) -> None:
        path = tmp_path / sanitize.TOOL
        path.write_text('#!/bin/sh\nwhile [ "$1" != --log-file ]; do shift; done\nLOG=$2\n' + script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return put


def told(source: Any) -> tuple[Verdict, str]:
    group = sanitize.group(cast(FromWorker, source))
    (test,) = group.tests
    assert (group.points, group.max_points, test.counts) == (0.0, 0.0, False)
    return test.verdict, test.message.removeprefix(sanitize.SENTENCE).strip()


class Source:
    """A worker that records an empty plan, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def record(self, name: str, buffers: list[dict[str, Any]], args: Any) -> Any:
        if self._error:
            raise self._error
        return {**DATA, "buffers": [["input", k] for k in range(len(buffers))]}


def test_without_the_tool_nothing_is_run_and_nothing_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotExamined, match="not installed"):
        examine(DATA, PLAN, [])


def test_a_tool_that_does_not_work_is_no_finding(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool("exit 3\n")
    with pytest.raises(NotExamined, match=r"did not work here$"):
        examine(DATA, PLAN, [])
    tool('echo "========= Error: no device." > "$LOG"; exit 255\n')
    with pytest.raises(NotExamined, match=r"did not work here \(no device\)$"):
        examine(DATA, PLAN, [])
    tool("exec sleep 60\n")
    monkeypatch.setattr(sanitize, "DEADLINE_S", 0.3)
    with pytest.raises(NotExamined, match="did not end"):
        examine(DATA, PLAN, [])


def test_a_play_that_came_to_its_end_without_a_word_is_clean(tool: Tool) -> None:
    tool("cat > /dev/null; printf played\n")
    assert not examine(DATA, PLAN, [b"\0" * 8])


def test_what_was_found_counts_though_the_play_was_broken_off(tool: Tool) -> None:
    tool(f'cat > "$LOG" <<END\n{NEW}END\nexit 1\n')
    assert examine(DATA, PLAN, [])["attend", "write"] == 1


def test_the_group_says_what_was_found_and_costs_no_point(tool: Tool) -> None:
    tool("cat > /dev/null; printf played\n")
    assert told(Source()) == (Verdict.PASS, "")
    tool(f'cat > "$LOG" <<END\n{NEW}END\n')
    # The empty plan has no kernel of these names.
    assert told(Source()) == (Verdict.WRONG, "Not so: a kernel (read, 1 times), a kernel (write, 1 times).")


def test_without_the_tool_the_group_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    verdict, message = told(Source())
    assert (verdict, message) == (
        Verdict.NOT_RUN,
        "Not examined: compute-sanitizer is not installed on this grader.",
    )


def test_a_call_that_does_not_end_well_is_not_examined() -> None:
    assert told(Source(ValueError("no"))) == (Verdict.NOT_RUN, "Not examined: the public call did not end well.")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch finds none here")
@pytest.mark.skipif(shutil.which(sanitize.TOOL) is None, reason="compute-sanitizer is not installed here")
class TestTheToolItself:
    def examined(self, name: str) -> Any:
        from types import SimpleNamespace

        from autograder.gpu.plan import parse
        from tests.autograder.gpu import calls

        source, target = torch.ones(1000), torch.zeros(1000)
        buffers, args = tensors.pack((source, target))
        without = [{**buffer, "bytes": None} for buffer in buffers]
        data = FromHere(SimpleNamespace(call=getattr(calls, name))).record("call", without, args)
        return examine(data, parse(data, sizes_of(buffers)), [buffer["bytes"] for buffer in buffers])

    def test_an_honest_kernel_is_clean(self) -> None:
        assert not self.examined("two_kernels_and_scratch")

    def test_one_write_beside_a_tensor_is_found_and_named(self) -> None:
        assert self.examined("writes_beside").keys() == {("_write_far", "write")}
