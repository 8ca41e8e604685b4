"""A class from a file at work: what it raises is one line that names file, line, class, method and exception."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from labkit.contracts import BlockAllocator, OutOfBlocks, PrefixCache, Scheduler
from reference_impl.memory import Demand, PagedBlocks, PolicyMemory
from reference_impl.memory.cache_memory import PrefixCacheMemory
from reference_impl.plugin import PluginError, contract_methods, load_maker, named
from reference_impl.sched import Request
from reference_impl.sched.setup import EXPECTED, Setup, build

RAISES = """
from labkit.contracts import OutOfBlocks
from reference_impl.{module} import {base}

class Mine({base}):
    def {method}(self, *args):
        {act}
"""
PARTS = {
    Scheduler: ("sched.contract", "Scheduler"),
    BlockAllocator: ("memory.block_allocator", "BlockAllocator"),
    PrefixCache: ("memory.prefix_cache", "PrefixCache"),
}


def broken(folder: Path, contract: type, method: str, act: str) -> str:
    """Our own class in a file, but for one method, which does `act` in line 7."""
    module, base = PARTS[contract]
    path = folder / "mine.py"
    path.write_text(RAISES.format(module=module, base=base, method=method, act=act))
    return f"{path}:Mine"


def serve(place: str, contract: type) -> None:
    """A few steps with the class at `place` in its part."""
    part = {Scheduler: "scheduler", BlockAllocator: "allocator", PrefixCache: "prefix_cache"}[contract]
    names = {"allocator": "paged", "scheduler": "continuous"} | {part: place}
    scheduler = build(Setup(**names, kv_tokens=400, max_length=100, block_size=4))  # type: ignore[arg-type]
    first, second = (Request(identity, 7, 9, token_ids=array("i", range(7))) for identity in (1, 2))
    scheduler.add(first)
    scheduler.add(second)
    scheduler.schedule()
    children = {1: [(Request(3, 7, 9, token_ids=array("i", range(7))), 5)]} if scheduler.can_fork else {}
    scheduler.finish_step((), {1: 3, 2: 4}, children)
    for _ in range(3):
        plan = scheduler.schedule()
        memory = scheduler.memory
        assert all(memory.block_table(request) for request in plan.scheduled)  # type: ignore[attr-defined]
        scheduler.finish_step((), dict.fromkeys(plan.scheduled, 1))
    memory.account()
    scheduler.abort(2)


@pytest.mark.parametrize(
    ("contract", "method"),
    [
        *((Scheduler, name) for name in ("__init__", "add", "abort", "schedule", "finish_step")),
        *((BlockAllocator, name) for name in ("__init__", "allocate", "append", "fork", "free", "block_table")),
        *((PrefixCache, name) for name in ("__init__", "acquire", "commit", "release", "block_table")),
    ],
)
def test_what_a_class_raises_is_one_line_with_file_line_class_and_method(
    contract: type, method: str, tmp_path: Path
) -> None:
    place = broken(tmp_path, contract, method, "[].pop()")
    with pytest.raises(PluginError) as caught:
        serve(place, contract)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'mine.py'}, line 7: IndexError: pop from empty list, out of Mine")
    assert said.endswith(f"Mine.{method}") or method == "__init__"
    assert "\n" not in said


@pytest.mark.parametrize("contract", PARTS)
def test_our_own_class_from_a_file_serves(contract: type, tmp_path: Path) -> None:
    serve(broken(tmp_path, contract, "nothing_of_the_contract", "pass"), contract)


@pytest.mark.parametrize(
    ("contract", "method", "act", "words"),
    [
        (BlockAllocator, "append", "raise SystemExit", "SystemExit: no message"),
        (BlockAllocator, "append", "raise ValueError('first\\nsecond')", "ValueError: first, out of Mine.append"),
        (BlockAllocator, "fork", "raise OutOfBlocks(1, 0)", "OutOfBlocks: 1 blocks needed, 0 free"),
        (Scheduler, "add", "raise KeyError(1)", "KeyError: 1"),
        (PrefixCache, "acquire", "return self.acquire(*args)", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_only_what_the_contract_says_may_be_raised_passes(
    contract: type, method: str, act: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(PluginError) as caught:
        serve(broken(tmp_path, contract, method, act), contract)
    assert words in str(caught.value)


def test_a_full_memory_is_no_mistake_of_the_class(tmp_path: Path) -> None:
    for contract in (BlockAllocator, PrefixCache):
        place = broken(tmp_path, contract, "nothing_of_the_contract", "pass")
        made = load_maker(place, contract, EXPECTED[contract])(2, 4)
        memory = (
            PrefixCacheMemory(made, 2, 4)
            if contract is PrefixCache
            else PolicyMemory(PagedBlocks(8, 4, lambda *sizes, made=made: made))
        )
        asked = [Demand(request, 8, 1, token_ids=array("i", range(8))) for request in (1, 2)]
        if contract is BlockAllocator:
            asked = [Demand(request, 7, 1) for request in (1, 2)]
        memory.admit(asked[0], 7)
        assert "NO_ROOM" in repr(memory.admit(asked[1], 7))


def test_a_property_is_guarded_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n    def __init__(self, *sizes): pass\n    num_free_blocks = property(lambda self: 1 / 0)\n"
        + "".join(f"    def {name}(self, *args): pass\n" for name in contract_methods(BlockAllocator))
    )
    made = load_maker(f"{path}:Mine", BlockAllocator, {})(2, 4)
    with pytest.raises(PluginError, match=r"mine\.py, line 3: ZeroDivisionError: .*, out of Mine\.num_free_blocks"):
        made.num_free_blocks  # noqa: B018
    with pytest.raises(PluginError, match=r"has no attribute 'holes', out of Mine\.holes"):
        made.holes  # noqa: B018


def test_messages_call_an_object_by_its_file_or_by_its_class(tmp_path: Path) -> None:
    place = broken(tmp_path, BlockAllocator, "nothing_of_the_contract", "pass")
    assert named(load_maker(place, BlockAllocator, {})(2, 4)) == place
    assert named(3) == "int"


def test_an_interrupt_passes(tmp_path: Path) -> None:
    place = broken(tmp_path, BlockAllocator, "append", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        serve(place, BlockAllocator)


def test_our_own_classes_are_not_wrapped() -> None:
    assert type(PagedBlocks(8, 4).blocks).__name__ == "BlockAllocator"
    assert OutOfBlocks is EXPECTED[BlockAllocator]["append"]
