"""The grader's own memory does not grow with the number of submissions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autograder.course import Course
from autograder.runners.local import grade_files
from autograder.sandbox import tiers

LAB = "lab3_block_allocator"
WARM_UP, SUBMISSIONS = max(20, 2 * (os.cpu_count() or 1)), 100
"""As many jobs are graded at once as there are cores, each in a thread with memory of its own: all are warmed up."""
GROWTH_MAX_BYTES = 4 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.slow
@pytest.mark.skipif(
    not any(tiers.works(tier) for tier in ("bubblewrap", "unshare")), reason="no sandbox tier works on this machine"
)
def test_memory_is_flat_over_a_hundred_submissions(small_course: Course, tmp_path: Path, honest: str) -> None:
    paths = []
    for number in range(WARM_UP + SUBMISSIONS):
        path = tmp_path / f"s{number}.py"
        path.write_text(f"# {number}\n{honest}\nclass BlockAllocator(Honest):\n    pass\n")
        paths.append(path)
    assert all(result.score == 15.0 for result in grade_files(small_course, LAB, paths[:WARM_UP]))
    before = resident_bytes()
    results = grade_files(small_course, LAB, paths[WARM_UP:])
    assert [result.score for result in results] == [15.0] * SUBMISSIONS
    assert resident_bytes() - before < GROWTH_MAX_BYTES
