"""The process that plays plans says when it is ready, which takes seconds and no GPU."""

from __future__ import annotations

import pytest

from autograder.gpu.process import READY, Replay
from tests.triton_here import import_triton


@pytest.mark.skipif(not import_triton(), reason="Triton is not installed here")
def test_it_is_ready_without_a_turn_on_the_gpu() -> None:
    with Replay() as replay:
        for _ in range(2):
            assert replay.request(120.0, op=READY) == ({}, [])
