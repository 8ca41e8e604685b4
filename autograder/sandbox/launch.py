"""Start a worker in its box, talk to it with a deadline, and be sure it is gone.

Owns: the process, its socket, and the pipe that swallows what it prints. Each request has a deadline on this side's
clock; when it passes, or the worker breaks the wire's rules, the whole process tree is killed. Knows nothing of labs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import threading
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

from autograder.sandbox import tiers
from autograder.sandbox.limits import Limits
from autograder.sandbox.resident import alive, resident_bytes, tree
from autograder.worker import wire

START_DEADLINE_S = 30.0
STDERR_TAIL_BYTES = 400
READ_BYTES = 1 << 16
GONE_S = 10.0
LOOK_S = 0.2
"""How often a worker whose resident memory is capped is looked at."""


class WorkerGone(Exception):  # noqa: N818 - what happened, not a fault of the caller
    """The worker did not answer. `kind` is deadline, memory, died or protocol; `detail` is for staff."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail


class StartFailed(BaseException):
    """The sandbox failed before the worker was ready: never the student's fault.

    Not an Exception: a worker may have to be started in the middle of a test, which would take any for an answer.
    """


class Connection:
    """One running worker. Not safe for threads; close it, or use it as a context manager."""

    def __init__(
        self,
        tier: str,
        limits: Limits,
        packages: Sequence[str] = (),
        environment: Mapping[str, str] = types.MappingProxyType({}),
        gpu: bool = False,
    ) -> None:
        """`environment`: variables beside those of every worker; `gpu`: whether it gets one. Raises: StartFailed."""
        self.limits = limits
        self._gpu = gpu
        environment = {**tiers.ENVIRONMENT, **(tiers.gpu_environment() if gpu else {}), **environment}
        self.printed = bytearray()
        self.printed_total_bytes = 0
        mounted = tiers.mounts(packages, boxed=tier != "none", gpu=gpu)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._socket = ours
        self._received = bytearray()
        self._pipe_open = True
        self._next_id = 0
        program = [tiers.interpreter(), "-I", "-S", "-B", mounted.shim, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                tiers.command(tier, mounted, limits.disk_bytes, program, environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=environment,
            )
        except (OSError, tiers.NoSandbox) as error:
            ours.close()
            raise StartFailed(str(error)) from error
        finally:
            theirs.close()
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self._over = False
        self._closed = threading.Event()
        if limits.resident_bytes > 0:
            threading.Thread(target=self._watch, name="memory of a worker", daemon=True).start()
        self._hello(mounted, tier)

    def _hello(self, mounted: tiers.Mounts, tier: str) -> None:
        hello = {"paths": list(mounted.paths), "limits": self.limits.for_worker()}
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            self._send(wire.pack(hello), deadline)
            reply = self._receive(deadline)
        except (WorkerGone, OSError) as error:
            self.close()
            tail = bytes(self.printed[-STDERR_TAIL_BYTES:]).decode("utf-8", "replace").strip()
            raise StartFailed(f"the worker did not start in tier {tier} ({error}): {tail}") from error
        if reply != {"id": 0, "ok": "ready"}:
            self.close()
            raise StartFailed(f"the worker in tier {tier} did not say it was ready")

    def request(self, deadline_s: float, **message: Any) -> dict[str, Any]:
        """Send one request and wait for its answer: a dict with `ok`, `error` or `refused`.

        Raises: WorkerGone if no proper answer came within `deadline_s`; the worker is dead then.
        """
        self._next_id += 1
        deadline = time.monotonic() + deadline_s
        try:
            self._send(wire.pack({"id": self._next_id, **message}, self.limits.frame_bytes), deadline)
            reply = self._receive(deadline)
            if reply.get("id") != self._next_id or not isinstance(reply.get("id"), int):
                raise WorkerGone("protocol", "an answer to no question")
            return reply
        except WorkerGone:
            self.close()
            raise
        except wire.WireError as error:
            self.close()
            raise WorkerGone("protocol", str(error)) from error

    def _send(self, frame: bytes, deadline: float) -> None:
        view = memoryview(frame)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                self._wait(deadline, writing=True)
            except OSError:
                raise self._died() from None

    def _receive(self, deadline: float) -> dict[str, Any]:
        header = self._read(wire.HEADER.size, deadline)
        return wire.unpack(self._read(wire.frame_length(header, self.limits.reply_bytes), deadline))

    def _read(self, size: int, deadline: float) -> bytes:
        """`size` bytes from the worker. Reads ahead: a small answer costs one wait and one call, not two of each."""
        while len(self._received) < size:
            self._wait(deadline)
            try:
                part = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                raise self._died() from None
            if not part:
                raise self._died()
            self._received += part
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _wait(self, deadline: float, writing: bool = False) -> None:
        """Sleep until the socket is ready, swallowing what the worker prints. WorkerGone at the deadline."""
        while (left := deadline - time.monotonic()) > 0:
            readers: list[Any] = [] if writing else [self._socket]
            if self._pipe_open:
                readers.append(self._pipe)
            ready, writable, _ = select.select(readers, [self._socket] if writing else [], [], left)
            # One read a turn, so that a worker that prints without end cannot keep this loop from its deadline.
            if self._pipe in ready:
                self._pipe_open = self._swallow()
            if writable or self._socket in ready:
                return
        raise WorkerGone("deadline")

    def _swallow(self) -> bool:
        """Take what was printed, keep the first `printed_bytes` of it. False once the pipe is closed."""
        try:
            data = os.read(self._pipe, 1 << 16)
        except BlockingIOError:
            return True
        self.printed_total_bytes += len(data)
        self.printed += data[: max(0, self.limits.printed_bytes - len(self.printed))]
        return bool(data)

    def _watch(self) -> None:
        """Look at the worker's memory until it is closed, between requests too, and kill it if that is over its cap."""
        while not self._closed.wait(LOOK_S):
            if resident_bytes(self._process.pid) > self.limits.resident_bytes:
                self._over = True
                self._kill()
                return

    def _died(self) -> WorkerGone:
        """What to raise for a worker that is no longer there."""
        ending = self._ending()
        return WorkerGone("memory") if self._over else WorkerGone("died", ending)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its socket"
        return f"exit status {code}"

    def close(self) -> None:
        """Kill the worker and wait for it; the rest of a boxed pid namespace dies with its first process.

        A worker with a GPU is waited for with all that it started: what it left running there would be in the way of
        who comes next.
        """
        started = tree(self._process.pid) if self._gpu else []
        self._closed.set()
        self._kill()
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + GONE_S
        while any(map(alive, started)) and time.monotonic() < deadline:
            time.sleep(0.01)
        with contextlib.suppress(OSError):
            self._swallow()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
