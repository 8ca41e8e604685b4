"""The cases of `cases.py` under pytest-benchmark. Run through `engine bench memory`.

Owns: nothing but the call. pytest finds it only when it is named, and looks for `bench_` here.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from reference_impl.bench.cases import CASES, NotHere


@pytest.mark.parametrize("name", CASES)
def bench_memory(benchmark: BenchmarkFixture, name: str) -> None:
    """One round more than is counted warms up, where there is more than one."""
    case = CASES[name]
    try:
        prepared = [case.prepare()]
    except NotHere as reason:
        pytest.skip(str(reason))

    def setup() -> tuple[tuple[object], dict[str, object]]:
        if case.reusable:
            return (prepared[0],), {}
        return ((prepared.pop() if prepared else case.prepare()),), {}

    benchmark.extra_info["name"] = name
    warms_up = 1 if case.rounds > 1 else 0
    benchmark.pedantic(case.run, setup=setup, rounds=case.rounds, iterations=1, warmup_rounds=warms_up)  # type: ignore[no-untyped-call]
