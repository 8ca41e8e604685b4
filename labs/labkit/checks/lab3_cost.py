"""Lab 3, group cost: work per call.

Owns: pairs of situations that differ only in what a call must not pay for, timed against each other. The limit is
generous, for this runs on anybody's machine: it finds a search or a copy of everything, not a slow constant. The
graded test measures a sweep of sizes with the grader's own clock.
"""

from __future__ import annotations

import time

from labkit.checks.pool import Pool
from labkit.checks.story import Make, group

Calls = list[tuple[str, tuple[int, ...]]]

_BLOCK_SIZE = 16
_LIMIT = 6.0
"""How many times as long the large case may take. Measured: seven right designs up to 1.3, `list.pop(0)` 18."""
_ATTEMPTS = 4
"""A busy machine is given this many chances before a ratio counts."""


def cost_does_not_depend_on_the_pool(make: Make) -> None:
    """allocate, append and free take as long in a large pool as in a small one."""
    _compare(
        _half_full(make, 128), _half_full(make, 1 << 18), "the pool has 128 blocks", "it has 262,144", _short_lives()
    )


def cost_does_not_depend_on_other_sequences(make: Make) -> None:
    """allocate, append and free take as long beside 2,000 sequences as beside 2."""
    _compare(_crowded(make, 2), _crowded(make, 2000), "2 other sequences live", "2,000 do", _short_lives())


def cost_of_append_does_not_depend_on_length(make: Make) -> None:
    """append takes as long on a long sequence as on a short one."""
    _compare(_long(make, 4), _long(make, 1 << 15), "the sequence has 4 blocks", "it has 32,768", _appends())


def _half_full(make: Make, num_blocks: int) -> Pool:
    pool = Pool(make, num_blocks, _BLOCK_SIZE)
    pool.allocate(0, num_blocks // 2 * _BLOCK_SIZE)
    return pool


def _crowded(make: Make, others: int) -> Pool:
    pool = Pool(make, 4096, _BLOCK_SIZE)
    for seq in range(others):
        pool.allocate(seq, 1)
    return pool


def _long(make: Make, num_blocks: int) -> Pool:
    pool = Pool(make, 1 << 16, _BLOCK_SIZE)
    pool.allocate(0, num_blocks * _BLOCK_SIZE)
    return pool


def _short_lives() -> Calls:
    """150 calls that leave the pool as it was."""
    calls: Calls = []
    for seq in range(1_000_000, 1_000_050):
        calls += [("allocate", (seq, 2 * _BLOCK_SIZE)), ("append", (seq, _BLOCK_SIZE)), ("free", (seq,))]
    return calls


def _appends() -> Calls:
    return [("append", (0, _BLOCK_SIZE))] * 150


def _compare(small: Pool, large: Pool, small_case: str, large_case: str, calls: Calls) -> None:
    """Broken if the calls take over `_LIMIT` times as long on `large`, however often it is tried."""
    best_small = best_large = float("inf")
    for _ in range(_ATTEMPTS):
        # Interleaved, so that a busy spell of the machine falls on both.
        for _ in range(5):
            best_small = min(best_small, _seconds(small, calls))
            best_large = min(best_large, _seconds(large, calls))
        if best_large <= _LIMIT * best_small:
            return
    large.broken(
        f"{len(calls)} calls when {large_case} to take about as long as when {small_case},"
        f" they took more than {_LIMIT:g} times as long"
    )


def _seconds(pool: Pool, calls: Calls) -> float:
    """Seconds for all calls, in the clock of the object's own side where it has one (the grader's objects do)."""
    timed = getattr(pool.subject, "timed_batch_s", None)
    method = ""
    try:
        if timed is not None:
            return float(timed(calls))
        start = time.perf_counter()
        for method, args in calls:
            getattr(pool.subject, method)(*args)
        return time.perf_counter() - start
    except Exception as raised:
        pool.broken_by(raised, method)


COST = group(
    "Work per call",
    cost_does_not_depend_on_the_pool,
    cost_does_not_depend_on_other_sequences,
    cost_of_append_does_not_depend_on_length,
)
