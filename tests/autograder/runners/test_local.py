"""Jobs are named by content, done once, and survive kill -9; our own faults are retried and never scored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autograder.course import Course
from autograder.judge.verdicts import SubmissionResult, Verdict
from autograder.nvml import Gpu
from autograder.runners import local
from autograder.runners.journal import Journal
from autograder.runners.local import grade_files
from autograder.sandbox import tiers
from tests.autograder import processes

LAB = "lab3_block_allocator"
pytestmark = pytest.mark.skipif(
    not any(tiers.works(tier) for tier in ("bubblewrap", "unshare")), reason="no sandbox tier works on this machine"
)


@pytest.fixture
def submissions(tmp_path: Path, honest: str) -> list[Path]:
    """One right, one wrong, one that is no submission."""
    contents = {
        "right.py": f"{honest}\nclass BlockAllocator(Honest):\n    pass\n",
        "wrong.py": f"{honest}\nclass BlockAllocator(Honest):\n    def append(self, seq, n=1):\n        return []\n",
        "empty.py": "",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return [tmp_path / name for name in contents]


def points(results: list[SubmissionResult]) -> list[tuple[str, str, float]]:
    return [(Path(result.submission).name, result.status, result.score) for result in results]


def test_results_come_in_the_order_asked_and_are_told_as_they_come(
    small_course: Course, submissions: list[Path]
) -> None:
    seen: list[str] = []
    results = grade_files(small_course, LAB, submissions, progress=lambda result: seen.append(result.submission))
    assert points(results) == [
        ("right.py", "graded", 15.0),
        ("wrong.py", "graded", 10.0),
        ("empty.py", "rejected", 0.0),
    ]
    assert sorted(seen) == sorted(str(path) for path in submissions)


def test_what_is_graded_is_not_graded_again(
    small_course: Course, submissions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = grade_files(small_course, LAB, submissions[:2])
    monkeypatch.setattr(local, "_run", lambda *args: pytest.fail("graded twice"))
    assert grade_files(small_course, LAB, submissions[:2]) == first


def test_equal_files_are_graded_once_under_both_names(small_course: Course, submissions: list[Path]) -> None:
    twin = submissions[0].with_name("twin.py")
    twin.write_bytes(submissions[0].read_bytes())
    results = grade_files(small_course, LAB, [submissions[0], twin], slots=2)
    assert [Path(result.submission).name for result in results] == ["right.py", "twin.py"]
    assert len(Journal(small_course.state / "journal.sqlite")) == 1


def test_a_changed_suite_grades_again(small_course: Course, submissions: list[Path]) -> None:
    (before,) = grade_files(small_course, LAB, submissions[:1])
    with (small_course.lab(LAB).hidden / "test_cost.py").open("a") as file:
        file.write(
            '\n\ndef test_more(make):\n    """It holds more."""\n    assert make(1, 1).num_free_blocks == 2, "no"\n'
        )
    (after,) = grade_files(small_course, LAB, submissions[:1])
    assert before.suite != after.suite
    assert (before.score, after.score) == (15.0, 12.5)


def test_a_judge_that_breaks_is_tried_again_and_never_scored(
    small_course: Course, submissions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def broken(course: Course, job: local.Job, *_: object) -> SubmissionResult:
        tries.append(1)
        return job.result("infra", 0.0, flags=("INFRA: the machine is on fire",))

    monkeypatch.setattr(local, "_run", broken)
    (result,) = grade_files(small_course, LAB, submissions[:1])
    assert (result.status, result.groups, len(tries)) == ("infra", (), local.INFRA_TRIES)
    assert len(Journal(small_course.state / "journal.sqlite")) == 0


def test_noise_is_no_verdict_it_is_tried_again_and_never_scored(
    small_course: Course, submissions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    honest_run = local._run

    def restless(course: Course, job: Any, *where: Any) -> SubmissionResult:
        tried.append(job.label)
        result = honest_run(course, job, *where)
        if len(tried) > noisy:
            return result
        (test, *rest) = result.groups[0].tests
        group = replace(result.groups[0], tests=(replace(test, verdict=Verdict.INCONCLUSIVE), *rest))
        return replace(result, groups=(group, *result.groups[1:]))

    monkeypatch.setattr(local, "_run", restless)
    noisy = 99
    (never,) = grade_files(small_course, LAB, submissions[:1])
    assert (never.status, never.flags, len(tried)) == ("infra", (local.NOISE,), local.INFRA_TRIES)
    tried.clear()
    noisy = 1
    (later,) = grade_files(small_course, LAB, submissions[:1])
    assert (later.status, later.score, len(tried)) == ("graded", 15.0, 2)


def test_each_gpu_has_its_slots_and_a_fault_of_one_is_tried_again_on_another(
    small_course: Course, submissions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = (Gpu("GPU-1", "nvidia0"), Gpu("GPU-2", "nvidia1"))
    met: list[tuple[str, str, int]] = []
    full = threading.Barrier(4, timeout=20)

    def run(course: Course, job: local.Job, gpu: Gpu, sharing: int) -> SubmissionResult:
        met.append((job.label, gpu.node, sharing))
        if len(met) <= 4:
            full.wait()
        broken = gpu == two[0] and Path(job.label).name == "0.py"
        return job.result("infra" if broken else "graded", 0.0)

    files = [submissions[0].with_name(f"{n}.py") for n in range(5)]
    for n, file in enumerate(files):
        file.write_text(f"# {n}\n")
    monkeypatch.setattr(local, "_run", run)
    monkeypatch.setattr(local, "gpus", lambda: (*two, Gpu("GPU-3", "nvidia2", "another kind")))
    monkeypatch.setattr(local.devices, "choose", lambda lab, device: device)
    results = grade_files(small_course, LAB, files, device="cuda", slots=2)
    assert [result.status for result in results] == ["graded"] * 5
    assert sorted(node for _, node, _ in met[:4]) == ["nvidia0", "nvidia0", "nvidia1", "nvidia1"]
    assert {sharing for *_, sharing in met} == {2}
    tries = [node for label, node, _ in met if Path(label).name == "0.py"]
    assert tries in (["nvidia0", "nvidia1"], ["nvidia1"])


def test_a_judge_has_the_gpu_of_its_slot_and_no_other_and_one_thread(
    small_course: Course, submissions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []

    def started(*args: Any, env: dict[str, str], **kwargs: Any) -> Any:
        told.append(env.get("CUDA_VISIBLE_DEVICES"))
        threads.append(env["OMP_NUM_THREADS"])
        raise subprocess.TimeoutExpired("judge", 1)

    threads: list[str] = []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = local._job(small_course, small_course.lab(LAB), submissions[0], "1", "none", "cuda")
    monkeypatch.setattr(local.subprocess, "run", started)
    for gpu in (Gpu("GPU-2", "nvidia1"), Gpu("", "nvidia0"), None):
        local._run(small_course, job, gpu, 1)
    assert told == ["GPU-2", None, None]
    assert threads == ["1"] * 3, "judges share the cores"


def test_kernels_are_examined_on_a_gpu_only_and_their_results_kept_apart(
    small_course: Course, submissions: list[Path]
) -> None:
    with pytest.raises(ValueError, match="--sanitize looks at kernels on a GPU"):
        grade_files(small_course, LAB, submissions[:1], sanitize=True)
    job = local._job(small_course, small_course.lab(LAB), submissions[0], "1", "none", "cuda")
    assert local._job_id(job) != local._job_id(replace(job, sanitize=True))


def test_a_judge_that_says_nothing_is_our_fault(
    small_course: Course, submissions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (result,) = grade_files(small_course, LAB, submissions[:1])
    assert result.status == "infra"


def test_seeds_differ_between_submissions_and_suites_and_repeat_for_staff(small_course: Course) -> None:
    seeds = {small_course.seed(sha, suite) for sha in ("a", "b") for suite in ("1", "2")}
    assert len(seeds) == 4
    assert small_course.seed("a", "1") == Course.open(small_course.root).seed("a", "1")
    assert (small_course.state / "key").stat().st_mode & 0o077 == 0


def test_without_a_sandbox_nothing_is_graded(
    small_course: Course, submissions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "works", lambda tier: False)
    with pytest.raises(tiers.NoSandbox):
        grade_files(small_course, LAB, submissions)


def test_kill_9_in_the_middle_loses_nothing_and_leaves_nobody_behind(
    small_course: Course, submissions: list[Path], honest: str, tmp_path: Path
) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(
        f"{honest}\nimport time\n\nclass BlockAllocator(Honest):\n"
        "    def __init__(self, *args):\n        time.sleep(1)\n        super().__init__(*args)\n"
    )
    script = (
        "import sys; from pathlib import Path; from autograder.course import Course;"
        "from autograder.runners.local import grade_files;"
        "grade_files(Course.open(Path(sys.argv[1])), sys.argv[2], [Path(p) for p in sys.argv[3:]], slots=1)"
    )
    paths = [submissions[0], slow, submissions[1]]
    command = [sys.executable, "-c", script, str(small_course.root), LAB, *map(str, paths)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    journal = Journal(small_course.state / "journal.sqlite")
    deadline = time.monotonic() + 60
    while len(journal) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    # Until the slow one's judge has a worker: before that it looks for its runner by itself.
    judges = processes.children_of(process.pid)
    while not any(processes.children_of(pid) for pid, _ in judges) and time.monotonic() < deadline:
        time.sleep(0.02)
        judges = processes.children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert judges
    assert processes.left_after(2.0, judges) == set(), "it would have graded for seconds more"
    assert len(journal) == 1
    results = grade_files(small_course, LAB, paths)
    assert points(results) == [("right.py", "graded", 15.0), ("slow.py", "graded", 15.0), ("wrong.py", "graded", 10.0)]
    assert len(journal) == 3
