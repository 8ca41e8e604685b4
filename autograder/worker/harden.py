"""The worker gives up its own rights, before the first line of student code.

Owns: resource limits and the system-call filter of this process and all its threads. Knows nothing of namespaces and
mounts: those were made outside, by `autograder.sandbox`. Both layers stand alone, so that one hole is not enough.
Standard library only. Source: seccomp(2), prctl(2), setrlimit(2); numbers from the kernel's unistd tables.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import resource
import signal
import struct

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
RET_ALLOW, RET_KILL, RET_ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD_WORD, JUMP_EQUAL, JUMP_ANY_BIT, JUMP_AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_ARG0 = 0, 4, 16
CLONE_THREAD = 0x00010000
X32_BIT = 0x40000000
AF_ALLOWED = (1, 2, 10)  # unix, inet, inet6: they lead nowhere in an empty network namespace; vsock would lead out

# name: (x86_64, aarch64); None where the architecture has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "io_uring_setup": (425, 425),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "kexec_file_load": (320, 294),
    # What tells of other processes through the page cache.
    "mincore": (27, 232), "preadv2": (327, 286), "cachestat": (451, 451), "fadvise64": (221, 223),
    "readahead": (187, 213),
    # Memory that no limit of a process counts: System V segments outlive their mapping, memory files have no size.
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279),
}  # fmt: skip
NEW_PROCESS: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
}  # fmt: skip
CLONE, CLONE3, PRCTL, SOCKET = (56, 220), (435, 435), (157, 167), (41, 198)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def limit_resources(limits: dict[str, int]) -> None:
    """Lower the hard limits for good: memory, file size, open files, CPU seconds, processes; no core dump. What is
    below 0 stays as it is."""
    for name, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        if value >= 0:
            resource.setrlimit(name, (value, value))


def die_with_parent() -> None:
    """End this process when the one that started it ends, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def filter_system_calls(allow_processes: bool) -> None:
    """Refuse calls that reach other processes, the kernel or new processes. OSError if the kernel takes no filter.

    A refused call returns EPERM, so Python raises PermissionError; a foreign architecture's call kills the process.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call table for the machine {machine!r}")
    program = _program(*ARCHITECTURES[machine], allow_processes)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the system-call filter was refused")


def _program(column: int, architecture: int, allow_processes: bool) -> bytes:
    """The filter in classic BPF, eight bytes an instruction (linux/filter.h)."""
    refuse = RET_ERRNO | errno.EPERM
    code = [
        _op(LOAD_WORD, OFFSET_ARCH),
        _op(JUMP_EQUAL, architecture, if_true=1),
        _op(RETURN, RET_KILL),
        _op(LOAD_WORD, OFFSET_NUMBER),
        # The x32 calls share x86_64's architecture word and would pass by under other numbers.
        _op(JUMP_AT_LEAST, X32_BIT, if_false=1),
        _op(RETURN, RET_KILL),
    ]
    denied = dict(DENIED) if allow_processes else DENIED | NEW_PROCESS
    for numbers in denied.values():
        if (number := numbers[column]) is not None:
            code += [_op(JUMP_EQUAL, number, if_false=1), _op(RETURN, refuse)]
    # clone3 hides its flags in memory; with ENOSYS the C library falls back to clone, whose flags can be read here.
    code += [_op(JUMP_EQUAL, CLONE3[column], if_false=1), _op(RETURN, RET_ERRNO | errno.ENOSYS)]
    if not allow_processes:
        code += _unless_argument(CLONE[column], [_op(JUMP_ANY_BIT, CLONE_THREAD, if_true=1), _op(RETURN, refuse)])
    code += _unless_argument(PRCTL[column], [_op(JUMP_EQUAL, PR_SET_SECCOMP, if_false=1), _op(RETURN, refuse)])
    families = [_op(JUMP_EQUAL, family, if_true=len(AF_ALLOWED) - i) for i, family in enumerate(AF_ALLOWED)]
    code += _unless_argument(SOCKET[column], [*families, _op(RETURN, refuse)])
    code.append(_op(RETURN, RET_ALLOW))
    return b"".join(code)


def _unless_argument(number: int, checks: list[bytes]) -> list[bytes]:
    """For call `number`: load its first argument, run `checks`, and fall out of them into ALLOW."""
    body = [_op(LOAD_WORD, OFFSET_ARG0), *checks, _op(RETURN, RET_ALLOW)]
    return [_op(JUMP_EQUAL, number, if_false=len(body)), *body]


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, operand)
