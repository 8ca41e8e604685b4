"""Proof that the sandbox denies what it must, with controls that show it is not merely broken.

Owns: the probes. Each is a function that runs inside a real worker of a tier, as student code would, and says what
happened. A deny must be refused with the very error that its layer gives, and the controls must work (or a refusal
proves only that something is broken). Knows nothing of labs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autograder.sandbox import tiers
from autograder.sandbox.launch import Connection, StartFailed, WorkerGone
from autograder.sandbox.limits import Limits

PROBE_DEADLINE_S = 15.0
WENT_THROUGH = "went through"

# Source of the probes. Each `deny_*` must end in an error (or, for `kill`, end the worker); each `allow_*` must not.
PROBES = r"""
import ctypes, os, socket, threading

def deny_write_outside():
    open("/usr/p2p-probe", "w").close()

def allow_write_own_folder():
    with open("/tmp/probe", "w") as file:
        file.write("x")

def deny_read_course():
    return os.listdir(COURSE)

def allow_read_labkit():
    import labkit.contracts

def deny_read_passwords():
    return open("/etc/shadow").read()

def deny_connect():
    socket.create_connection(("192.0.2.1", 9), timeout=2).close()

def allow_socketpair():
    a, b = socket.socketpair()
    a.send(b"x")
    assert b.recv(1) == b"x"
    a.close(), b.close()

def deny_vsock():
    socket.socket(40, socket.SOCK_STREAM).close()

def deny_fork():
    if os.fork() == 0:
        os._exit(0)

def deny_exec():
    os.execv("/bin/true", ["true"])

def allow_thread():
    done = []
    thread = threading.Thread(target=done.append, args=(1,))
    thread.start()
    thread.join()
    assert done

def deny_ptrace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def deny_new_namespace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")

def deny_capabilities():
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    if int(status["CapEff"], 16) == 0 and int(status["CapPrm"], 16) == 0:
        raise PermissionError("no capability is held")

def deny_see_other_processes():
    os.kill(GRADER, 0)

def allow_see_itself():
    os.kill(os.getpid(), 0)

def deny_unfiltered_first_process():
    # bubblewrap's own first process would run without the filter and could be written to.
    with open("/proc/1/status") as file:
        status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    if int(status["Seccomp"]) == 2:
        raise PermissionError("the first process is filtered")

def deny_fill_disk():
    for number in range(1000):
        with open(f"/tmp/fill{number}", "wb") as file:
            file.write(bytes(1 << 20))

def deny_large_file():
    with open("/tmp/large", "wb") as file:
        for _ in range(1000):
            file.write(bytes(1 << 20))

def deny_many_files():
    kept = [open("/dev/null") for _ in range(10_000)]

def deny_memory():
    bytearray(1 << 40)

def deny_shared_memory():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.shmget(0, 1 << 20, 0o1600) < 0:
        raise OSError(ctypes.get_errno(), "shmget")

def allow_memory():
    bytearray(1 << 24)

def deny_inherited_files():
    others = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
    # The listing's own descriptor and the one socket to the judge are all there may be.
    if len(others) <= 2:
        raise OSError("nothing else is open")
"""
REFUSALS = {
    "deny_write_outside": "OSError: [Errno 30]",
    "deny_read_course": "FileNotFoundError",
    "deny_read_passwords": "FileNotFoundError",
    "deny_connect": "OSError: [Errno 101]",
    "deny_vsock": "PermissionError",
    "deny_fork": "PermissionError",
    "deny_exec": "PermissionError",
    "deny_ptrace": "PermissionError",
    "deny_new_namespace": "PermissionError",
    "deny_capabilities": "PermissionError",
    "deny_see_other_processes": "ProcessLookupError",
    "deny_unfiltered_first_process": "PermissionError",
    "deny_fill_disk": "OSError: [Errno 28]",
    "deny_large_file": "OSError: [Errno 27]",
    "deny_many_files": "OSError: [Errno 24]",
    "deny_memory": "MemoryError",
    "deny_shared_memory": "PermissionError",
    "deny_inherited_files": "OSError: nothing else is open",
}
"""How each deny must be refused: any other error, a misspelt name in a probe say, proves nothing."""
BOXED_ONLY = frozenset(
    {
        "deny_write_outside",
        "deny_read_course",
        "deny_read_passwords",
        "deny_connect",
        "deny_capabilities",
        "deny_see_other_processes",
        "deny_fill_disk",
        "deny_unfiltered_first_process",
    }
)
"""Denied by namespaces and mounts: in tier `none` these go through, which is why it must be asked for by name."""


@dataclass(frozen=True)
class Finding:
    """One probe's outcome. `ok` is what matters: a deny was refused, a control worked."""

    probe: str
    ok: bool
    detail: str


def examine(tier: str, course_root: Path, grader_pid: int) -> Iterator[Finding]:
    """Run every probe in `tier`, each in a fresh worker. Cost: about 0.2 s a probe."""
    names = [line.split("(")[0].removeprefix("def ") for line in PROBES.splitlines() if line.startswith("def ")]
    source = f"COURSE = {str(course_root)!r}\nGRADER = {grader_pid}\n{PROBES}"
    for name in names:
        if tier == "none" and name in BOXED_ONLY:
            yield Finding(name, False, "not denied without a sandbox")
            continue
        try:
            outcome = _outcome(tier, source, name)
        except StartFailed as error:
            # A box that does not open denies everything and proves nothing.
            yield Finding(name, False, f"the sandbox did not start: {error}")
            continue
        yield Finding(name, outcome.startswith(REFUSALS.get(name, WENT_THROUGH)), outcome)


def _outcome(tier: str, source: str, name: str) -> str:
    """What the probe said. Raises: StartFailed if there was no worker, or the probes did not load in it."""
    try:
        with Connection(tier, Limits()) as connection:
            probe = f"{source}\nclass Probe:\n    def run(self):\n        {name}()\n"
            loaded = connection.request(PROBE_DEADLINE_S, op="exec", name="probe", source=probe)
            if "error" in loaded:
                raise StartFailed(f"the probes did not load: {loaded['error']}")
            handle = connection.request(PROBE_DEADLINE_S, op="new", name="Probe", args=[]).get("ok")
            reply = connection.request(PROBE_DEADLINE_S, op="call", target=handle, method="run", args=[])
    except WorkerGone as gone:
        return f"the worker was ended ({gone})"
    if "ok" in reply:
        return WENT_THROUGH
    raised = reply.get("error", {})
    return f"{raised.get('name')}: {raised.get('message')}"


def tiers_here() -> dict[str, bool]:
    """Which isolating tiers work on this machine."""
    return {tier: tiers.works(tier) for tier in tiers.TIERS if tier != "none"}
