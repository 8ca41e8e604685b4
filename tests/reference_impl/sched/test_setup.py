"""From names to parts: what each name is made of, and what does not go together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reference_impl.memory import Account, EventLog
from reference_impl.memory.cache_memory import PrefixCacheMemory
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.policies import GrowingRanges, PaddedBatch, ReservedRanges
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.sched import ContinuousBatching, PrefillFirst, Request, ShortestFirst, StaticBatching
from reference_impl.sched.setup import ALLOCATORS, Setup, build

PAGED = Setup("paged", "continuous", kv_tokens=1_000, max_length=100)


def student_cache(folder: Path) -> str:
    """A file with a cache that keeps the contract of lab 5, as it is named on the command line."""
    path = folder / "my_cache.py"
    path.write_text("from reference_impl.memory import PrefixCache as Mine\n")
    return f"{path}:Mine"


def student_scheduler(folder: Path) -> str:
    """A file with a scheduler that keeps the contract of lab 6, as it is named on the command line."""
    path = folder / "mine.py"
    path.write_text("from reference_impl.sched.contract import Scheduler as Mine\n")
    return f"{path}:Mine"


@pytest.mark.parametrize(
    ("allocator", "kind"),
    [
        ("padded", PaddedBatch),
        ("contiguous", ReservedRanges),
        ("pow2", ReservedRanges),
        ("oracle", ReservedRanges),
        ("grow", GrowingRanges),
    ],
)
def test_every_policy_gets_the_same_whole_blocks_as_paging(allocator: str, kind: type) -> None:
    memory = build(replace(PAGED, allocator=allocator)).memory
    assert isinstance(memory, PolicyMemory)
    assert isinstance(memory.policy, kind)
    assert memory.capacity == build(PAGED).memory.capacity == 62 * 16


@pytest.mark.parametrize(
    ("scheduler", "kind", "chunked", "budget"),
    [
        ("continuous", ContinuousBatching, True, 2_048),
        ("orca", ContinuousBatching, False, None),
        ("prefill-first", PrefillFirst, False, None),
        ("static", StaticBatching, False, None),
    ],
)
def test_every_scheduler_has_its_kind_and_its_limits(
    scheduler: str, kind: type, chunked: bool, budget: int | None
) -> None:
    built = build(replace(PAGED, scheduler=scheduler, max_running=7))
    assert type(built) is kind
    assert built.chunked is chunked
    assert built.limits.max_tokens_per_step == budget
    assert (built.limits.max_running, built.limits.max_request_tokens) == (7, 100)


def test_padded_rows_are_always_static() -> None:
    padded = replace(PAGED, allocator="padded")
    assert padded.effective().scheduler == "static"
    assert isinstance(build(padded), StaticBatching)


def test_what_only_paging_has_is_not_said_of_others() -> None:
    extras = {"watermark": 0.1, "prefix_cache": "hash", "recovery": "swap", "host_tokens": 64}
    for allocator in ALLOCATORS:
        said = replace(PAGED, allocator=allocator, **extras).effective()
        found = (said.watermark, said.prefix_cache, said.recovery, said.host_tokens)
        assert found == ((0.1, "hash", "swap", 64) if allocator == "paged" else (0.0, "none", "recompute", 0))


def test_the_manager_gets_its_extras() -> None:
    memory = build(replace(PAGED, watermark=0.1, recovery="swap", host_tokens=160)).memory
    assert isinstance(memory, KVManager)
    assert memory.num_watermark_blocks == 7
    assert memory._host.num_blocks == 10
    memory = build(replace(PAGED, recovery="swap")).memory
    assert isinstance(memory, KVManager)
    assert memory._host.num_blocks == 62


def test_the_cheaper_way_needs_a_rule() -> None:
    setup = replace(PAGED, recovery="cheaper")
    with pytest.raises(ValueError, match="recovery 'cheaper' needs a rule to decide by"):
        build(setup)
    assert isinstance(build(setup, cheaper=lambda request: "swap"), ContinuousBatching)


@pytest.mark.parametrize("scheduler", ["continuous", "orca", "prefill-first", "static", "file"])
def test_a_log_hears_memory_and_scheduler(scheduler: str, tmp_path: Path) -> None:
    log = EventLog()
    name = student_scheduler(tmp_path) if scheduler == "file" else scheduler
    built = build(replace(PAGED, scheduler=name), log=log)
    built.add(Request(4, 20, 2))
    built.schedule()
    assert log.is_of(built.memory)
    assert log.counts() == {"create": 1, "admit": 1, "allocate": 1}


@pytest.mark.parametrize("allocator", [*(name for name in ALLOCATORS if name != "paged"), "x/mine.py:Mine"])
def test_only_paged_memory_keeps_a_log(allocator: str) -> None:
    with pytest.raises(ValueError, match=f"only paged memory keeps a log, {allocator} keeps none"):
        build(replace(PAGED, allocator=allocator), log=EventLog())


@pytest.mark.parametrize("scheduler", ["continuous", "orca", "prefill-first", "static"])
def test_the_queue_may_be_another(scheduler: str) -> None:
    queue = ShortestFirst()
    assert build(replace(PAGED, scheduler=scheduler), queue=queue).queue is queue  # type: ignore[attr-defined]


def test_a_scheduler_from_a_file_takes_no_queue(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has an order of its own"):
        build(replace(PAGED, scheduler=student_scheduler(tmp_path)), queue=ShortestFirst())


def test_a_prefix_cache_from_a_file_is_the_memory(tmp_path: Path) -> None:
    memory = build(replace(PAGED, prefix_cache=student_cache(tmp_path))).memory
    assert isinstance(memory, PrefixCacheMemory)
    assert (memory.num_blocks, memory.block_size) == (62, 16)
    assert memory.account() == Account(free=62 * 16)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"watermark": 0.1}, "watermark 0.1 does not go with a prefix cache from a file: leave it at 0.0"),
        ({"recovery": "swap"}, "recovery 'swap' does not go with a prefix cache from a file: leave it at 'recompute'"),
        ({"eviction": "fifo"}, "eviction 'fifo' does not go with a prefix cache from a file: leave it at 'lru'"),
    ],
)
def test_what_a_prefix_cache_from_a_file_cannot_do_is_refused(
    extra: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        build(replace(PAGED, prefix_cache=student_cache(tmp_path), **extra))  # type: ignore[arg-type]


def test_a_prefix_cache_from_a_file_goes_with_paged_memory_alone_and_keeps_no_log(tmp_path: Path) -> None:
    theirs = replace(PAGED, prefix_cache=student_cache(tmp_path))
    assert replace(theirs, allocator="pow2").effective().prefix_cache == "none"
    with pytest.raises(ValueError, match=r"only paged memory keeps a log, .*my_cache\.py:Mine keeps none"):
        build(theirs, log=EventLog())


def test_names_that_are_none_are_refused() -> None:
    for what, name in (("allocator", "best"), ("scheduler", "best"), ("prefix_cache", "lru"), ("recovery", "none")):
        with pytest.raises(ValueError, match=f"no {what.replace('_', ' ')} '{name}'; there are "):
            replace(PAGED, **{what: name})  # type: ignore[arg-type]
