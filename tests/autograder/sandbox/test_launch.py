"""A worker answers within its deadline, or it is gone; what it prints and sends is capped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from autograder.nvml import Gpu
from autograder.sandbox import tiers
from autograder.sandbox.launch import Connection, StartFailed, WorkerGone
from autograder.sandbox.limits import Limits
from autograder.sandbox.resident import alive
from autograder.worker import wire
from tests.autograder import processes

SOON_S = 5.0


@pytest.fixture(params=["bubblewrap", "unshare"])
def tier(request: pytest.FixtureRequest) -> str:
    if not tiers.works(request.param):
        pytest.skip(f"the tier {request.param} does not work on this machine")
    return str(request.param)


@pytest.fixture
def connection(tier: str) -> Iterator[Connection]:
    with Connection(tier, Limits(), ("numpy",)) as opened:
        yield opened


def load(connection: Connection, source: str) -> dict[str, Any]:
    return connection.request(SOON_S, op="exec", name="cell", source=source)


def new(connection: Connection, name: str = "Thing") -> int:
    handle = connection.request(SOON_S, op="new", name=name, args=[])["ok"]
    assert isinstance(handle, int)
    return handle


def call(connection: Connection, method: str, deadline_s: float = SOON_S, args: tuple[Any, ...] = ()) -> dict[str, Any]:
    handle = new(connection)
    return connection.request(deadline_s, op="call", target=handle, method=method, args=[wire.encode(a) for a in args])


def test_a_call_gives_plain_values_back(connection: Connection) -> None:
    load(connection, "class Thing:\n    def both(self, a, b):\n        return [(a, b), {'sum': a + b}, None, b'x']")
    reply = call(connection, "both", args=(2, 3))
    assert wire.decode(reply["ok"]) == [(2, 3), {"sum": 5}, None, b"x"]


def test_numpy_integers_arrive_as_numpy_integers(connection: Connection) -> None:
    load(connection, "class Thing:\n    def kind(self, a):\n        return type(a).__name__")
    assert call(connection, "kind", args=(wire.NumpyInteger(4),))["ok"] == "int64"


def test_a_returned_list_can_be_ruined_after_it_was_taken_down(connection: Connection) -> None:
    load(connection, "class Thing:\n    kept = [1, 2]\n    def inner(self):\n        return self.kept")
    handle = new(connection)
    first = connection.request(SOON_S, op="call", target=handle, method="inner", args=[], scribble=True)
    second = connection.request(SOON_S, op="call", target=handle, method="inner", args=[])
    assert (first["ok"], second["ok"]) == ([1, 2], [2, 1, -1])


def test_annotations_are_what_they_are_in_a_notebook_and_not_text(connection: Connection) -> None:
    source = "class Thing:\n    x: int = 0\n    def kind(self):\n        return self.__annotations__['x'] is int"
    load(connection, source)
    assert call(connection, "kind")["ok"] is True


def test_an_endless_call_is_killed_at_its_deadline(connection: Connection) -> None:
    load(connection, "class Thing:\n    def spin(self):\n        while True:\n            pass")
    start = time.monotonic()
    with pytest.raises(WorkerGone) as gone:
        call(connection, "spin", deadline_s=0.5)
    assert gone.value.kind == "deadline"
    assert time.monotonic() - start < 5


def test_a_worker_that_exits_is_gone_whatever_its_status(connection: Connection) -> None:
    load(connection, "import os\nclass Thing:\n    def leave(self):\n        os._exit(0)")
    with pytest.raises(WorkerGone) as gone:
        call(connection, "leave")
    assert gone.value.kind == "died"


def test_a_segmentation_fault_ends_only_the_worker(connection: Connection) -> None:
    load(connection, "import ctypes\nclass Thing:\n    def crash(self):\n        ctypes.string_at(1)")
    with pytest.raises(WorkerGone) as gone:
        call(connection, "crash")
    assert gone.value.kind == "died"


def test_printing_without_end_neither_fills_memory_nor_hides_the_deadline(tier: str) -> None:
    limits = replace(Limits(), printed_bytes=1000)
    with Connection(tier, limits) as connection:
        load(connection, "class Thing:\n    def flood(self):\n        while True:\n            print('x' * 4096)")
        with pytest.raises(WorkerGone) as gone:
            call(connection, "flood", deadline_s=1.0)
        assert gone.value.kind == "deadline"
        assert connection.printed_total_bytes > 4096
        assert bytes(connection.printed) == b"x" * 1000


def test_a_frame_over_the_cap_is_refused_by_the_worker_and_by_the_judge(connection: Connection) -> None:
    load(connection, "class Thing:\n    def large(self):\n        return 'x' * (9 << 20)")
    assert "refused" in call(connection, "large")
    announce = (
        "import gc, socket, struct\n"
        "s = next(o for o in gc.get_objects() if isinstance(o, socket.socket))\n"
        "s.send(struct.pack('!I', 1 << 31))"
    )
    with pytest.raises(WorkerGone) as gone:
        load(connection, announce)
    assert gone.value.kind == "protocol"


def test_an_answer_to_no_question_ends_the_worker(connection: Connection) -> None:
    forge = (
        "import gc, json, socket, struct\n"
        "s = next(o for o in gc.get_objects() if isinstance(o, socket.socket))\n"
        "b = json.dumps({'id': 77, 'ok': 1}).encode()\n"
        "s.send(struct.pack('!I', len(b)) + b)\n"
    )
    with pytest.raises(WorkerGone) as gone:
        load(connection, forge)
    assert gone.value.kind == "protocol"


def test_a_process_left_behind_dies_with_its_worker(tier: str) -> None:
    allowed = replace(Limits(), allow_processes=True)
    marker = f"p2p-left-behind-{os.getpid()}-{time.monotonic_ns()}"
    source = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen(['/bin/sh', '-c', 'sleep 300; : {marker}'], start_new_session=True)\n"
    )
    with Connection(tier, allowed) as connection:
        assert "error" not in load(connection, source)
        assert within_5_s(lambda: running(marker))
    assert within_5_s(lambda: not running(marker))


def within_5_s(holds: Callable[[], bool]) -> bool:
    """Whether `holds` becomes true; a process needs a moment to show its command line, or to be gone."""
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds()


def running(marker: str) -> bool:
    """Whether any process of this machine has `marker` on its command line."""
    return bool(processes.with_command(marker.encode()))


def test_a_worker_that_cannot_start_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "interpreter", lambda: "/nowhere/python")
    with pytest.raises(StartFailed):
        Connection("none", Limits())


@pytest.mark.parametrize(
    ("cap", "value", "source", "error"),
    [
        ("memory_bytes", 256 << 20, "x = bytearray(512 << 20)", "MemoryError"),
        ("open_files", 20, "files = [open('/dev/null') for _ in range(40)]", "OSError"),
        ("file_bytes", 1 << 20, "f = open('/tmp/f', 'wb', 0)\nfor _ in range(4): f.write(bytes(1 << 20))", "OSError"),
        ("disk_bytes", 2 << 20, "[open(f'/tmp/{i}', 'wb', 0).write(bytes(1 << 20)) for i in range(9)]", "OSError"),
        ("allow_processes", False, "import os\nos.fork()", "PermissionError"),
    ],
)
def test_each_cap_of_the_kernel_stops_what_exceeds_it(tier: str, cap: str, value: int, source: str, error: str) -> None:
    with Connection(tier, replace(Limits(), **{cap: value})) as connection:
        reply = load(connection, source)
    assert error in reply["error"]["bases"]


def test_the_cpu_cap_ends_a_worker_that_computes_too_long(tier: str) -> None:
    with (
        Connection(tier, replace(Limits(), cpu_s=1)) as connection,
        pytest.raises(WorkerGone) as gone,
    ):
        connection.request(20, op="exec", name="cell", source="while True:\n    pass")
    assert gone.value.kind == "died"


def test_a_worker_has_the_nodes_of_its_own_gpu_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    two = (Gpu("GPU-2", "nvidia1"), Gpu("GPU-1", "nvidia0"))
    monkeypatch.setattr(tiers.nvml, "gpus", lambda: two)
    monkeypatch.setattr(tiers.os.path, "exists", lambda path: True)
    assert tiers.mounts((), gpu=True).devices == ("nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
    assert tiers.gpu_environment()["CUDA_VISIBLE_DEVICES"] == "GPU-2"
    assert tiers.mounts(()).devices == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="making a mount inside /usr needs root")
def test_a_mount_inside_a_system_folder_is_read_only_too(tier: str) -> None:
    # A GPU machine has its driver mounted below /usr; a plain bind of /usr is refused by the kernel there.
    script = (
        "from autograder.sandbox.launch import Connection\n"
        "from autograder.sandbox.limits import Limits\n"
        f"with Connection({tier!r}, Limits()) as connection:\n"
        "    reply = connection.request(10, op='exec', name='cell', source=\"open('/usr/local/share/x', 'w')\")\n"
        "    print(reply['error']['message'])\n"
    )
    inside = f'mount -t tmpfs tmpfs /usr/local/share && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Read-only file system" in done.stdout, done.stderr


def test_memory_that_no_process_limit_counts_cannot_be_had(connection: Connection) -> None:
    # Detached System V segments and memory files stay outside RLIMIT_AS and the scratch folders' sizes.
    source = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.shmget(0, 1 << 20, 0o1600) == -1 and ctypes.get_errno() == 1\n"
        "try:\n    os.memfd_create('x')\nexcept PermissionError:\n    pass\nelse:\n    raise SystemExit\n"
    )
    assert "error" not in load(connection, source)


def test_a_large_source_full_of_accents_crosses(connection: Connection) -> None:
    assert "error" not in load(connection, "# " + "\u00e9" * (3 << 20))


def test_a_worker_dies_with_a_judge_that_is_killed(tier: str) -> None:
    script = (
        "import os, signal\n"
        "from autograder.sandbox.launch import Connection\n"
        "from autograder.sandbox.limits import Limits\n"
        "from autograder.sandbox.resident import tree\n"
        "from autograder.worker import wire\n"
        f"connection = Connection({tier!r}, Limits())\n"
        # Busy, so that it does not end because its socket closes.
        "connection._send(wire.pack({'id': 1, 'op': 'exec', 'name': 'cell', 'source': 'while True: pass'}), 1e9)\n"
        "print(*tree(connection._process.pid), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=False,
    )
    started = [int(pid) for pid in done.stdout.split()]
    assert started
    assert within_5_s(lambda: not any(alive(pid) for pid in started))


def test_the_memory_of_a_worker_is_looked_at_where_it_is_capped(tier: str) -> None:
    limits = replace(Limits(), memory_bytes=-1, resident_bytes=200 << 20)
    with Connection(tier, limits) as connection:
        load(connection, "class Thing:\n    def eat(self):\n        self.held = [bytes(1 << 20) for _ in range(100)]")
        assert "ok" in call(connection, "eat")
        load(
            connection,
            "class Thing:\n    def eat(self):\n        held = []\n        while 1: held += [bytes(range(99)) * 9999]",
        )
        with pytest.raises(WorkerGone) as gone:
            call(connection, "eat")
        assert gone.value.kind == "memory"


def test_memory_that_is_taken_between_requests_is_seen_too(tier: str) -> None:
    limits = replace(Limits(), memory_bytes=-1, resident_bytes=200 << 20)
    with Connection(tier, limits) as connection:
        load(
            connection,
            "import threading, time\nheld = []\n"
            "def eat():\n"
            "    time.sleep(0.3)\n"
            "    while True:\n"
            "        held.append(bytes(range(99)) * 99999)\n"
            "threading.Thread(target=eat, daemon=True).start()",
        )
        assert within_5_s(lambda: connection._process.poll() is not None)
        with pytest.raises(WorkerGone) as gone:
            load(connection, "pass")
        assert gone.value.kind == "memory"
