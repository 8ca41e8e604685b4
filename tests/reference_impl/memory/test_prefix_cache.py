"""The prefix cache by hash, by a hash of one bit, and by tree: in step with each other and with a plain model."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from labkit.contracts import OutOfBlocks
from labkit.contracts import PrefixCache as Contract
from reference_impl.memory import FIFO, LFU, LRU, SLRU, EvictionPolicy, PrefixCache, RadixCache
from reference_impl.memory.prefix_cache import MAX_TOKEN_ID, IndexedCache, chain_hash

Content = tuple[str, tuple[int, ...]]
"""A salt, and all tokens from the first one to the end of a block."""


def one_bit_hash(parent: bytes, tokens: bytes, salt: str) -> bytes:
    return bytes([chain_hash(parent, tokens, salt)[0] & 1])


KINDS: dict[str, Callable[..., IndexedCache]] = {
    "hash": PrefixCache,
    "one-bit hash": partial(PrefixCache, hash_block=one_bit_hash),
    "tree": RadixCache,
}


class LockStep(RuleBasedStateMachine):
    """The model knows contents as whole prefixes and looks through all of them; it is told only which ids are new."""

    @initialize(num_blocks=st.integers(2, 14), block_size=st.integers(1, 3))
    def build(self, num_blocks: int, block_size: int) -> None:
        self.caches = [kind(num_blocks, block_size) for kind in KINDS.values()]
        self.size = block_size
        self.tokens: dict[int, tuple[str, list[int]]] = {}
        self.tables: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.contents: dict[int, Content] = {}
        self.released: dict[int, int] = {}
        self.blank = set(range(num_blocks))
        self.seen: list[tuple[str, list[int]]] = []
        self.next_seq = 0
        self.now = 0

    def answer(self, name: str, *arguments: Any) -> Any:
        """What every cache answers; they must agree."""
        answers = [getattr(cache, name)(*arguments) for cache in self.caches]
        assert answers[1:] == answers[:-1], f"{name}{arguments}: {answers}"
        return answers[0]

    def refusal(self, error: type[Exception], name: str, *arguments: Any) -> set[tuple[Any, ...]]:
        """The arguments of the error that every cache raises."""
        seen = set()
        for cache in self.caches:
            with pytest.raises(error) as raised:
                getattr(cache, name)(*arguments)
            seen.add(raised.value.args)
        return seen

    def hits(self, tokens: list[int], salt: str) -> list[int]:
        found = []
        for end in range(self.size, len(tokens), self.size):
            blocks = [block for block, content in self.contents.items() if content == (salt, tuple(tokens[:end]))]
            if not blocks:
                break
            found += blocks
        return found

    def victims(self, count: int) -> set[int]:
        idle = dict(self.released)
        for _ in range(count):
            carrying = {(self.contents[block][0], self.contents[block][1][: -self.size]) for block in idle}
            leaves = [block for block in idle if self.contents[block] not in carrying]
            del idle[min(leaves, key=idle.__getitem__)]
        return self.released.keys() - idle.keys()

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        like=st.integers(0, 99),
        salt=st.sampled_from(["", "", "", "other"]),
        then=st.sampled_from(["compute", "compute and release", "wait"]),
    )
    def acquire(self, tokens: list[int], like: int, salt: str, then: str) -> None:
        if self.seen and like % 4:  # Most prompts begin as an earlier one did.
            salt, earlier = self.seen[like % len(self.seen)]
            tokens = earlier[: 1 + like % 9] + tokens[: like % 3]
        seq = self.next_seq
        hits = self.hits(tokens, salt)
        num_new = -(-len(tokens) // self.size) - len(hits)
        available = len(self.blank) + len(self.released.keys() - set(hits))
        if num_new > available:
            assert self.refusal(OutOfBlocks, "acquire", seq, tokens, salt) == {(num_new, available)}
            return
        assert self.answer("acquire", seq, tokens, salt) == len(hits) * self.size
        table = self.answer("block_table", seq)
        for block in hits:
            self.released.pop(block, None)
        victims = self.victims(max(0, num_new - len(self.blank)))
        new = set(table[len(hits) :])
        assert table[: len(hits)] == hits
        assert len(new) == num_new == len(table) - len(hits)
        assert new <= self.blank or new == self.blank | victims, "blank blocks first, then the least recently released"
        for block in victims:
            del self.contents[block], self.released[block]
        self.blank -= new
        self.tokens[seq], self.tables[seq], self.computed[seq] = (salt, tokens), table, len(hits)
        self.seen.append((salt, tokens))
        self.next_seq += 1
        if then != "wait":
            self.compute(seq, len(tokens))
        if then == "compute and release":
            self.let_go(seq)

    @precondition(lambda self: self.tables)
    @rule(choice=st.integers(0, 99), share=st.sampled_from([0, 1, 1, 2, 2, 2]))
    def commit(self, choice: int, share: int) -> None:
        seq = sorted(self.tables)[choice % len(self.tables)]
        self.compute(seq, share * len(self.tokens[seq][1]) // 2)

    def compute(self, seq: int, num_tokens: int) -> None:
        salt, tokens = self.tokens[seq]
        assert self.answer("commit", seq, num_tokens) is None
        for number in range(self.computed[seq], num_tokens // self.size):
            content = (salt, tuple(tokens[: (number + 1) * self.size]))
            if content not in self.contents.values():
                self.contents[self.tables[seq][number]] = content
        self.computed[seq] = max(self.computed[seq], num_tokens // self.size)

    @precondition(lambda self: self.tables)
    @rule(choice=st.integers(0, 99))
    def release(self, choice: int) -> None:
        self.let_go(sorted(self.tables)[choice % len(self.tables)])

    def let_go(self, seq: int) -> None:
        assert self.answer("release", seq) is None
        table = self.tables.pop(seq)
        held = {block for other in self.tables.values() for block in other}
        for block in reversed(table):
            if block in held:
                continue
            if block in self.contents:
                self.now += 1
                self.released[block] = self.now
            else:
                self.blank.add(block)

    @precondition(lambda self: self.tables)
    @rule(choice=st.integers(0, 99))
    def refuse(self, choice: int) -> None:
        seq = sorted(self.tables)[choice % len(self.tables)]
        length = len(self.tokens[seq][1])
        self.refusal(ValueError, "acquire", seq, [1])
        self.refusal(ValueError, "acquire", self.next_seq, [])
        self.refusal(ValueError, "commit", seq, length + 1)
        self.refusal(ValueError, "commit", seq, -1)
        self.refusal(KeyError, "commit", self.next_seq, 0)
        self.refusal(KeyError, "release", self.next_seq)

    @invariant()
    def agrees_with_the_model(self) -> None:
        for cache in self.caches:
            cache.check_invariants()
        assert self.answer("__getattribute__", "num_free_blocks") == len(self.blank) + len(self.released)
        for seq, table in self.tables.items():
            assert self.answer("block_table", seq) == table


TestLockStep = LockStep.TestCase
TestLockStep.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("eviction", [LRU, FIFO, LFU, partial(SLRU, 6)], ids=["lru", "fifo", "lfu", "slru"])
def test_hash_and_tree_agree_under_every_policy_on_a_long_trace(eviction: Callable[[], EvictionPolicy]) -> None:
    dice = random.Random(7)
    caches = [kind(24, 2, eviction=eviction) for kind in KINDS.values()]
    live: list[int] = []
    reused = 0
    for seq in range(2_000):
        tokens = [dice.choice((0, 0, 0, 1)) for _ in range(dice.randint(1, 16))]
        answers: list[int | tuple[int, ...]] = []
        for cache in caches:
            try:
                answers.append(cache.acquire(seq, tokens))
            except OutOfBlocks as error:
                answers.append(error.args)
        assert answers[1:] == answers[:-1]
        if isinstance(answers[0], int):
            live.append(seq)
            reused += answers[0]
            computed = dice.randint(0, len(tokens))
            for cache in caches:
                cache.commit(seq, computed)
        while live and (not isinstance(answers[0], int) or len(live) > 3 or dice.random() < 0.5):
            done = live.pop(dice.randrange(len(live)))
            for cache in caches:
                cache.release(done)
            answers = [0]
        if seq % 50 == 0:
            for cache in caches:
                cache.check_invariants()
    assert reused > 2_000


@pytest.mark.parametrize(("eviction", "survivor"), [(LRU, 8), (FIFO, 8), (LFU, 7), (partial(SLRU, 1), 7)])
def test_the_policy_learns_of_hits(eviction: Callable[[], EvictionPolicy], survivor: int) -> None:
    cache = PrefixCache(3, 1, eviction=eviction)
    for seq, token in enumerate((7, 7, 8)):  # 7 is published first and reused once, 8 is the more recent.
        cache.acquire(seq, [token, 0])
        cache.commit(seq, 1)
        cache.release(seq)
    cache.acquire(9, [5, 6])
    cache.release(9)
    assert cache.acquire(10, [survivor, 0]) == 1


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request: pytest.FixtureRequest) -> Callable[..., IndexedCache]:
    return request.param  # type: ignore[no-any-return]


def test_it_has_the_shape_of_the_contract(make: Callable[..., IndexedCache]) -> None:
    assert isinstance(make(1, 1), Contract)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((1, [5]), ValueError, "sequence 1 exists already"),
        ((1, []), ValueError, "sequence 1 exists already"),
        ((2, []), ValueError, "tokens must hold at least one token"),
        ((2, [3, -1]), ValueError, "got -1 at position 1"),
        ((2, [MAX_TOKEN_ID + 1]), ValueError, "got 2147483648 at position 0"),
        ((2, [10**30]), ValueError, "at position 0"),
        ((2, [1, 2.0]), TypeError, "token ids must be integers, got 2.0 at position 1"),
        ((2, "ab"), TypeError, "got 'a' at position 0"),
        ((2, [1], None), TypeError, "salt must be a string, got None"),
        ((2, [1] * 9), OutOfBlocks, "5 blocks needed, 3 free"),
    ],
)
def test_a_refused_acquire_names_its_input_and_changes_nothing(
    make: Callable[..., IndexedCache], arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    cache = make(4, 2)
    cache.acquire(1, [1, 2])
    with pytest.raises(error, match=words):
        cache.acquire(*arguments)
    assert cache.num_free_blocks == 3
    cache.check_invariants()


@pytest.mark.parametrize(
    ("call", "arguments", "error", "words"),
    [
        ("commit", (9, -1), KeyError, "no sequence 9"),
        ("commit", (1, -1), ValueError, "num_tokens must be at least 0, got -1"),
        ("commit", (1, 4), ValueError, "at most the 3 tokens acquired, got 4"),
        ("commit", (1, 1.0), TypeError, "float"),
        ("release", (9,), KeyError, "no sequence 9"),
        ("block_table", (9,), KeyError, "no sequence 9"),
    ],
)
def test_the_other_calls_refuse_what_they_do_not_know(
    make: Callable[..., IndexedCache], call: str, arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    cache = make(4, 2)
    cache.acquire(1, [1, 2, 3])
    with pytest.raises(error, match=words):
        getattr(cache, call)(*arguments)
    cache.check_invariants()


@pytest.mark.parametrize(("arguments", "name"), [((0, 1), "num_blocks"), ((1, 0), "block_size"), ((-3, 1), "num_bl")])
def test_a_cache_without_room_is_refused(make: Callable[..., IndexedCache], arguments: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.* must be at least 1, got"):
        make(*arguments)


def test_a_table_is_the_callers_own_copy(make: Callable[..., IndexedCache]) -> None:
    cache = make(4, 2)
    cache.acquire(1, [1, 2, 3])
    cache.block_table(1).clear()
    assert len(cache.block_table(1)) == 2


def test_the_largest_token_id_and_any_salt_are_contents_like_others(make: Callable[..., IndexedCache]) -> None:
    cache = make(4, 1)
    for salt in ("", "\0", "\ud800"):
        cache.acquire(1, [MAX_TOKEN_ID, 0], salt)
        cache.commit(1, 1)
        cache.release(1)
        assert cache.acquire(2, [MAX_TOKEN_ID, 5], salt) == 1
        cache.release(2)


@pytest.mark.parametrize("spelling", [bytes, tuple, iter, numpy.array], ids=["bytes", "tuple", "iterator", "array"])
def test_token_ids_are_the_items_of_what_is_given(make: Callable[..., IndexedCache], spelling: Any) -> None:
    cache = make(12, 1)
    cache.acquire(1, [1, 0, 0, 0, 2])
    cache.commit(1, 5)
    assert cache.acquire(2, spelling([1, 0, 0, 0, 2])) == 4


def test_a_tail_goes_before_its_head_though_another_sequence_holds_the_middle(
    make: Callable[..., IndexedCache],
) -> None:
    cache = make(6, 1)
    cache.acquire(1, [1, 2, 3])
    cache.acquire(2, [1, 2])
    cache.commit(1, 1)
    cache.commit(2, 2)
    cache.commit(1, 3)
    head, _, tail = cache.block_table(1)
    cache.release(1)  # Head and tail are idle; the middle is sequence 2's, the own copy of it blank.
    cache.acquire(3, [7, 8, 9])
    assert tail in cache.block_table(3)
    assert head not in cache.block_table(3)
    cache.check_invariants()


def test_an_evicted_head_comes_back_and_its_tail_is_found_again(make: Callable[..., IndexedCache]) -> None:
    cache = make(5, 1)
    cache.acquire(1, [1, 2])
    cache.acquire(2, [1, 2])
    cache.commit(1, 1)
    cache.commit(2, 2)  # The head of sequence 1 and the tail of sequence 2 are the published ones.
    cache.release(1)
    cache.acquire(3, [7, 8, 9])  # Two blanks and the idle head: the tail, held by 2, stands on nothing now.
    cache.check_invariants()
    cache.release(3)
    assert cache.acquire(5, [1, 2, 3]) == 0
    cache.commit(5, 1)
    cache.check_invariants()
    cache.release(5)
    assert cache.acquire(6, [1, 2, 3]) == 2
    assert cache.block_table(6)[1] == cache.block_table(2)[1]
    cache.check_invariants()


def test_nothing_is_remembered_of_what_was_evicted(make: Callable[..., IndexedCache]) -> None:
    cache = make(4, 1)
    for seq in range(300):
        cache.acquire(seq, [seq, seq + 1, seq + 2], salt=str(seq % 7))
        cache.commit(seq, 3)
        cache.release(seq)
    assert len(list(cache._blocks._index.entries())) == 4
    cache.check_invariants()
    if isinstance(cache, RadixCache):
        assert len(cache._blocks._index._roots) <= 2


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda c: c._blocks.pool.share([c._sequences[1].blocks[2]]), "I2"),
        (lambda c: c._blocks._published.pop(c._sequences[1].blocks[0]), "I2"),
        (lambda c: setattr(c._sequences[1], "num_computed_blocks", 0), "I6"),
        (lambda c: setattr(c._sequences[1].computed, "tokens", b"else"), "I7"),
        (lambda c: setattr(c._sequences[1].computed, "links", 5), "I7: 5 links"),
        (lambda c: setattr(c._sequences[1].computed, "salt", "else"), "I7"),
        (lambda c: c._blocks._idle._idle.pop(), "counted|candidates|a head"),
        (lambda c: setattr(next(iter(c._blocks._idle._idle)), "idle", False), "says that it is not idle"),
    ],
)
def test_the_invariants_name_the_offender(make: Callable[..., IndexedCache], harm: Any, words: str) -> None:
    cache = make(8, 2)
    cache.acquire(2, [9, 9, 9, 9])
    cache.commit(2, 4)
    cache.release(2)
    cache.acquire(1, [1, 2, 3, 4, 5])
    cache.commit(1, 4)
    cache.check_invariants()
    harm(cache)
    with pytest.raises(AssertionError, match=words):
        cache.check_invariants()
