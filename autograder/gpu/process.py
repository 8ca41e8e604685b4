"""The disposable process that plays plans: how it is started, asked and ended, and what it does.

Owns: both ends of the pipe. The judge's end (`Replay`) has a deadline for every request and kills a process that
passes it; the other end (`main`) answers until something goes wrong on the GPU, says what, and ends. Both are trusted,
but the process has run a stranger's kernels: what it says is read as data. A frame is a length, JSON, and then the raw
blobs whose lengths the JSON names under "blobs".
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autograder import nvml
from autograder.worker import harden

HEADER = struct.Struct("!I")
JSON_BYTES_MAX = 32 << 20
BLOB_BYTES_MAX = 1 << 30
END_S = 30.0
READY = "ready"
"""The request that is answered as soon as this process has imported what it needs, before it touches the GPU."""
TAIL_BYTES = 2000


class ReplayGone(Exception):  # noqa: N818 - what happened
    """The process did not answer. `kind` is deadline, died or fault; `detail` is for staff."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


def write_frame(fd: int, message: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """One frame, whole."""
    body = json.dumps({**message, "blobs": [len(blob) for blob in blobs]}).encode()
    for part in (HEADER.pack(len(body)), body, *blobs):
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def encoded(plan: Any) -> Any:
    """A plan for JSON: its bytes as text."""
    if isinstance(plan, bytes):
        return {"bytes": base64.b64encode(plan).decode("ascii")}
    if isinstance(plan, dict):
        return {"dict": {key: encoded(value) for key, value in plan.items()}}
    if isinstance(plan, (list, tuple)):
        return [encoded(item) for item in plan]
    return plan


def decoded(data: Any) -> Any:
    """The inverse of `encoded`."""
    if isinstance(data, dict):
        if "bytes" in data:
            return base64.b64decode(data["bytes"])
        return {key: decoded(value) for key, value in data["dict"].items()}
    if isinstance(data, list):
        return [decoded(item) for item in data]
    return data


class Replay:
    """One such process. Not safe for threads; close it, or use it as a context manager."""

    def __init__(self) -> None:
        homes = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[2] / "labs")]
        # A file, not a pipe: nobody reads along, and a process that waits for a reader answers nobody.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autograder.gpu.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(homes), **nvml.only(nvml.gpus())},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()

    def request(
        self, deadline_s: float, blobs: Sequence[bytes] = (), **message: Any
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Its answer and the blobs behind it. Raises: ReplayGone if there is none in time; the process is dead then."""
        deadline = time.monotonic() + deadline_s
        try:
            write_frame(self._to, message, blobs)
            length = HEADER.unpack(self._read(HEADER.size, deadline))[0]
            if length > JSON_BYTES_MAX:
                raise ReplayGone("died", "a frame that is too long")
            reply: dict[str, Any] = json.loads(self._read(length, deadline))
            lengths = reply.pop("blobs")
            if sum(lengths) > BLOB_BYTES_MAX:
                raise ReplayGone("died", "blobs that are too long")
            found = [self._read(size, deadline) for size in lengths]
        except (OSError, ValueError, KeyError, TypeError) as error:
            detail = self._last_words() or str(error)
            self.close()
            raise ReplayGone("died", detail) from error
        except ReplayGone:
            self.close()
            raise
        if "fault" in reply:
            self.close()
            raise ReplayGone("fault", str(reply["fault"]))
        return reply, found

    def _read(self, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise ReplayGone("deadline")
            part = os.read(self._from, min(size - len(parts), 1 << 20))
            if not part:
                raise ReplayGone("died", self._last_words())
            parts += part
        return bytes(parts)

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
            self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - TAIL_BYTES))
            tail = self._said.read().decode("utf-8", "replace").strip().splitlines()
            return f"exit status {self._process.returncode}: {' '.join(tail[-2:])}"
        return ""

    def close(self) -> None:
        """Kill the process and wait for it, but not for ever.

        One that is stuck in the driver is left to the kernel; the next canary tells what became of the GPU.
        """
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=END_S)
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    """Answer requests on standard input until it closes or the GPU faults."""
    # With the judge ends this process: nothing goes on running on the GPU unseen.
    harden.die_with_parent()
    answers = os.dup(1)
    # Kernels print to standard output, and may print without end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from autograder.gpu.answers import Answers

    server = Answers()
    source = os.fdopen(0, "rb", closefd=False)
    while header := source.read(HEADER.size):
        request = json.loads(source.read(HEADER.unpack(header)[0]))
        blobs = [source.read(size) for size in request.pop("blobs")]
        if request["op"] == READY:
            write_frame(answers, {})
            continue
        reply, found, ended = server.answer(request, blobs)
        write_frame(answers, reply, found)
        if ended:
            return


if __name__ == "__main__":
    main()
