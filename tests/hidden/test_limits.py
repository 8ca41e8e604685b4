"""The caps that suites name: what they must leave room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from autograder.course import Course
from autograder.judge.suite import hidden_tests

COURSE = Course.open(Path(__file__).parents[2])


@pytest.mark.parametrize("lab_id", ["lab3_block_allocator", "lab4_paged_attention"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_function_that_kills_its_worker_in_every_test_leaves_workers_for_the_others(lab_id: str, device: str) -> None:
    lab = COURSE.lab(lab_id)
    # One for each test, and those of the rehearsal and of the counterexamples.
    assert lab.limits(device).restarts > len(hidden_tests(lab)) + len(lab.groups) + 1
