"""Grade files on this machine: a few slots, one judge process a job, the journal as memory.

Owns: naming jobs, running them, retrying what was our fault, and handing results back in the order asked. Knows
nothing of what a judge does inside. The hidden suite is never run without a sandbox unless the caller says `none`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import autograder
import labkit
from autograder import nvml
from autograder.course import Course, Lab, seed_id
from autograder.intake import Rejected, read_regular
from autograder.judge.grade import Job
from autograder.judge.verdicts import SubmissionResult, Verdict
from autograder.nvml import Gpu, gpus
from autograder.runners import devices
from autograder.runners.journal import Journal
from autograder.runners.slots import GpuSlots
from autograder.sandbox import tiers
from autograder.sandbox.limits import Limits

INFRA_TRIES = 2
JUDGE_GRACE_S = 60.0
"""How long a judge may take beyond the budget of its submission before it is ended as our fault."""

SANITIZE_S = 240.0
"""And how long it may take for what is no part of that budget: a look at memory accesses (gpu/sanitize.py)."""

JUDGE_TOO_SLOW = "INFRA: the judge did not end in time"
"""Not tried again: a submission might cause it, and would hold the slot once more."""

NOISE = "INFRA: INCONCLUSIVE, the machine was too restless to time anything; grade it again"
"""After the last try that is for staff to do, when nothing else uses the GPU."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Many judges share the cores, and what one computes is small: pools of threads would be in each other's way."""

Progress = Callable[[SubmissionResult], None]


def default_slots() -> int:
    """One slot a core."""
    return max(1, len(os.sched_getaffinity(0)))


def grade_files(
    course: Course,
    lab_id: str,
    paths: Sequence[Path],
    *,
    sandbox: str = "auto",
    device: str = "auto",
    slots: int | None = None,
    sanitize: bool = False,
    progress: Progress | None = None,
    journal: Path | None = None,
) -> list[SubmissionResult]:
    """Grade submissions of one lab; results in the order of `paths`, each journalled when it is finished,
    in the course's own file if no other is named; what is in the journal is not graded again.

    A bad submission gets a result like any other (`rejected`). `progress` is called with each result as it comes.
    `slots` at once: if not said, one a core. On GPUs, of one kind, so many on each: one, unless its memory serves more.
    The clock has a GPU alone either way (gpu/turns.py). What went wrong on one is tried again on another, if there is
    one.
    `sanitize` adds a group of no points on the kernels' memory accesses, on a GPU (gpu/sanitize.py).
    Raises: ValueError for an unknown lab, sandbox or device, and to sanitize without a GPU; NoSandbox if no isolating
    tier works here.
    """
    lab = course.lab(lab_id)
    device = devices.choose(lab, device)
    if sanitize and device != "cuda":
        raise ValueError("--sanitize looks at kernels on a GPU; it needs --device cuda")
    room = GpuSlots(devices.of_one_kind(gpus()), slots or 1) if device == "cuda" else None
    tier = tiers.choose(sandbox)
    suite = course.suite_version(lab)
    kept = Journal(journal or course.state / "journal.sqlite")
    # Two jobs for equal files would both be graded; the later one waits for the first and finds its result.
    locks: dict[str, threading.Lock] = {}
    guard = threading.Lock()

    def one(path: Path) -> SubmissionResult:
        job = dataclasses.replace(_job(course, lab, path, suite, tier, device), sanitize=sanitize)
        job_id = _job_id(job)
        with guard:
            lock = locks.setdefault(job_id, threading.Lock())
        with lock:
            result = _finished_or_run(course, kept, job, job_id, room)
        if progress is not None:
            with guard:
                progress(result)
        return result

    with ThreadPoolExecutor(room.total if room else slots or default_slots()) as pool:
        return list(pool.map(one, paths))


def _job(course: Course, lab: Lab, path: Path, suite: str, tier: str, device: str) -> Job:
    try:
        sha256 = hashlib.sha256(read_regular(path, Limits().submission_bytes)).hexdigest()
    except Rejected:
        # Intake will refuse it again with the same words; its name stands in for content nobody should read.
        sha256 = hashlib.sha256(b"unread:" + os.fsencode(path)).hexdigest()
    return Job(lab.id, os.path.abspath(path), str(path), sha256, suite, course.seed(sha256, suite), tier, device)


def _job_id(job: Job) -> str:
    # The file's kind is part of what is graded: the same bytes are a notebook or a Python file.
    kind = f"{Path(job.path).suffix}{' examined' if job.sanitize else ''}"
    parts = (job.lab, kind, job.sha256, job.suite, seed_id(job.seed), job.tier, job.device)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _finished_or_run(
    course: Course, journal: Journal, job: Job, job_id: str, room: GpuSlots | None
) -> SubmissionResult:
    result = journal.find(job_id)
    gpu: Gpu | None = None
    for _ in range(INFRA_TRIES if result is None else 0):
        with room.one(but=gpu) if room else nullcontext() as gpu:
            result = _sure(job, _run(course, job, gpu, room.at_once if room else 1))
        if result.status == "graded":
            result = journal.add(job_id, result)
        if result.status != "infra" or JUDGE_TOO_SLOW in result.flags:
            break
    assert result is not None
    return dataclasses.replace(result, submission=job.label)


def _sure(job: Job, result: SubmissionResult) -> SubmissionResult:
    """`result`, unless noise kept one of its tests from a verdict: that is no grade, and no fault of the student's."""
    if not any(test.verdict is Verdict.INCONCLUSIVE for group in result.groups for test in group.tests):
        return result
    return job.result("infra", result.seconds, flags=(*result.flags, NOISE))


def _run(course: Course, job: Job, gpu: Gpu | None, sharing: int) -> SubmissionResult:
    """One judge process; it may have to wait for `sharing` - 1 others on its GPU. What goes wrong with it is infra."""
    request = json.dumps({"root": str(course.root), "job": asdict(job), "runner_pid": os.getpid()})
    examining_s = SANITIZE_S if job.sanitize else 0.0
    deadline_s = examining_s + sharing * (course.lab(job.lab).limits(job.device).total_s + JUDGE_GRACE_S)
    # The judge's modules come from where this one's came from, installed or not, and never from the working folder.
    homes = [str(Path(autograder.__file__).parents[1]), str(Path(labkit.__file__).parents[1])]
    environment = {**ONE_THREAD, **os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(homes)}
    environment |= nvml.only([gpu] if gpu else [])
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "autograder.judge"],
            input=request.encode(),
            capture_output=True,
            timeout=deadline_s,
            check=False,
            cwd=course.root,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return job.result("infra", deadline_s, flags=(JUDGE_TOO_SLOW,))
    try:
        return SubmissionResult.from_json(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        reason = f"the judge ended with status {done.returncode}: {' '.join(tail)[:300]}"
        return job.result("infra", 0.0, flags=(f"INFRA: {reason}",))
