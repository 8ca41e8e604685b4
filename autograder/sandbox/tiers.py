"""The ways to box a worker on this machine, strongest first, and the commands that do it.

Owns: the command line of each tier. `bubblewrap`: namespaces, a read-only system, small tmpfs, no capabilities.
`unshare`: the same from util-linux alone, by a shell script run inside fresh namespaces. `none`: limits and the
system-call filter only; never chosen, only asked for in so many words. Knows nothing of what the worker does. Mounted
are the system's libraries, the interpreter, the worker's own files, labkit and the packages a lab may use, all
read-only; the course, the tests and the reference are not there at all.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from autograder import nvml

WORKER_HOME = Path(__file__).resolve().parent.parent / "worker"
WORKER_FILES = ("shim.py", "harden.py", "wire.py", "tensors.py", "record.py", "prints.py")
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
SYSTEM_FILES = ("/etc/ld.so.cache",)
DEVICES = ("null", "zero", "full", "random", "urandom")
GPU_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
"""The nodes that all GPUs share; beside them a worker has its own GPU's."""
GPU_FOLDERS = ("/sys",)
KEPT_FOR_A_GPU = ("LD_LIBRARY_PATH",)
"""What says where this machine's driver has its libraries."""
NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    # Some libraries ask who runs them; nobody has no entry where they look.
    "USER": "nobody",
    "LANG": "C.UTF-8",
    # One thread a library: a pool of them costs address space, which is what the memory cap counts.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
MOUNT_POINTS = ("/mnt", "/media", "/srv", "/tmp")
TIERS = ("bubblewrap", "unshare", "none")
INSTALL_HINT = "apt-get install bubblewrap"


class NoSandbox(RuntimeError):  # noqa: N818 - a state of the machine, told to the instructor
    """No tier that isolates works on this machine."""


@dataclass(frozen=True)
class Mounts:
    """What the worker sees: (outside, inside) pairs, all read-only, where its modules are, and the names in /dev of
    devices that it may use beside those that every worker has."""

    pairs: tuple[tuple[str, str], ...]
    shim: str
    paths: tuple[str, ...]
    devices: tuple[str, ...] = ()


def mounts(packages: Sequence[str], boxed: bool = True, gpu: bool = False) -> Mounts:
    """The files a worker needs: worker program, labkit, `packages` (distribution names) with all that they need in
    turn, and the interpreter; with `gpu` also the nodes of the first GPU that this process may use.

    With `boxed` false the same files where they are outside. Raises: ValueError for a package that is not installed.
    """
    labkit = _package_folder("labkit")
    packages = _with_requirements(packages)
    if not boxed:
        parents = [str(labkit.parent), *(str(path.parent) for name in packages for path in _distribution(name))]
        return Mounts((), str(WORKER_HOME / "shim.py"), tuple(dict.fromkeys(parents)))
    pairs = [(str(WORKER_HOME / name), f"/course/worker/{name}") for name in WORKER_FILES]
    pairs.append((str(labkit), "/course/packages/labkit"))
    # Distributions may share a folder: CUDA's all lie in one called nvidia.
    shared = dict.fromkeys(path for name in packages for path in _distribution(name))
    pairs += [(str(path), f"/course/packages/{path.name}") for path in shared]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        pairs.append((sys.base_prefix, sys.base_prefix))
    if gpu:
        pairs += [(folder, folder) for folder in GPU_FOLDERS]
    wanted = [*(each.node for each in nvml.gpus()[:1]), *GPU_DEVICES] if gpu else []
    devices = tuple(name for name in wanted if os.path.exists(f"/dev/{name}"))
    return Mounts(tuple(pairs), "/course/worker/shim.py", ("/course/packages",), devices)


def without_bytecode(packages: Sequence[str]) -> list[Path]:
    """Folders of `packages`, and of what they need, that nobody compiled: a worker cannot write there, so each one
    compiles anew whatever it imports. Raises: ValueError for a package that is not installed."""
    folders = {path for name in _with_requirements(packages) for path in _distribution(name)}
    modules = {folder: folder / "__init__.py" for folder in folders}
    return sorted(
        folder
        for folder, module in modules.items()
        if module.is_file() and not Path(importlib.util.cache_from_source(str(module))).is_file()
    )


def gpu_environment() -> dict[str, str]:
    """The variables that a worker with a GPU keeps of this process's, and the one that names its GPU."""
    kept = {name: os.environ[name] for name in KEPT_FOR_A_GPU if name in os.environ}
    return kept | nvml.only(nvml.gpus())


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"the package {name!r} is not installed")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _installed(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _with_requirements(packages: Sequence[str]) -> list[str]:
    """`packages` and what they require, transitively, as far as it is installed; extras aside. In a fixed order.

    What is required only elsewhere (another system, an older Python) is not installed or does no harm, so the
    conditions behind a requirement need not be worked out.
    """
    found: dict[str, None] = {}
    waiting = list(packages)
    while waiting:
        name = waiting.pop(0)
        key = re.sub(r"[-_.]+", "-", name).lower()
        distribution = _installed(name)
        if key in found or (distribution is None and name not in packages):
            continue
        found[key] = None
        for requirement in (distribution.requires if distribution else None) or ():
            words, _, condition = requirement.partition(";")
            match = re.match(r"[A-Za-z0-9][\w.-]*", words)
            if match and "extra" not in condition:
                waiting.append(match[0])
    return list(found)


def _distribution(name: str) -> list[Path]:
    """The top-level files and folders that a distribution put into site-packages."""
    distribution = _installed(name)
    if distribution is None:
        raise ValueError(f"the package {name!r} is not installed")
    tops = {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
    base = Path(str(distribution.locate_file("")))
    return sorted(base / top for top in tops if top != "__pycache__")


def interpreter() -> str:
    """The base interpreter, outside any virtual environment: only its standard library is wanted."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def command(
    tier: str,
    mounted: Mounts,
    disk_bytes: int,
    program: Sequence[str],
    environment: Mapping[str, str] = ENVIRONMENT,
) -> list[str]:
    """The command that runs `program` in `tier` with that environment and no other variable.

    Raises: ValueError for an unknown tier.
    """
    if tier == "bubblewrap":
        return _bubblewrap(mounted, disk_bytes, program, environment)
    if tier == "unshare":
        return _unshare(mounted, disk_bytes, program, environment)
    if tier == "none":
        return list(program)
    raise ValueError(f"unknown sandbox tier {tier!r}; one of {', '.join(TIERS)}")


def _found(tool: str) -> str:
    """Where a tool lies: the worker's environment, which has a path of its own, is not where it is looked for."""
    return shutil.which(tool) or tool


def _bubblewrap(mounted: Mounts, disk_bytes: int, program: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    args = [_found("bwrap"), "--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
    args += [
        "--die-with-parent",
        "--new-session",
        "--as-pid-1",
        "--cap-drop",
        "ALL",
        "--hostname",
        "sandbox",
        "--clearenv",
    ]
    for name, value in environment.items():
        args += ["--setenv", name, value]
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            args += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            args += ["--ro-bind", folder, folder]
    for file in SYSTEM_FILES:
        args += ["--ro-bind-try", file, file]
    args += ["--proc", "/proc", "--dev", "/dev"]
    for device in mounted.devices:
        args += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    # bubblewrap's own /dev and / are writable tmpfs without a size; closed here, and /dev/shm given one.
    for folder in ("/dev/shm", "/tmp"):
        args += ["--size", str(disk_bytes), "--tmpfs", folder]
    # After the scratch folders, for an interpreter may be installed below one of them.
    for outside, inside in mounted.pairs:
        args += ["--ro-bind", outside, inside]
    args += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return args + list(program)


# Run by /bin/sh as the first process of fresh namespaces, with the mount pairs and the program as arguments. It makes a
# new root, moves into it, and drops to nobody in a nested user namespace, where it has no capability at all.
_UNSHARE_SCRIPT = r"""
set -eu
PATH=/usr/bin:/bin:/usr/sbin:/sbin
root="$1"
shift
mount -t tmpfs -o mode=755,size=1m tmpfs "$root"
bind() {  # outside inside
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root${2%/*}"; : > "$root$2"; fi
  # Recursively, for the kernel refuses to uncover what a mount inside hides; then each of them read-only by itself,
  # with the flags it has, because those of an outer namespace may not be dropped.
  mount --rbind "$1" "$root$2"
  while read -r _ _ _ _ point options _; do
    point=$(printf '%b' "$point")
    case "$point/" in "$root$2/"*) mount -o "remount,bind,ro${options#r[wo]},nosuid" "$point" ;; esac
  done < /proc/self/mountinfo
}
while [ "$1" != -- ]; do
  case "$1" in
    bind) bind "$2" "$3"; shift 3 ;;
    link) mkdir -p "$root${3%/*}"; ln -s "$2" "$root$3"; shift 3 ;;
    device) mkdir -p "$root/dev"; : > "$root/dev/$2"; mount --bind "/dev/$2" "$root/dev/$2"; shift 2 ;;
    scratch) mkdir -p "$root$2"; mount -t tmpfs -o mode=1777,nosuid,nodev,size="$3" tmpfs "$root$2"; shift 3 ;;
  esac
done
shift
mkdir -p "$root/proc" "$root/old"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
cd "$root"
pivot_root . old
umount -l /old
rmdir /old
mount -o remount,bind,ro /
cd /tmp
PATH=/usr/bin:/bin
exec unshare --user --map-user=65534 --map-group=65534 setpriv --no-new-privs -- "$@"
"""


def _unshare(mounted: Mounts, disk_bytes: int, program: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    steps: list[str] = []
    for folder in SYSTEM_FOLDERS:
        if os.path.islink(folder):
            steps += ["link", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            steps += ["bind", folder, folder]
    for file in SYSTEM_FILES:
        if os.path.exists(file):
            steps += ["bind", file, file]
    for outside, inside in mounted.pairs:
        steps += ["bind", outside, inside]
    for device in (*DEVICES, *mounted.devices):
        steps += ["device", device]
    for folder in ("/dev/shm", "/tmp"):
        steps += ["scratch", folder, str(disk_bytes)]
    args = [_found("env"), "-i", *(f"{name}={value}" for name, value in environment.items())]
    # With the judge dies this process, with it (--kill-child) the namespace's first, and with that all others. The
    # signal is asked for inside the user namespace: the kernel forgets what a process asked for before it entered one
    # and gained capabilities there.
    args += ["unshare", "--user", "--map-root-user", "--", "setpriv", "--pdeathsig", "KILL"]
    args += ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts", "--"]
    root = _mount_point([outside for outside, _ in mounted.pairs])
    return [*args, "/bin/sh", "-c", _UNSHARE_SCRIPT, "sh", root, *steps, "--", *program]


def _mount_point(sources: Sequence[str]) -> str:
    """A folder to mount the new root on. What lies under it is hidden from then on, so no source may.

    Raises: NoSandbox if every candidate holds a source.
    """
    for folder in MOUNT_POINTS:
        if os.path.isdir(folder) and not any(Path(source).is_relative_to(folder) for source in sources):
            return folder
    raise NoSandbox(f"no folder to mount the sandbox on: each of {', '.join(MOUNT_POINTS)} is missing or in use")


@cache
def works(tier: str) -> bool:
    """Whether `tier` runs a program here: tried, not guessed."""
    tool = {"bubblewrap": "bwrap", "unshare": "unshare"}.get(tier)
    if tool is not None and shutil.which(tool) is None:
        return False
    # Without the course's packages, so that a broken installation is not taken for a missing sandbox.
    system = Mounts(tuple(pair for pair in mounts(()).pairs if pair[0] == sys.base_prefix), "", ())
    try:
        done = subprocess.run(
            command(tier, system, 1 << 20, [interpreter(), "-I", "-S", "-c", "print('inside')"]),
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, NoSandbox, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == b"inside"


def choose(wanted: str) -> str:
    """The tier to use for `wanted`: a tier's name, or auto for the strongest that works.

    Raises: NoSandbox if auto finds no isolating tier or the named one does not work here; ValueError for another name.
    """
    if wanted == "auto":
        for tier in ("bubblewrap", "unshare"):
            if works(tier):
                return tier
        raise NoSandbox(
            f"no sandbox works on this machine, so hidden grading is refused. Install bubblewrap ({INSTALL_HINT}), or "
            "say --sandbox none to run student code without isolation"
        )
    if wanted not in TIERS:
        raise ValueError(f"unknown sandbox tier {wanted!r}; one of auto, {', '.join(TIERS)}")
    if wanted != "none" and not works(wanted):
        raise NoSandbox(f"the sandbox tier {wanted!r} does not work on this machine")
    return wanted
