"""Caches of lab 5 as the memory of a scheduler: ours, and wrong ones, each named for its rule and found out."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from labkit.contracts import OutOfBlocks
from reference_impl.memory import Account, Demand, ForkingMemory, Grant, KVManager, PlacedMemory, Reason, Refusal
from reference_impl.memory.cache_memory import PrefixCacheMemory
from reference_impl.memory.prefix_cache import IndexedCache, PrefixCache
from reference_impl.memory.radix_cache import RadixCache
from reference_impl.plugin import ContractError
from tests.reference_impl.sched.driving import ids

BLOCKS, SIZE = 8, 4


def demand(request: int, tokens: array[int] | list[int], most: int = 8, salt: str = "") -> Demand:
    return Demand(request, len(tokens), most, token_ids=array("i", tokens), salt=salt)


def memory(made_by: Callable[[int, int], IndexedCache] = PrefixCache) -> PrefixCacheMemory:
    return PrefixCacheMemory(made_by(BLOCKS, SIZE), BLOCKS, SIZE)


PROMPT = list(range(10))
"""Two full blocks and two tokens."""


class CacheMemoryMachine(RuleBasedStateMachine):
    """The same requests in `KVManager` with a prefix cache: as much is found again, and the account is the same."""

    @initialize(made_by=st.sampled_from([PrefixCache, RadixCache]))
    def build(self, made_by: type[IndexedCache]) -> None:
        self.memory = memory(made_by)
        self.twin = KVManager(BLOCKS, SIZE, prefix_cache="hash", full_fit=False)
        self.ends: dict[int, tuple[int, int, int]] = {}
        """Request -> known tokens, slots, and the most it may have."""

    @rule(request=st.integers(0, 4), spelling=st.integers(0, 2), length=st.integers(1, 20), salt=st.sampled_from("ab"))
    def admit(self, request: int, spelling: int, length: int, salt: str) -> None:
        asked = demand(request, ids(spelling, length), 6, salt)
        if request in self.ends:
            with pytest.raises(ValueError, match=f"request {request} is in memory already"):
                self.memory.admit(asked, 1)
            return
        answer, same = self.memory.admit(asked, length), self.twin.admit(asked, length)
        assert isinstance(answer, Refusal) == isinstance(same, Refusal)
        if isinstance(answer, Grant):
            assert answer == same
            self.ends[request] = length, length, length + 5

    @precondition(lambda self: self.ends)
    @rule(pick=st.integers(0, 9), more=st.integers(-1, 5))
    def grow(self, pick: int, more: int) -> None:
        request = sorted(self.ends)[pick % len(self.ends)]
        known, slots, end = self.ends[request]
        target = min(slots + more, end)
        answer, same = self.memory.grow(request, target), self.twin.grow(request, target)
        assert answer == same
        if isinstance(answer, Grant):
            self.ends[request] = known, max(slots, target), end

    @precondition(lambda self: self.ends)
    @rule(pick=st.integers(0, 9), back=st.integers(0, 6))
    def commit(self, pick: int, back: int) -> None:
        request = sorted(self.ends)[pick % len(self.ends)]
        _, slots, _ = self.ends[request]
        with pytest.raises(ValueError, match=f"num_tokens must be 0 to the {slots} slots"):
            self.memory.commit(request, slots + 1)
        for kept in (self.memory, self.twin):
            kept.commit(request, max(0, slots - back))

    @rule(request=st.integers(0, 4))
    def free(self, request: int) -> None:
        if request in self.ends:
            self.memory.free(request)
            self.twin.free(request)
            del self.ends[request]
            return
        for call in (self.memory.free, self.memory.block_table, lambda request: self.memory.grow(request, 1)):
            with pytest.raises(KeyError, match=f"no request {request}"):
                call(request)

    @invariant()
    def agrees_with_the_manager(self) -> None:
        if not hasattr(self, "memory"):
            return
        self.memory.check_invariants()
        assert isinstance(self.memory.cache, IndexedCache)
        self.memory.cache.check_invariants()
        assert self.memory.account() == self.twin.account()
        for request, (_, slots, _) in self.ends.items():
            assert len(self.memory.block_table(request)) == -(-slots // SIZE)


TestCacheMemory = CacheMemoryMachine.TestCase
TestCacheMemory.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_it_says_where_tokens_lie_and_cannot_fork() -> None:
    assert isinstance(memory(), PlacedMemory)
    assert not isinstance(memory(), ForkingMemory)


def test_a_prompt_that_was_committed_is_found_again_under_its_salt() -> None:
    kept = memory()
    assert kept.admit(demand(1, PROMPT), 10) == Grant()
    kept.commit(1, 10)
    assert kept.admit(demand(2, PROMPT), 10) == Grant(num_reused=8)
    assert kept.block_table(2)[:2] == kept.block_table(1)[:2]
    assert kept.admit(demand(3, PROMPT, salt="b"), 1) == Grant()
    assert kept.account() == Account(held=8 + 2 + 2 + 10, tail=2 * 3, free=4)


def test_growth_takes_a_block_at_a_time_that_nobody_finds_and_gives_all_of_it_back() -> None:
    kept = memory()
    kept.admit(demand(1, PROMPT, most=20), 10)
    assert kept.grow(1, 12) == Grant()
    assert kept.grow(1, 21) == Grant()
    assert len(kept.block_table(1)) == 6
    kept.commit(1, 21)
    assert kept.account() == Account(held=21, tail=3, free=8)
    # What it made is in nobody's reach, though it was computed: only the prompt is found.
    assert kept.admit(demand(2, [*PROMPT, *range(10)][:15]), 1) == Grant(num_reused=8)
    kept.free(2)
    kept.free(1)
    assert kept.account() == Account(free=32)
    kept.check_invariants()


def test_growth_without_room_is_refused_and_takes_nothing() -> None:
    kept = memory()
    kept.admit(demand(1, PROMPT, most=20), 10)
    kept.admit(demand(2, list(range(50, 66))), 16)
    assert kept.grow(1, 17) == Refusal(Reason.NO_ROOM, 8, 4, 4)
    assert kept.account() == Account(held=26, tail=2, free=4)
    assert kept.grow(1, 33) == Refusal(Reason.NEVER_FITS, 24, 4, 4)
    kept.check_invariants()


def test_the_last_token_needs_no_slot_and_what_is_longer_never_fits() -> None:
    kept = memory()
    assert kept.never_fits(demand(1, PROMPT, most=23)) is None
    refusal = kept.never_fits(demand(1, PROMPT, most=24))
    assert refusal == Refusal(Reason.NEVER_FITS, 36, 32, 32)
    assert kept.admit(demand(1, PROMPT, most=24), 1) == refusal


def test_tokens_that_are_not_known_cannot_be_served_and_that_is_said() -> None:
    for call in (lambda: memory().never_fits(Demand(3, 5, 5)), lambda: memory().admit(Demand(3, 5, 5), 5)):
        with pytest.raises(ValueError, match="request 3 has no token_ids: a prefix cache of lab 5"):
            call()


class IgnoresSalt(PrefixCache):
    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        return super().acquire(seq, tokens)


class SharesAtOnce(PrefixCache):
    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        reused = super().acquire(seq, tokens, salt)
        self.commit(seq, len(tokens))
        return reused


class BlindToTheBeginning(PrefixCache):
    """Finds a block by its own tokens alone."""

    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        for length in range(len(tokens) - 1, 3, -1):
            if length % SIZE == 0 and any(
                list(held.tokens)[length - 4 : length] == list(tokens)[length - 4 : length]
                for held in self._sequences.values()
            ):
                twin = next(held for held in self._sequences.values() if len(held.tokens) >= length)
                super().acquire(seq, tokens, salt)
                self._sequences[seq].blocks[length // SIZE - 1] = twin.blocks[length // SIZE - 1]
                return length
        return super().acquire(seq, tokens, salt)


class FullHit(PrefixCache):
    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        return len(tokens) if super().acquire(seq, tokens, salt) else 0


class HalfABlock(PrefixCache):
    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        return super().acquire(seq, tokens, salt) // 2 + 1


class NoNumber(PrefixCache):
    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        super().acquire(seq, tokens, salt)
        return None  # type: ignore[return-value]


class ShortTable(PrefixCache):
    def block_table(self, seq: int) -> list[int]:
        return super().block_table(seq)[:-1]


class StrangeBlock(PrefixCache):
    def block_table(self, seq: int) -> list[int]:
        return [block + 7 for block in super().block_table(seq)]


class OneBlockForAll(PrefixCache):
    def block_table(self, seq: int) -> list[int]:
        return [0 for _ in super().block_table(seq)]


class SameBlocksForTheNext(PrefixCache):
    def block_table(self, seq: int) -> list[int]:
        return super().block_table(0)


class NoTable(PrefixCache):
    def block_table(self, seq: int) -> list[int]:
        return None  # type: ignore[return-value]


class RefusesWithRoom(PrefixCache):
    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        raise OutOfBlocks(1, 0)


class RefusesGrowth(PrefixCache):
    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        if len(tokens) == 1:
            raise OutOfBlocks(1, 0)
        return super().acquire(seq, tokens, salt)


WRONG: dict[type[PrefixCache], str] = {
    IgnoresSalt: "IgnoresSalt: acquire() found block 0 for a prefix that was not computed there",
    SharesAtOnce: "SharesAtOnce: acquire() found block 0 for a prefix that was not computed there",
    BlindToTheBeginning: "BlindToTheBeginning: acquire() found block",
    FullHit: "FullHit: acquire() reused 10 tokens, which is not a multiple of block_size, 4, below the 10 tokens",
    HalfABlock: "HalfABlock: acquire() reused 1 tokens, which is not a multiple of block_size, 4, below the 10 tokens",
    NoNumber: "NoNumber: acquire() returned None, which is no number of tokens",
    ShortTable: "ShortTable: block_table() has 2 blocks: 10 tokens in blocks of 4 need 3",
    StrangeBlock: "StrangeBlock: block_table() has block 8, there are 0 to 7",
    OneBlockForAll: "OneBlockForAll: block_table() has a block twice: [0, 0, 0]",
    SameBlocksForTheNext: "SameBlocksForTheNext: acquire() gave block 2 to be written, which another sequence holds",
    NoTable: "NoTable: block_table() returned None, which is no list of block ids",
    RefusesWithRoom: "RefusesWithRoom: acquire() raised OutOfBlocks, 3 blocks needed, 8 free",
    RefusesGrowth: "RefusesGrowth: acquire() raised OutOfBlocks, 1 blocks needed, 1 free",
}


@pytest.mark.parametrize("made_by", WRONG, ids=lambda made_by: made_by.__name__)
def test_a_wrong_cache_is_found_out_and_its_rule_is_named(made_by: type[PrefixCache]) -> None:
    def serve() -> None:
        kept = memory(made_by)
        kept.admit(demand(1, PROMPT), 10)
        if made_by is not SharesAtOnce:
            kept.commit(1, 10)
        kept.admit(demand(2, PROMPT), 10)
        kept.admit(demand(3, PROMPT, salt="b"), 10)
        kept.free(3)
        kept.admit(demand(4, [*range(40, 44), *PROMPT[4:]]), 10)
        kept.grow(1, 13)

    with pytest.raises(ContractError) as caught:
        serve()
    assert str(caught.value).startswith(WRONG[made_by])
    assert "\n" not in str(caught.value)


def test_a_cache_that_is_in_use_is_refused() -> None:
    cache = PrefixCache(BLOCKS, SIZE)
    cache.acquire(1, [1, 2])
    with pytest.raises(ContractError, match="PrefixCache: of 8 blocks, all blank, num_free_blocks counts 7"):
        PrefixCacheMemory(cache, BLOCKS, SIZE)


def test_a_count_of_free_blocks_that_drifts_breaks_an_invariant() -> None:
    class Drifts(PrefixCache):
        @property
        def num_free_blocks(self) -> int:
            return super().num_free_blocks + bool(self._sequences)

    kept = memory(Drifts)
    kept.admit(demand(1, PROMPT), 10)
    with pytest.raises(AssertionError, match="I1: Drifts counts 6 free blocks, 3 of 8 are in tables"):
        kept.check_invariants()


def test_a_content_that_was_overwritten_is_not_there_any_more() -> None:
    class Remembers:
        """Says that the third request finds what the first computed, in blocks that the second was given since."""

        def __init__(self) -> None:
            self.num_free_blocks = BLOCKS

        def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
            return 8 if seq == 2 else 0

        def commit(self, seq: int, num_tokens: int) -> None:
            """It remembers everything anyway."""

        def release(self, seq: int) -> None:
            """Nothing is ever held."""

        def block_table(self, seq: int) -> list[int]:
            return [0, 1, 2]

    kept = PrefixCacheMemory(Remembers(), BLOCKS, SIZE)
    for request, tokens in ((1, PROMPT), (2, [99 - token for token in PROMPT])):
        kept.admit(demand(request, tokens), 10)
        if request == 1:
            kept.commit(1, 10)
        kept.free(request)
    with pytest.raises(ContractError, match="found block 0 for a prefix that was not computed there"):
        kept.admit(demand(3, PROMPT), 10)
