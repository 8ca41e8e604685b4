"""A submission's kernels under NVIDIA's compute-sanitizer: which of them touch memory that is not theirs.

Owns: one play of a public call in a process of its own under that tool, what the tool's report says of which kernel,
and the group of no points that a student reads. Asked for by `course grade --sanitize` only. A read beside a tensor is
harmless most of the time, and no answer shows it: the hidden tests see what it does to answers, this sees it itself.
Where the tool is missing or does not work nobody loses anything. The call is public, so that kernels may be named.
Cost: tens of seconds, for Python and torch start under the tool.
Source: Compute Sanitizer, memcheck.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from autograder.gpu.plan import Plan, PlanRefused, parse
from autograder.gpu.process import decoded, encoded
from autograder.gpu.subject import CONTRACT, REHEARSAL, FromWorker, Turn, call_of, sizes_of
from autograder.judge.remote import TestEnded
from autograder.judge.verdicts import GroupResult, TestResult, Verdict
from autograder.worker import harden, prints

TOOL = "compute-sanitizer"
DEADLINE_S = 180.0
REPORTS_MAX = 1000
GROUP, TITLE, TEST = "sanitizer", "Memory that kernels touch (not graded)", "test_kernels_stay_inside_their_tensors"
SENTENCE = "Kernels read and write inside their tensors only, on a public call under compute-sanitizer."
PLAYED = b"played"
_ACCESS = re.compile(r"Invalid __(?:global|shared|local)__ (?P<how>read|write|atomic)")
_GAP_BYTES = 1 << 20


class NotExamined(Exception):  # noqa: N818 - what happened
    """The tool said nothing; the words are for the student and for staff."""


def group(source: FromWorker, turn: Turn = nullcontext) -> GroupResult:
    """The public call, recorded in the worker and examined in a turn on the GPU, as a group of no points."""
    buffers, args = call_of(REHEARSAL, seed=0)
    sizes = sizes_of(buffers)
    try:
        data = source.record(CONTRACT, buffers, args)
    except (Exception, TestEnded):
        # The hidden tests will meet it again, and have words for it.
        return _group(Verdict.NOT_RUN, f"{SENTENCE} Not examined: the public call did not end well.")
    try:
        plan = parse(data, sizes)
        if plan.problems:
            raise NotExamined("what was recorded cannot be played")
        blobs = [buffer["bytes"] or bytes(size) for buffer, size in zip(buffers, sizes, strict=True)]
        with turn():
            found = examine(data, plan, blobs)
    except (NotExamined, PlanRefused) as reason:
        return _group(Verdict.NOT_RUN, f"{SENTENCE} Not examined: {reason}.")
    if not found:
        return _group(Verdict.PASS, SENTENCE)
    told = ", ".join(f"{name} ({how}, {count} times)" for (name, how), count in sorted(found.items()))
    return _group(Verdict.WRONG, f"{SENTENCE} Not so: {told}.")


def _group(verdict: Verdict, message: str) -> GroupResult:
    return GroupResult(GROUP, TITLE, 0.0, (TestResult(TEST, verdict, message, counts=False),))


def examine(data: Any, plan: Plan, blobs: Sequence[bytes]) -> Counter[tuple[str, str]]:
    """(kernel, read or write or atomic) -> accesses outside of allocated memory in one play of the plan `data` on the
    storages `blobs`. Raises: NotExamined."""
    tool = shutil.which(TOOL)
    if tool is None:
        raise NotExamined(f"{TOOL} is not installed on this grader")
    request = json.dumps({"plan": encoded(data), "blobs": encoded(list(blobs))})
    with tempfile.TemporaryDirectory() as folder:
        log, said = Path(folder) / "log", Path(folder) / "said"
        command = [
            tool, "--tool", "memcheck", "--target-processes", "all", "--report-api-errors", "no",
            "--print-limit", str(REPORTS_MAX), "--log-file", str(log),
            sys.executable, "-P", "-m", "autograder.gpu.sanitize",
        ]  # fmt: skip
        # A file, not a pipe: whoever hangs in the driver would hold the other end for ever.
        with said.open("wb") as out:
            try:
                subprocess.run(
                    command, input=request.encode(), stdout=out, stderr=subprocess.DEVNULL, timeout=DEADLINE_S,
                    check=False, env=_environment(),
                )  # fmt: skip
            except (subprocess.TimeoutExpired, OSError) as error:
                raise NotExamined(f"{TOOL} did not end ({type(error).__name__})") from None
        text = log.read_text("utf-8", "replace") if log.is_file() else ""
        ended = said.read_bytes().strip() == PLAYED
    found = accesses(text.splitlines(), {kernel.name for kernel in plan.kernels})
    if not found and not ended:
        reasons = [line.partition("Error: ")[2].strip().rstrip(".") for line in text.splitlines() if "Error: " in line]
        raise NotExamined(f"{TOOL} did not work here" + "".join(f" ({reason[:100]})" for reason in reasons[:1]))
    return found


def _environment() -> dict[str, str]:
    homes = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "labs")]
    # Every tensor an allocation of its own, of its very size: the tool knows nothing of torch's own pool.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(homes), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def accesses(lines: Iterable[str], kernels: Iterable[str]) -> Counter[tuple[str, str]]:
    """What a report of the tool says, by kernel. A kernel whose name is no plain word is "a kernel"."""
    # The longest first: one name may begin with another.
    named = sorted((name for name in kernels if name.isidentifier() and len(name) <= 80), key=len, reverse=True)
    found: Counter[tuple[str, str]] = Counter()
    how = ""
    for line in lines:
        if access := _ACCESS.search(line):
            how = access["how"]
        elif how:
            # The line behind the head tells where; its form differs between versions.
            words = set(re.findall(r"\w+", line))
            found[next((name for name in named if name in words), "a kernel"), how] += 1
            how = ""
    return found


def main() -> None:
    """One play of what standard input holds; says so if it came to its end."""
    harden.die_with_parent()
    answers = os.dup(1)
    # Kernels print to standard output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    import torch

    from autograder.gpu.replay import POISONS, Guarded, Loaded, Player, Scratch, Unguarded

    request = json.load(sys.stdin)
    blobs = decoded(request["blobs"])
    # The driver takes no kernel before torch has opened the GPU.
    torch.cuda.synchronize()
    prints.make_room()
    loaded = Loaded(parse(decoded(request["plan"]), [len(blob) for blob in blobs]))
    gaps = []

    def apart(size_bytes: int) -> Guarded:
        # No guards, which would hide what happens beside a buffer; what lies between two is freed before the play.
        gaps.append(torch.empty(_GAP_BYTES, dtype=torch.uint8, device="cuda"))
        return Unguarded(size_bytes)

    inputs = [apart(len(blob)) for blob in blobs]
    for memory, blob in zip(inputs, blobs, strict=True):
        memory.inner.copy_(torch.frombuffer(bytearray(blob), dtype=torch.uint8))
    scratch = Scratch(loaded.plan, apart)
    scratch.poison(POISONS[0])
    player = Player(loaded, [memory.inner for memory in inputs], scratch)
    gaps.clear()
    torch.cuda.synchronize()
    player.play()
    torch.cuda.synchronize()
    os.write(answers, PLAYED)


if __name__ == "__main__":
    main()
