"""The reference checks its own invariants under any program; its contract is tested by the hidden tests of lab 3."""

from __future__ import annotations

import contextlib
import random

import pytest

from labkit.contracts import BlockAllocator as Contract
from labkit.contracts import OutOfBlocks
from reference_impl.memory import BlockAllocator, BlockTable


@pytest.mark.parametrize("seed", range(20))
def test_the_invariants_hold_after_every_call_of_a_random_program(seed: int) -> None:
    dice = random.Random(seed)
    allocator = BlockAllocator(dice.randint(1, 20), dice.randint(1, 5))
    for _ in range(300):
        seq, other, tokens = dice.randrange(8), dice.randrange(8), dice.randint(0, 12)
        call = dice.choice(("allocate", "append", "append", "fork", "free"))
        arguments = {"allocate": (seq, tokens), "append": (seq, tokens), "fork": (seq, other), "free": (seq,)}[call]
        with contextlib.suppress(KeyError, ValueError, OutOfBlocks):
            getattr(allocator, call)(*arguments)
        allocator.check_invariants()


def test_it_has_the_shape_of_the_contract() -> None:
    assert isinstance(BlockAllocator(1, 1), Contract)


def test_a_refusal_says_how_many_blocks_were_needed_and_free() -> None:
    allocator = BlockAllocator(3, 4)
    allocator.allocate(1, 5)
    with pytest.raises(OutOfBlocks, match="2 blocks needed, 1 free"):
        allocator.append(1, 8)


def test_a_number_that_is_no_integer_is_refused_and_changes_nothing() -> None:
    allocator = BlockAllocator(3, 4)
    with pytest.raises(TypeError):
        allocator.allocate(1, 2.0)  # type: ignore[arg-type]
    assert allocator.num_free_blocks == 3
    allocator.check_invariants()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda a: a._tables[1].blocks.pop(), "I5"),
        (lambda a: a._pool.share([a._tables[1].blocks[0]]), "I2: block 0 counts 2 holders, 1 tables hold it"),
        (lambda a: a._tables[1].blocks.__setitem__(1, a._tables[1].blocks[0]), "I8"),
    ],
)
def test_the_invariants_name_the_offender(harm: object, words: str) -> None:
    allocator = BlockAllocator(4, 2)
    allocator.allocate(1, 3)
    harm(allocator)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=words):
        allocator.check_invariants()


def test_slots_follow_the_blocks() -> None:
    table = BlockTable(4, [7, 2], 6)
    assert table.slot_mapping(2, 6) == [30, 31, 8, 9]
    with pytest.raises(ValueError, match=r"tokens 2\.\.7 of a sequence of 6"):
        table.slot_mapping(2, 7)
