"""The KV manager where requests share: fork, copy-on-write, and slots that are taken back."""

from __future__ import annotations

import pytest

from reference_impl.memory.accounting import Account
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import Reason
from tests.reference_impl.memory.manager_steps import demand, forked, refused, seen


def test_a_fork_shares_every_block_and_takes_none() -> None:
    manager = KVManager(8, 4)
    forked(manager)
    assert manager.block_table(2) == manager.block_table(1) == [0, 1]
    assert manager.num_free_blocks == 6
    assert manager.account() == Account(held=6, tail=2, free=24)
    manager.check_invariants()


def test_the_first_writer_of_a_shared_tail_copies_it_and_the_last_holder_writes_in_place() -> None:
    manager = KVManager(8, 4)
    forked(manager)
    assert manager.grow(2, 7) == Grant(copies=((1, 2),))
    assert manager.grow(1, 7) == Grant()
    assert (manager.block_table(1), manager.block_table(2)) == ([0, 1], [0, 2])
    assert manager.grow(2, 8) == Grant()
    manager.check_invariants()


def test_a_shared_tail_that_is_full_is_never_copied() -> None:
    manager = KVManager(8, 4)
    forked(manager, tokens=8)
    assert manager.grow(2, 9) == Grant()
    assert manager.grow(1, 9) == Grant()
    assert (manager.block_table(1), manager.block_table(2)) == ([0, 1, 3], [0, 1, 2])


def test_copy_and_growth_are_one_request_for_memory() -> None:
    manager = KVManager(3, 4, full_fit=False)
    forked(manager, tokens=6)
    before = seen(manager)
    refused(manager, manager.grow(2, 10), Reason.NO_ROOM, 8, 4)
    assert seen(manager) == before
    assert manager.grow(2, 8) == Grant(copies=((1, 2),))


def test_a_request_is_forked_between_steps_only() -> None:
    manager = KVManager(8, 4)
    manager.admit(demand(1, 6, 9), 6)
    with pytest.raises(ValueError, match="request 1 has 6 slots and 0 computed tokens: commit its step, or truncate"):
        manager.fork(1, demand(2, 7))


@pytest.mark.parametrize(
    ("child", "words"),
    [
        (demand(1, [1, 2, 3]), "request 1 is in memory already"),
        (demand(2, [1, 2]), "num_tokens is 2, the parent has 3 computed tokens"),
        (demand(2, [1, 2, 4, 5]), "token_ids do not begin with the 3 tokens of request 1"),
        (demand(2, 4), "token_ids do not begin with the 3 tokens of request 1"),
        (demand(2, [1, 2, 3, 4], salt="x"), "salt is 'x', the parent's is ''"),
    ],
)
def test_a_child_that_does_not_begin_as_its_parent_is_refused(child: Demand, words: str) -> None:
    manager = KVManager(8, 2, prefix_cache="hash")
    manager.admit(demand(1, [1, 2, 3], 5), 3)
    manager.commit(1, 3)
    before = seen(manager)
    with pytest.raises(ValueError, match=words):
        manager.fork(1, child)
    assert seen(manager) == before


def test_a_child_that_never_fits_is_refused() -> None:
    manager = KVManager(4, 2)
    manager.admit(demand(1, 3), 3)
    manager.commit(1, 3)
    refused(manager, manager.fork(1, demand(2, 4, 9)), Reason.NEVER_FITS, 12, 4)
    with pytest.raises(KeyError, match="no request 2"):
        manager.block_table(2)


def test_only_accepted_tokens_are_ever_found() -> None:
    # vLLM #18668 and #47926: draft tokens came into the prefix cache before they were accepted.
    manager = KVManager(8, 2, prefix_cache="hash")
    asked = demand(1, [1, 2, 3], 9)
    manager.admit(asked, 3)
    manager.commit(1, 3)
    manager.grow(1, 8)  # Four drafts behind the next token; one is accepted.
    manager.truncate(1, 5)
    assert asked.token_ids is not None
    asked.token_ids.extend([4, 5])
    manager.commit(1, 5)
    manager.check_invariants()
    assert manager.match(demand(2, [1, 2, 3, 4, 5, 6, 7])) == 4
    with pytest.raises(ValueError, match="num_tokens must be 0 to the 5 slots of 1, got 6"):
        manager.commit(1, 6)


def test_truncation_gives_back_the_blocks_behind_the_end_and_nothing_computed() -> None:
    manager = KVManager(8, 2)
    manager.admit(demand(1, 3, 9), 3)
    manager.commit(1, 3)
    manager.grow(1, 9)
    manager.truncate(1, 4)
    assert (manager.block_table(1), manager.num_free_blocks) == ([0, 1], 6)
    for num_tokens in (2, 5):
        with pytest.raises(ValueError, match=rf"num_tokens must be 3 \(computed\) to 4 \(slots\), got {num_tokens}"):
            manager.truncate(1, num_tokens)
    manager.grow(1, 5)
    assert len(manager.block_table(1)) == 3


def test_a_tail_that_is_cut_back_to_the_shared_part_is_still_copied_before_it_is_written() -> None:
    manager = KVManager(8, 4)
    forked(manager, tokens=6)
    manager.truncate(2, 6)
    assert manager.grow(2, 7) == Grant(copies=((1, 2),))
    manager.truncate(2, 6)
    assert manager.grow(2, 7) == Grant()
    manager.check_invariants()
