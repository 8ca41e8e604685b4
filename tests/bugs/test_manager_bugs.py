"""Bugs of the memory of a whole engine: requests that come, are refused, swapped out and found again.

The threads named are where engines met them. See `mutants.py` for what becomes of MUTANTS.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import pytest

from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import Reason, Refusal
from tests.bugs.mutants import Mutant

on_each = pytest.mark.parametrize("index", ["hash", "radix"])


def wants(request: int, tokens: Iterable[int], max_new_tokens: int = 1, salt: str = "") -> Demand:
    ids = array("i", tokens)
    return Demand(request, len(ids), max_new_tokens, token_ids=ids, salt=salt)


def admit(memory: KVManager, demand: Demand) -> int:
    """All of it at once; returns the tokens reused."""
    grant = memory.admit(demand, demand.num_tokens)
    assert isinstance(grant, Grant), grant
    return grant.num_reused


def compute(memory: KVManager, demand: Demand) -> list[int]:
    """Admitted, computed and gone again; returns the table it had."""
    admit(memory, demand)
    memory.commit(demand.request, demand.num_tokens)
    table = memory.block_table(demand.request)
    memory.free(demand.request)
    return table


def refused(answer: object, reason: Reason) -> None:
    assert isinstance(answer, Refusal), f"not refused: {answer}"
    assert answer.reason is reason


def seen(memory: KVManager, requests: Iterable[int], prompts: Iterable[Demand]) -> list[Any]:
    """All that a caller can see of the memory."""
    tables = [memory.block_table(request) for request in requests]
    return [memory.num_free_blocks, memory.account(), memory.num_evicted, tables, [memory.match(d) for d in prompts]]


@on_each
def test_bug_04_a_refused_request_leaves_the_blocks_it_would_have_found_as_they_were(index: Any) -> None:
    # vLLM #11565: blocks were touched before the capacity check, and a refusal leaked the references.
    memory = KVManager(4, 2, prefix_cache=index)
    compute(memory, wants(1, [1, 2, 3, 4]))
    admit(memory, wants(2, [9, 9, 9]))
    refused(memory.admit(wants(3, [1, 2, 3, 4, 5, 6, 7]), 3), Reason.NO_ROOM)
    memory.check_invariants()
    memory.free(2)
    assert memory.num_free_blocks == 4


@on_each
def test_bug_05_a_memory_full_of_ones_own_prefix_gives_it_and_one_more_block(index: Any) -> None:
    # vLLM #10507: allocation before the touch evicted the hit and handed it out as new.
    memory = KVManager(3, 2, prefix_cache=index)
    head = compute(memory, wants(1, [1, 2, 3, 4]))
    compute(memory, wants(2, [7, 8]))
    assert admit(memory, wants(3, [1, 2, 3, 4, 5])) == 4
    assert memory.block_table(3)[:2] == head
    assert sorted(memory.block_table(3)) == [0, 1, 2]
    memory.check_invariants()


@on_each
def test_bug_06_of_two_requests_of_one_step_the_second_does_not_get_what_the_first_found(index: Any) -> None:
    # vLLM #37164: one request looked up, another allocated, the first one touched: tokens of the one in the other.
    memory = KVManager(3, 2, prefix_cache=index)
    head = compute(memory, wants(1, [1, 2, 3, 4]))
    assert admit(memory, wants(2, [1, 2, 3, 4, 5])) == 4
    refused(memory.admit(wants(3, [6, 7]), 2), Reason.NO_ROOM)
    assert memory.block_table(2)[:2] == head


@on_each
def test_bug_07_who_comes_back_from_the_host_holds_all_it_finds_before_it_takes_a_block(index: Any) -> None:
    # vLLM #44409: with several groups of layers, one group's new blocks evicted the next group's hits. Ours are two
    # tiers: what is still on the device is held before a block is taken for what comes from the host.
    memory = KVManager(3, 2, prefix_cache=index, num_host_blocks=3)
    admit(memory, wants(1, [1, 2, 3, 4, 5]))
    memory.commit(1, 5)
    head = memory.block_table(1)[:2]
    copies = memory.swap_out(1)
    assert isinstance(copies, tuple)
    assert len(copies) == 3
    compute(memory, wants(2, [8, 9]))
    back = memory.swap_in(1)
    assert isinstance(back, tuple)
    assert memory.block_table(1)[:2] == head
    assert [dst for _, dst in back] == memory.block_table(1)[2:]
    assert sorted(memory.block_table(1)) == [0, 1, 2]
    memory.check_invariants()


@on_each
def test_bug_10_a_block_that_was_evicted_no_longer_counts_as_published(index: Any) -> None:
    # The same as attention-gym's erase, with the map from a block to its content.
    memory = KVManager(2, 2, prefix_cache=index)
    compute(memory, wants(1, [1, 2, 3, 4]))
    admit(memory, wants(2, [5, 6, 7]))
    memory.check_invariants()
    memory.free(2)
    assert memory.match(wants(3, [1, 2, 3, 4, 5])) == 0
    memory.check_invariants()


@on_each
def test_bug_11_a_block_that_several_hold_is_counted_once_in_every_column(index: Any) -> None:
    # sglang #35270: shared pages stood in two columns, and the check of an idle server killed it.
    memory = KVManager(6, 4, prefix_cache=index)
    admit(memory, wants(1, [1, 2, 3, 4, 5, 6]))
    memory.commit(1, 6)
    for child in (2, 3):
        assert memory.fork(1, wants(child, [1, 2, 3, 4, 5, 6])) is None
    account = memory.account()
    assert (account.held, account.tail, account.free) == (6, 2, 16)
    for ended in (2, 1):
        memory.free(ended)
        assert memory.account() == account
    memory.free(3)
    assert memory.account().free == memory.capacity
    memory.check_invariants()


@on_each
def test_bug_12_whatever_is_refused_at_whatever_point_leaves_no_trace(index: Any) -> None:
    # sglang #16067: a slot was leaked when scheduling failed after the prefix had been matched.
    memory = KVManager(9, 2, prefix_cache=index, watermark=0.2, num_host_blocks=2)
    compute(memory, wants(1, [1, 2, 3, 4]))
    admit(memory, wants(2, [1, 2, 3, 4, 5]))
    memory.commit(2, 5)
    admit(memory, wants(3, [7, 8, 9], max_new_tokens=9))
    assert isinstance(memory.swap_out(3), tuple)
    memory.admit(wants(4, range(50, 58)), 2)
    probes = [wants(9, [1, 2, 3, 4, 5, 6]), wants(9, [7, 8, 9, 10])]
    before = seen(memory, (2, 4), probes)
    attempts = [
        (lambda: memory.admit(wants(5, range(30, 52)), 22), Reason.NEVER_FITS),
        (lambda: memory.admit(wants(5, [1, 2, 3, 4, *range(60, 72)]), 12), Reason.NO_ROOM),
        (lambda: memory.admit(wants(5, [1, 2, 3, 4, *range(60, 67)]), 6), Reason.PROMISED),
        (lambda: memory.admit(wants(5, [1, 2, 3, 4, 60]), 1), Reason.WATERMARK),
        (lambda: memory.grow(4, 16), Reason.NO_ROOM),
        (lambda: memory.fork(2, wants(5, [1, 2, 3, 4, 5], max_new_tokens=99)), Reason.NEVER_FITS),
        (lambda: memory.swap_out(2), Reason.NO_HOST_ROOM),
        (lambda: memory.swap_in(3), Reason.WATERMARK),
    ]
    for attempt, reason in attempts:
        refused(attempt(), reason)
        assert seen(memory, (2, 4), probes) == before
        memory.check_invariants()
        with pytest.raises(KeyError):
            memory.block_table(5)
    memory.free(2)
    assert isinstance(memory.swap_in(3), tuple), "it kept its place on the host"


@on_each
def test_bug_13_a_request_on_the_host_ends_once_and_frees_nothing_of_the_device(index: Any) -> None:
    # sglang-jax #982 and #994: the lesson was one way to release, whatever the request was doing.
    memory = KVManager(4, 2, prefix_cache=index, num_host_blocks=2)
    admit(memory, wants(1, [1, 2, 3]))
    memory.swap_out(1)
    admit(memory, wants(2, [4, 5, 6]))
    memory.free(1)
    memory.check_invariants()
    assert memory.num_free_blocks == 2
    for ended in (1, 3):
        with pytest.raises(KeyError):
            memory.free(ended)
    assert isinstance(memory.swap_out(2), tuple), "the host's blocks are free again"


@on_each
def test_bug_16_a_request_finds_only_what_was_computed_under_its_salt(index: Any) -> None:
    # vLLM #30931 and #3263: adapters were not, or not rightly, part of what was compared.
    memory = KVManager(8, 2, prefix_cache=index)
    compute(memory, wants(1, [1, 2, 3], salt="a"))
    assert memory.match(wants(2, [1, 2, 3], salt="b")) == 0
    assert memory.match(wants(2, [1, 2, 3])) == 0
    assert admit(memory, wants(2, [1, 2, 3], salt="a")) == 2
    memory.check_invariants()


@on_each
@pytest.mark.parametrize("blocks", [1, 2])
def test_bug_17_a_prompt_that_was_computed_before_still_has_a_token_to_compute(index: Any, blocks: int) -> None:
    # nano-vllm #144 and vLLM #30320: the whole prompt was found, and nothing was left to schedule.
    memory = KVManager(8, 4, prefix_cache=index)
    prompt = list(range(4 * blocks))
    for request in (1, 2, 3):
        memory.admit(wants(request, prompt), len(prompt))
        assert memory.num_tokens(request) == 4 * blocks
        memory.commit(request, 4 * blocks)
        memory.free(request)
        assert memory.match(wants(9, prompt)) == 4 * (blocks - 1)
        memory.check_invariants()


@on_each
def test_bug_18_a_block_that_is_planned_and_not_computed_is_found_by_nobody(index: Any) -> None:
    # nano-vllm #208: hits on blocks that were scheduled in the same step and held nothing yet.
    memory = KVManager(8, 2, prefix_cache=index)
    admit(memory, wants(1, [1, 2, 3, 4, 5, 6, 7]))
    probe = wants(9, [1, 2, 3, 4, 5, 6, 7])
    assert memory.match(probe) == 0
    memory.commit(1, 3)
    assert memory.match(probe) == 2
    memory.commit(1, 7)
    assert memory.match(probe) == 6
    memory.check_invariants()


@on_each
def test_bug_19_rejected_draft_tokens_are_never_found_and_their_blocks_go_back(index: Any) -> None:
    # vLLM #18668, #47930 and #50438: tokens that the model had rejected were published. Here drafts get slots by
    # `grow`, are taken back by `truncate`, and only then are the accepted tokens committed.
    memory = KVManager(8, 2, prefix_cache=index)
    demand = wants(1, [1, 2, 3], max_new_tokens=9)
    assert demand.token_ids is not None
    admit(memory, demand)
    memory.commit(1, 3)
    demand.token_ids.append(4)
    memory.grow(1, 8)
    assert memory.num_free_blocks == 4
    memory.truncate(1, 4)
    assert memory.num_free_blocks == 6
    memory.commit(1, 4)
    for drafted in ([5, 6], [0, 0]):
        assert memory.match(wants(9, [1, 2, 3, 4, *drafted, 7, 8, 9])) == 4
    with pytest.raises(ValueError, match="4"):
        memory.commit(1, 8)
    memory.check_invariants()


@on_each
def test_bug_19_a_token_is_found_only_once_its_id_is_known(index: Any) -> None:
    # The other half: a step may have computed more than has been sampled and accepted.
    memory = KVManager(8, 2, prefix_cache=index)
    demand = wants(1, [1, 2, 3], max_new_tokens=9)
    assert demand.token_ids is not None
    admit(memory, demand)
    memory.grow(1, 6)
    memory.commit(1, 6)
    assert memory.match(wants(9, [1, 2, 3, 4, 5])) == 2
    memory.check_invariants()
    demand.token_ids.extend([4, 5, 6])
    memory.commit(1, 6)
    assert memory.match(wants(9, [1, 2, 3, 4, 5, 6, 7])) == 6
    memory.check_invariants()


MANAGER = "reference_impl.memory.kv_manager"
SEQUENCE = "reference_impl.memory.sequence"
BLOCKS = "reference_impl.memory.published_blocks"
TABLE = "reference_impl.memory.block_table"
HOLD = "        blocks = self._hold(hits)\n"
TAKE = "        for _ in range(num_new - self.pool.num_free):\n            self._evict()\n"
HITS = "            hits = self._hits(demand)\n"
ENTER = "        sequence.lie_in(self._blocks.take(hits, num_new), hits)\n"
LEFT = "            self._leave(self._live[request])\n"
GONE = "            del self._swapped[request]\n            self._host.drop(request)\n"
DROPPED = "            self._host.drop(request)\n        else:"
SWAP_IN_SLOTS = "        slots = sequence.next_slots\n"

MUTANTS = [
    Mutant(
        "hits held before the check",
        test_bug_04_a_refused_request_leaves_the_blocks_it_would_have_found_as_they_were,
        MANAGER,
        ((HITS, HITS + "            self._blocks._hold(hits)\n"), (ENTER, ENTER.replace("take(hits", "take([]"))),
    ),
    Mutant(
        "hits of the manager counted as free",
        test_bug_04_a_refused_request_leaves_the_blocks_it_would_have_found_as_they_were,
        MANAGER,
        (("free = self._blocks.available_after(hits)", "free = self._blocks.num_free"),),
    ),
    Mutant(
        "evict before the hits are held",
        test_bug_05_a_memory_full_of_ones_own_prefix_gives_it_and_one_more_block,
        BLOCKS,
        ((HOLD + TAKE, "        blocks = [entry.block for entry in hits]\n" + TAKE + "        self._hold(hits)\n"),),
    ),
    Mutant(
        "found by the manager, never held",
        test_bug_06_of_two_requests_of_one_step_the_second_does_not_get_what_the_first_found,
        BLOCKS,
        ((HOLD, "        blocks = [entry.block for entry in hits]\n"),),
    ),
    Mutant(
        "new blocks first, hits second",
        test_bug_07_who_comes_back_from_the_host_holds_all_it_finds_before_it_takes_a_block,
        MANAGER,
        (
            (
                ENTER,
                "        new = self._blocks.take([], num_new)\n"
                "        sequence.lie_in(self._blocks.take(hits, 0) + new, hits)\n",
            ),
        ),
    ),
    Mutant(
        "the block keeps its old content",
        test_bug_10_a_block_that_was_evicted_no_longer_counts_as_published,
        BLOCKS,
        (("        del self._published[block]\n", ""),),
    ),
    Mutant(
        "a shared tail counted for each holder",
        test_bug_11_a_block_that_several_hold_is_counted_once_in_every_column,
        MANAGER,
        (("            sequence.blocks[-1]: len(", "            sequence.demand.request: len("),),
    ),
    Mutant(
        "off the host before the check",
        test_bug_12_whatever_is_refused_at_whatever_point_leaves_no_trace,
        MANAGER,
        (
            (SWAP_IN_SLOTS, SWAP_IN_SLOTS + "        on_host = self._host.drop(request)\n"),
            ("            on_host = self._host.drop(request)\n", ""),
        ),
    ),
    Mutant(
        "promised before the check",
        test_bug_12_whatever_is_refused_at_whatever_point_leaves_no_trace,
        MANAGER,
        ((HITS, HITS + "            self._promised += self._promise_to(demand)\n"),),
    ),
    Mutant(
        "on the host, freed on the device too",
        test_bug_13_a_request_on_the_host_ends_once_and_frees_nothing_of_the_device,
        MANAGER,
        ((GONE, "            self._live[request] = self._swapped[request]\n" + LEFT + GONE),),
    ),
    Mutant(
        "the host's blocks never go back",
        test_bug_13_a_request_on_the_host_ends_once_and_frees_nothing_of_the_device,
        MANAGER,
        ((DROPPED, "        else:"),),
    ),
    Mutant(
        "the manager forgets the salt",
        test_bug_16_a_request_finds_only_what_was_computed_under_its_salt,
        MANAGER,
        (
            ("0, num_blocks), demand.salt)", '0, num_blocks), "")'),
            ("token_ids, sequence.demand.salt\n", 'token_ids, ""\n'),
        ),
    ),
    Mutant(
        "the manager reuses the last token",
        test_bug_17_a_prompt_that_was_computed_before_still_has_a_token_to_compute,
        MANAGER,
        (("min(demand.num_tokens - 1, len(demand.token_ids))", "min(demand.num_tokens, len(demand.token_ids))"),),
    ),
    Mutant(
        "slots taken for computed",
        test_bug_18_a_block_that_is_planned_and_not_computed_is_found_by_nobody,
        MANAGER,
        (("            sequence.committed = num_tokens\n", "            sequence.committed = sequence.num_tokens\n"),),
    ),
    Mutant(
        "rejected drafts keep their slots",
        test_bug_19_rejected_draft_tokens_are_never_found_and_their_blocks_go_back,
        TABLE,
        (("        self.num_tokens = num_tokens\n        return fallen", "        return fallen"),),
    ),
    Mutant(
        "rejected drafts keep their blocks",
        test_bug_19_rejected_draft_tokens_are_never_found_and_their_blocks_go_back,
        MANAGER,
        (
            (
                "        self._blocks.release(sequence.truncate(num_tokens)[::-1])\n",
                "        sequence.truncate(num_tokens)\n",
            ),
        ),
    ),
    Mutant(
        "published without its ids",
        test_bug_19_a_token_is_found_only_once_its_id_is_known,
        SEQUENCE,
        (("else min(self.committed, len(ids))", "else self.committed"),),
    ),
]
