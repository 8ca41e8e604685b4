"""Bugs that real prefix caches had, on both of ours: what they published, found again and evicted.

The threads named are where engines met them. See `mutants.py` for what becomes of MUTANTS.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from labkit.contracts import OutOfBlocks
from reference_impl.memory import PrefixCache, RadixCache
from reference_impl.memory.prefix_cache import IndexedCache, chain_hash
from tests.bugs.mutants import Mutant

Make = Callable[..., IndexedCache]


def constant_hash(parent: bytes, tokens: bytes, salt: str) -> bytes:
    """Every block collides with every other."""
    return b"\0"


def eight_bit_hash(parent: bytes, tokens: bytes, salt: str) -> bytes:
    return chain_hash(parent, tokens, salt)[:1]


KINDS: dict[str, Make] = {
    "hash": PrefixCache,
    "8-bit hash": partial(PrefixCache, hash_block=eight_bit_hash),
    "constant hash": partial(PrefixCache, hash_block=constant_hash),
    "tree": RadixCache,
}

on_each = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in KINDS.items()])


def compute(cache: IndexedCache, seq: int, tokens: list[int], salt: str = "") -> list[int]:
    """Acquire, commit and release; returns the table it had."""
    cache.acquire(seq, tokens, salt)
    cache.commit(seq, len(tokens))
    table = cache.block_table(seq)
    cache.release(seq)
    return table


@on_each
def test_bug_04_a_refused_sequence_holds_none_of_the_blocks_it_would_have_reused(make: Make) -> None:
    # vLLM #11565: blocks were touched before the capacity check, and a refusal leaked the references.
    cache = make(4, 2)
    compute(cache, 1, [1, 2, 3, 4])
    with pytest.raises(OutOfBlocks):
        cache.acquire(2, [1, 2, 3, 4, *range(50, 58)])
    assert cache.num_free_blocks == 4
    cache.acquire(3, list(range(20, 28)))
    assert sorted(cache.block_table(3)) == [0, 1, 2, 3]
    cache.check_invariants()


@on_each
def test_bug_04_an_idle_block_that_is_reused_does_not_count_as_free_as_well(make: Make) -> None:
    # The same thread's review: with the check first, the touched blocks are counted twice.
    cache = make(3, 2)
    compute(cache, 1, [1, 2, 3, 4])
    with pytest.raises(OutOfBlocks) as refused:
        cache.acquire(2, [1, 2, 3, 4, 5, 6, 7])
    assert refused.value.args == (2, 1)
    assert cache.acquire(3, [1, 2, 3, 4, 5, 6]) == 4
    cache.check_invariants()


@on_each
def test_bug_05_a_reused_block_is_not_evicted_for_the_rest_of_its_own_sequence(make: Make) -> None:
    # vLLM #10507: allocation before the touch evicted the hit and handed it out as new.
    cache = make(2, 2)
    (reused, _) = (compute(cache, 1, [1, 2])[0], compute(cache, 2, [7, 8]))
    assert cache.acquire(3, [1, 2, 9]) == 2
    table = cache.block_table(3)
    assert table[0] == reused
    assert sorted(table) == [0, 1]
    cache.check_invariants()


@on_each
def test_bug_06_a_block_found_for_one_sequence_is_not_given_to_the_next(make: Make) -> None:
    # vLLM #37164: between lookup and touch another request of the same step took the block.
    cache = make(3, 2)
    compute(cache, 1, [1, 2, 3, 4])
    assert cache.acquire(2, [1, 2, 3, 4, 5]) == 4
    with pytest.raises(OutOfBlocks):
        cache.acquire(3, [6, 7, 8])
    assert cache.num_free_blocks == 0
    cache.check_invariants()


@on_each
def test_bug_08_an_evicted_block_is_no_longer_found_by_what_it_held(make: Make) -> None:
    # vLLM #4761 and kvcached #362: the evicted block stayed in the map, or kept its old hash.
    cache = make(2, 2)
    compute(cache, 1, [1, 2, 3])
    cache.acquire(2, [4, 5, 6, 7])
    cache.release(2)
    assert cache.acquire(3, [1, 2, 3]) == 0
    cache.check_invariants()
    cache.release(3)
    compute(cache, 4, [4, 5, 6, 7])
    assert cache.acquire(5, [1, 2, 3]) == 0
    cache.check_invariants()


@on_each
def test_bug_09_of_two_sequences_that_compute_one_prompt_the_first_publishes_and_no_block_is_lost(make: Make) -> None:
    # atlas #373: the cache took a reference to the second one's block while its node kept the first one's.
    cache = make(6, 2)
    cache.acquire(1, [1, 2, 3, 4])
    cache.acquire(2, [1, 2, 3, 4])
    cache.commit(1, 4)
    cache.commit(2, 4)
    first = cache.block_table(1)
    cache.check_invariants()
    cache.release(1)
    cache.release(2)
    assert cache.num_free_blocks == 6
    assert cache.acquire(3, [1, 2, 3, 4, 5]) == 4
    assert cache.block_table(3)[:2] == first
    cache.release(3)
    cache.acquire(4, list(range(20, 32)))
    assert sorted(cache.block_table(4)) == [0, 1, 2, 3, 4, 5]
    cache.check_invariants()


@on_each
def test_bug_11_a_block_that_two_sequences_share_is_never_counted_as_free(make: Make) -> None:
    # sglang #35270: shared pages were counted as evictable, and once for each who shared them.
    cache = make(4, 2)
    compute(cache, 1, [1, 2, 3, 4])
    for seq in (2, 3):
        assert cache.acquire(seq, [1, 2, 3, 4, 5]) == 4
    cache.release(2)
    assert cache.num_free_blocks == 1
    with pytest.raises(OutOfBlocks):
        cache.acquire(4, [6, 7, 8, 9])
    cache.check_invariants()
    cache.release(3)
    assert cache.num_free_blocks == 4
    cache.check_invariants()


@on_each
def test_bug_14_contents_of_equal_hash_are_never_mixed(make: Make) -> None:
    # GHSA-rm76-4mrf-v9r8 and vLLM #54727: with a hash that can be made to collide, one user reads another's KV.
    cache = make(301, 1)
    tables = {head: compute(cache, head, [head, 0])[0] for head in range(150)}
    for head in range(1_000, 1_300):
        assert cache.acquire(head, [head, 0]) == 0, "no such content was ever computed"
        cache.release(head)
    for head, block in tables.items():
        assert cache.acquire(head, [head, 1]) == 1
        assert cache.block_table(head)[0] == block
    cache.check_invariants()


@on_each
def test_bug_15_equal_tokens_after_another_beginning_are_another_content(make: Make) -> None:
    # openvino.genai #3722 and aibrix #2329: the key was that of the block alone, or of the last block and a count.
    cache = make(8, 2)
    compute(cache, 1, [1, 2, 5, 6, 0])
    assert cache.acquire(2, [3, 4, 5, 6, 0]) == 0
    cache.commit(2, 4)
    other = cache.block_table(2)
    assert cache.acquire(3, [3, 4, 5, 6, 1]) == 4
    assert cache.block_table(3)[:2] == other[:2]
    assert cache.acquire(4, [5, 6, 0]) == 0
    cache.check_invariants()


def test_bug_15_the_hash_of_a_block_covers_its_parent_its_tokens_and_their_order() -> None:
    seen = {chain_hash(parent, tokens, "") for parent in (b"", b"p" * 32) for tokens in (b"abcd", b"efgh", b"abcdefgh")}
    assert len(seen) == 6


@on_each
def test_bug_16_the_same_salt_shares_and_another_salt_does_not(make: Make) -> None:
    # vLLM #30931: adapters of one name and different weights shared KV.
    cache = make(12, 2)
    compute(cache, 1, [1, 2, 3, 4, 5], salt="a")
    assert cache.acquire(2, [1, 2, 3, 4, 5], salt="a") == 4
    for seq, salt in enumerate(("", "b", "A", "a\0"), start=3):
        assert cache.acquire(seq, [1, 2, 3], salt) == 0
    assert cache.num_free_blocks == 1
    cache.check_invariants()


def test_bug_16_no_salt_runs_into_the_tokens_behind_it() -> None:
    # vLLM #44701: fields without a mark of their own; "ab" + "c" must not be "a" + "bc".
    seen = {chain_hash(b"", b"cccc", "ab"), chain_hash(b"ab", b"cccc", ""), chain_hash(b"", b"abcccc", "")}
    assert len(seen | {chain_hash(b"a", b"cccc", "b"), chain_hash(b"", b"bcccc", "a")}) == 5


@on_each
@pytest.mark.parametrize("blocks", [1, 2])
def test_bug_17_a_prompt_that_is_all_there_computes_its_last_block_again(make: Make, blocks: int) -> None:
    # nano-vllm #144, vLLM #30320 and #11186: nothing was left to compute, or one token was and the chain broke.
    cache = make(6, 4)
    tokens = list(range(4 * blocks))
    first = compute(cache, 1, tokens)
    for seq in (2, 3):
        assert cache.acquire(seq, tokens) == 4 * (blocks - 1)
        table = cache.block_table(seq)
        assert table[:-1] == first[:-1]
        assert table[-1] != first[-1]
        cache.commit(seq, len(tokens))
        cache.check_invariants()
        cache.release(seq)
    assert cache.acquire(4, [*tokens, 99]) == 4 * blocks
    assert cache.block_table(4)[:-1] == first


@on_each
def test_bug_18_a_block_is_shared_only_once_all_of_it_is_computed(make: Make) -> None:
    # nano-vllm #208: hits on blocks that were scheduled in the same step and held nothing yet.
    cache = make(12, 2)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    cache.acquire(1, tokens)
    assert cache.acquire(2, tokens) == 0
    assert not set(cache.block_table(1)) & set(cache.block_table(2))
    cache.release(2)
    cache.commit(1, 3)
    assert cache.acquire(3, tokens) == 2
    cache.release(3)
    cache.commit(1, 1)
    cache.release(1)
    assert cache.acquire(4, tokens) == 2
    cache.check_invariants()


CACHED_BLOCK = "reference_impl.memory.cached_block"
PREFIX_CACHE = "reference_impl.memory.prefix_cache"
PUBLISHED_BLOCKS = "reference_impl.memory.published_blocks"

HOLD = "        blocks = self._hold(hits)\n"
TAKE = "        for _ in range(num_new - self.pool.num_free):\n            self._evict()\n"
TAKEN = "            raise OutOfBlocks(num_new, available)\n"
RETURN = "        return len(hits) * self.block_size"

MUTANTS = [
    Mutant(
        "touch before the check",
        test_bug_04_a_refused_sequence_holds_none_of_the_blocks_it_would_have_reused,
        PREFIX_CACHE,
        ((TAKEN, "            self._blocks._hold(hits)\n" + TAKEN),),
    ),
    Mutant(
        "hits counted as free",
        test_bug_04_an_idle_block_that_is_reused_does_not_count_as_free_as_well,
        PUBLISHED_BLOCKS,
        ((" - sum(entry.idle for entry in hits)", ""),),
    ),
    Mutant(
        "evict before the touch",
        test_bug_05_a_reused_block_is_not_evicted_for_the_rest_of_its_own_sequence,
        PUBLISHED_BLOCKS,
        ((HOLD + TAKE, "        blocks = [entry.block for entry in hits]\n" + TAKE + "        self._hold(hits)\n"),),
    ),
    Mutant(
        "looked up, never touched",
        test_bug_06_a_block_found_for_one_sequence_is_not_given_to_the_next,
        PUBLISHED_BLOCKS,
        ((HOLD, "        blocks = [entry.block for entry in hits]\n"),),
    ),
    Mutant(
        "the old content stays",
        test_bug_08_an_evicted_block_is_no_longer_found_by_what_it_held,
        PUBLISHED_BLOCKS,
        (("        entry.block = None\n", ""),),
    ),
    Mutant(
        "the second copy published too",
        test_bug_09_of_two_sequences_that_compute_one_prompt_the_first_publishes_and_no_block_is_lost,
        PUBLISHED_BLOCKS,
        (
            (
                "        if entry.block is None:\n            self._publish",
                "        if True:\n            self._publish",
            ),
        ),
    ),
    Mutant(
        "shared blocks become idle",
        test_bug_11_a_block_that_two_sequences_share_is_never_counted_as_free,
        PUBLISHED_BLOCKS,
        ((" and self.pool.ref_count(block) == 1", " and not entry.idle"),),
    ),
    Mutant(
        "the hash is trusted",
        test_bug_14_contents_of_equal_hash_are_never_mixed,
        PREFIX_CACHE,
        (("if entry.is_content(parent, tokens, salt):", "if True:"),),
    ),
    Mutant(
        "only the block's own tokens compared",
        test_bug_15_equal_tokens_after_another_beginning_are_another_content,
        CACHED_BLOCK,
        (("self.parent is parent and ", ""),),
    ),
    Mutant(
        "a hash without the parent",
        test_bug_15_the_hash_of_a_block_covers_its_parent_its_tokens_and_their_order,
        PREFIX_CACHE,
        ((" + parent + salt_bytes", " + salt_bytes"), ("len(parent), len(salt_bytes)", "0, len(salt_bytes)")),
    ),
    Mutant(
        "the salt not compared",
        test_bug_16_the_same_salt_shares_and_another_salt_does_not,
        CACHED_BLOCK,
        ((" and self.salt == salt", ""),),
    ),
    Mutant(
        "fields without their lengths",
        test_bug_16_no_salt_runs_into_the_tokens_behind_it,
        PREFIX_CACHE,
        (('struct.pack("<QQ", len(parent), len(salt_bytes)) + ', ""),),
    ),
    Mutant(
        "the last token reused",
        test_bug_17_a_prompt_that_is_all_there_computes_its_last_block_again,
        PREFIX_CACHE,
        (("(len(ids) - 1) // self.block_size", "len(ids) // self.block_size"),),
    ),
    Mutant(
        "published when given",
        test_bug_18_a_block_is_shared_only_once_all_of_it_is_computed,
        PREFIX_CACHE,
        ((RETURN, "        self.commit(seq, len(ids))\n" + RETURN),),
    ),
    Mutant(
        "a block published half computed",
        test_bug_18_a_block_is_shared_only_once_all_of_it_is_computed,
        PREFIX_CACHE,
        (("num_tokens // self.block_size\n", "-(-num_tokens // self.block_size)\n"),),
    ),
]
