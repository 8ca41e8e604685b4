"""Where tokens lie under every way to keep them, what moves them, and what is said of a table that leads elsewhere.

That each computed token is found in its slot, whatever a scheduler does, is for
`tests/reference_impl/sched/test_scheduler_machine.py` to see; here are the rules one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from autograder.course import load_module
from reference_impl.memory import (
    POLICIES,
    Account,
    BlockAllocator,
    Demand,
    ForkingMemory,
    Grant,
    KVManager,
    PagedBlocks,
    PlacedMemory,
    PolicyMemory,
    Reason,
    Refusal,
    Sizes,
    SwappingMemory,
)
from reference_impl.memory.policies import GrowingRanges, PaddedBatch
from reference_impl.plugin import ContractError
from tests import corpus

SIZES = Sizes(48, 16, 4)


def admitted(memory: PolicyMemory, request: int, prompt: int, most: int) -> None:
    assert memory.admit(Demand(request, prompt, most), prompt) == Grant()


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_says_where_tokens_lie(name: str) -> None:
    memory = PolicyMemory(POLICIES[name](SIZES))
    assert isinstance(memory, PlacedMemory)
    assert memory.block_size == (4 if name == "paged" else 1)
    assert memory.num_blocks * memory.block_size == memory.capacity == 48
    admitted(memory, 1, 6, 6)
    admitted(memory, 2, 5, 7)
    tables = [memory.block_table(request) for request in (1, 2)]
    assert [len(table) for table in tables] == ([2, 2] if name == "paged" else [6, 5])
    assert len({block for table in tables for block in table}) == sum(map(len, tables))
    memory.block_table(1).append(-1)
    assert memory.block_table(1) == tables[0]
    with pytest.raises(KeyError, match="no request 3"):
        memory.block_table(3)


def test_the_manager_is_all_that_a_memory_can_be() -> None:
    for protocol in (PlacedMemory, ForkingMemory, SwappingMemory):
        assert isinstance(KVManager(4, 4), protocol)


def test_a_request_that_moves_says_from_which_slot_to_which_for_what_is_computed() -> None:
    memory = PolicyMemory(GrowingRanges(32))
    admitted(memory, 1, 4, 10)
    admitted(memory, 2, 2, 2)
    memory.commit(1, 3)
    assert memory.grow(1, 5) == Grant(copies=((0, 6), (1, 7), (2, 8)))
    assert memory.block_table(1) == [6, 7, 8, 9, 10]


def test_a_range_that_was_left_may_be_given_on_in_the_same_step() -> None:
    # All copies are read before any is written, so that request 3 may move to where 1 has just left.
    memory = PolicyMemory(GrowingRanges(20))
    for request, prompt, most in ((1, 4, 5), (2, 2, 1), (3, 2, 2), (4, 2, 1)):
        admitted(memory, request, prompt, most)
        memory.commit(request, prompt)
    assert memory.grow(1, 5) == Grant(copies=((0, 10), (1, 11), (2, 12), (3, 13)))
    assert memory.grow(3, 3) == Grant(copies=((6, 0), (7, 1)))


def test_rows_of_a_padded_batch_stand_still_once_one_of_them_is_written() -> None:
    memory = PolicyMemory(PaddedBatch(48))
    admitted(memory, 1, 2, 1)
    admitted(memory, 2, 5, 3)
    # Two rows of 5 + 3 slots; prompts end in one column.
    assert [memory.block_table(request) for request in (1, 2)] == [[3, 4], [8, 9, 10, 11, 12]]
    admitted(memory, 3, 7, 2)
    assert memory.block_table(2) == [12, 13, 14, 15, 16]
    memory.commit(2, 1)
    # The first row ends with its first token, before anything was appended: the others stay where they are.
    memory.free(1)
    assert memory.block_table(2) == [12, 13, 14, 15, 16]
    assert memory.block_table(3) == [20, 21, 22, 23, 24, 25, 26]
    assert memory.account() == Account(held=12, reserved=5, internal=13, free=18)
    assert memory.grow(2, 6) == Grant()
    assert memory.block_table(2) == [12, 13, 14, 15, 16, 17]
    refusal = memory.admit(Demand(4, 1, 1), 1)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BATCH_RUNS
    for request in (2, 3):
        memory.free(request)
    admitted(memory, 4, 3, 1)
    assert memory.block_table(4) == [0, 1, 2]


def test_nothing_written_leaves_a_padded_batch_open() -> None:
    memory = PolicyMemory(PaddedBatch(48))
    admitted(memory, 1, 2, 1)
    memory.commit(1, 0)
    admitted(memory, 2, 2, 1)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_commit_beyond_what_is_kept_is_an_error(name: str) -> None:
    memory = PolicyMemory(POLICIES[name](SIZES))
    admitted(memory, 1, 6, 6)
    for tokens in (-1, 7):
        with pytest.raises(ValueError, match=f"num_tokens must be 0 to the 6 slots of request 1, got {tokens}"):
            memory.commit(1, tokens)
    with pytest.raises(KeyError, match="no request 2"):
        memory.commit(2, 1)


def forked(memory: PolicyMemory, prompt: int = 6) -> Refusal | None:
    admitted(memory, 1, prompt, 6)
    memory.commit(1, prompt)
    return memory.fork(1, Demand(2, prompt + 1, 5))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"paged"}))
def test_a_range_cannot_be_forked_and_that_is_a_refusal(name: str) -> None:
    memory = PolicyMemory(POLICIES[name](SIZES))
    refusal = forked(memory)
    assert refusal is not None
    assert refusal.reason is Reason.NOT_SHARED
    assert refusal.needed == 6
    assert refusal.free == memory.account().free
    memory.check_invariants()
    with pytest.raises(KeyError):
        memory.block_table(2)


@pytest.mark.parametrize("path", corpus.files("lab3_block_allocator", "correct"), ids=lambda path: path.stem)
def test_blocks_of_any_allocator_are_forked_and_copied_on_write(path: corpus.Path) -> None:
    memory = PolicyMemory(PagedBlocks(48, 4, load_module(path, f"forked_{path.stem}").BlockAllocator))
    assert forked(memory) is None
    shared = memory.block_table(1)
    assert memory.block_table(2) == shared
    assert memory.account() == Account(held=6, tail=2, free=40)
    answer = memory.grow(2, 7)
    assert isinstance(answer, Grant)
    assert answer.copies == ((shared[1], memory.block_table(2)[1]),)
    assert memory.grow(1, 7) == Grant()
    memory.check_invariants()
    assert memory.account() == Account(held=10, tail=2, free=36)
    memory.free(1)
    memory.check_invariants()
    memory.free(2)
    assert memory.account() == Account(free=48)


def test_a_fork_without_a_block_for_its_copy_is_refused_and_says_what_it_needs() -> None:
    memory = PolicyMemory(PagedBlocks(8, 4))
    assert forked(memory, prompt=2) is None
    admitted(memory, 3, 4, 1)
    assert memory.grow(2, 3) == Refusal(Reason.NO_ROOM, 4, 0, 0)
    memory.free(3)
    assert isinstance(memory.grow(2, 3), Grant)


def test_what_cannot_be_forked_changes_nothing() -> None:
    memory = PolicyMemory(PagedBlocks(48, 4))
    admitted(memory, 1, 6, 6)
    with pytest.raises(ValueError, match="request 1 has 6 slots and 0 computed tokens: commit its step before"):
        memory.fork(1, Demand(2, 7, 5))
    memory.commit(1, 6)
    for wrong, error, words in (
        (lambda: memory.fork(7, Demand(2, 7, 5)), KeyError, "no request 7"),
        (lambda: memory.fork(1, Demand(1, 7, 5)), ValueError, "request 1 is in memory already"),
        (lambda: memory.fork(1, Demand(2, 5, 5)), ValueError, "num_tokens is 5, the parent has 6 computed tokens"),
    ):
        with pytest.raises(error, match=words):
            wrong()
    refusal = memory.fork(1, Demand(2, 7, 42))
    assert refusal is not None
    assert refusal.reason is Reason.NEVER_FITS
    assert memory.account() == Account(held=6, tail=2, free=40)


class ShortTable(BlockAllocator):
    def block_table(self, seq: int) -> list[int]:
        return super().block_table(seq)[:-1]


class StrangeBlock(BlockAllocator):
    def block_table(self, seq: int) -> list[int]:
        return [-1, *super().block_table(seq)[1:]]


class NoTable(BlockAllocator):
    def block_table(self, seq: int) -> list[int]:
        return ["a"]  # type: ignore[list-item]


class RefusesWithRoom(BlockAllocator):
    def allocate(self, seq: int, num_tokens: int) -> None:
        super().allocate(seq, num_tokens + 1000)


class NoCopies(BlockAllocator):
    def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
        super().append(seq, num_tokens)
        return None  # type: ignore[return-value]


class TwoCopies(BlockAllocator):
    def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
        return 2 * (super().append(seq, num_tokens) or [(0, 1)])


class CopyElsewhere(BlockAllocator):
    def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
        super().append(seq, num_tokens)
        return [(0, 11)]


WRONG: dict[type[BlockAllocator], str] = {
    ShortTable: "ShortTable: block_table(1) has 1 blocks: 6 tokens in blocks of 4 need 2",
    StrangeBlock: "StrangeBlock: block_table(1) has block -1, there are 0 to 11",
    NoTable: "NoTable: block_table(1) returned ['a'], which is no list of block ids",
    RefusesWithRoom: "RefusesWithRoom: allocate() or append() raised OutOfBlocks, 2 blocks needed, 12 free",
    NoCopies: "NoCopies: append(1) returned None, which is no list of at most one copy (src, dst)",
    TwoCopies: "TwoCopies: append(1) returned [(0, 1), (0, 1)], which is no list of at most one copy (src, dst)",
    CopyElsewhere: "CopyElsewhere: append(1) returned [(0, 11)], which does not lead into its table",
}


@pytest.mark.parametrize("made_by", WRONG, ids=lambda made_by: made_by.__name__)
def test_an_answer_that_the_contract_does_not_allow_is_named(made_by: Callable[[int, int], BlockAllocator]) -> None:
    memory = PolicyMemory(PagedBlocks(48, 4, made_by))
    with pytest.raises(ContractError) as caught:  # noqa: PT012 - which call notices it depends on the mistake
        memory.admit(Demand(1, 6, 6), 6)
        memory.block_table(1)
        memory.commit(1, 6)
        memory.grow(1, 7)
    assert str(caught.value) == WRONG[made_by]  # type: ignore[index]
