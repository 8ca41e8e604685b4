"""Any prefix cache of lab 5 as the KV memory of a scheduler, a student's too.

Owns: the translation of a scheduler's calls into those of `labkit.contracts.PrefixCache`, and the check of what comes
back. Knows nothing of how a cache finds, shares or evicts.

A cache gives blocks for tokens that are known and has no word for growth. So a request is several of its sequences:

    known tokens      what it makes
    [ 16 ][ 16 ][ 5+] [ 1 ][ 1 ]
    one sequence      a sequence for each block: one token, never committed

The first is committed as its tokens are computed. A block behind them is found by nobody, since nobody commits it, and
blank again on release. Sequences are numbered here: a request's id says nothing of how many it has.
What comes back is held against books of who holds which block and what was computed in it: a prefix that is another's,
or a block given to two, would otherwise be noticed by nothing but strange text.
Cost: that of the cache; and for the books O(tokens) at admission, O(blocks) at commit and release.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from operator import index
from typing import NoReturn

from labkit.contracts import OutOfBlocks
from labkit.contracts import PrefixCache as CacheContract
from reference_impl.memory.accounting import Account
from reference_impl.memory.answers import checked_table
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import at_least_one
from reference_impl.memory.kv_memory import Demand, Grant
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.memory.prefix_cache import chain_hash
from reference_impl.memory.published_blocks import contents
from reference_impl.memory.sequence import check_demand
from reference_impl.plugin import ContractError, named

_NOTHING_NEW = Grant()


@dataclass
class _Held:
    """A request in memory: its sequences in the cache, its table, and how far it is."""

    sequences: list[int]
    table: list[int]
    prefixes: list[bytes]
    """For each full block of the known tokens, a hash of the salt and of all tokens up to its end."""
    num_known: int
    num_tokens: int
    num_computed: int


class PrefixCacheMemory:
    """`PlacedMemory` by `cache`, which must be new, made with the same two numbers, and called by nobody else."""

    def __init__(self, cache: CacheContract, num_blocks: int, block_size: int) -> None:
        """Raises: ValueError unless both numbers are at least 1; ContractError if blocks of the cache are in use."""
        self.num_blocks = at_least_one("num_blocks", num_blocks)
        self.block_size = at_least_one("block_size", block_size)
        self.capacity = self.num_blocks * self.block_size
        self.cache = cache
        self._live: dict[int, _Held] = {}
        self._next_sequence = 0
        self._holders: Counter[int] = Counter()
        """Block -> requests whose table it is in."""
        self._computed: dict[int, bytes] = {}
        """Block -> the prefix that ends with what was committed in it last."""
        if self._num_free() != num_blocks:
            self._wrong(f"of {num_blocks} blocks, all blank, num_free_blocks counts {self._num_free()}")

    def never_fits(self, demand: Demand) -> Refusal | None:
        _known_tokens(demand)
        # The last token is returned and never computed.
        slots = demand.num_tokens + demand.max_new_tokens - 1
        return self._refusal(Reason.NEVER_FITS, blocks_for(slots, self.block_size)) if slots > self.capacity else None

    def admit(self, demand: Demand, num_tokens: int) -> Grant | Refusal:
        """As in the contract, with slots for all known tokens however few are computed first."""
        if index(demand.request) in self._live:
            raise ValueError(f"request {demand.request} is in memory already")
        at_least_one("num_tokens", num_tokens)
        if (refusal := self.never_fits(demand)) is not None:
            return refusal
        known = _known_tokens(demand)
        taken = self._acquire(known, demand.salt)
        if isinstance(taken, Refusal):
            return taken
        sequence, reused, table = taken
        prefixes = _prefixes(known, demand.salt, self.block_size)
        self._enter(table, prefixes[: reused // self.block_size])
        self._live[demand.request] = _Held([sequence], table, prefixes, len(known), len(known), reused)
        return Grant(reused) if reused else _NOTHING_NEW

    def grow(self, request: int, num_tokens: int) -> Grant | Refusal:
        held = self._held(request)
        if num_tokens <= held.num_tokens:
            return _NOTHING_NEW
        more = blocks_for(num_tokens, self.block_size) - len(held.table)
        if num_tokens > self.capacity:
            return self._refusal(Reason.NEVER_FITS, more)
        if more > self._num_free():
            return self._refusal(Reason.NO_ROOM, more)
        for _ in range(more):
            # The salt is its own as well, for a cache that would find what nobody committed.
            taken = self._acquire(array("i", [0]), f"growth {self._next_sequence}")
            if isinstance(taken, Refusal):
                self._wrong(f"num_free_blocks counted the {more} blocks that acquire() then did not have")
            sequence, _, table = taken
            self._enter(table, [])
            held.sequences.append(sequence)
            held.table += table
        held.num_tokens = num_tokens
        return _NOTHING_NEW

    def commit(self, request: int, num_tokens: int) -> None:
        """As in the contract. What a request made is found by nobody until it is part of another's known tokens."""
        held = self._held(request)
        if not 0 <= num_tokens <= held.num_tokens:
            raise ValueError(f"num_tokens must be 0 to the {held.num_tokens} slots of {request}, got {num_tokens}")
        before, size = min(held.num_computed, held.num_known), self.block_size
        now = min(num_tokens, held.num_known)
        held.num_computed = max(held.num_computed, num_tokens)
        if now // size <= before // size:
            return
        self.cache.commit(held.sequences[0], now)
        for place in range(before // size, now // size):
            self._computed[held.table[place]] = held.prefixes[place]

    def free(self, request: int) -> None:
        held = self._held(request)
        # Tail first, as everywhere: it is the first that is given to somebody else.
        for sequence in reversed(held.sequences):
            self.cache.release(sequence)
        del self._live[request]
        self._holders -= Counter(held.table)

    def block_table(self, request: int) -> list[int]:
        """Physical block ids in logical order; the caller's own copy. KeyError on an unknown id."""
        return list(self._held(request).table)

    def account(self, wanted: int = 1) -> Account:
        """As in the contract: a block that several hold counts once, and one that nobody holds is free."""
        at_least_one("wanted", wanted)
        # A last block with empty slots was never found again, so it is in one table.
        tail = sum(len(held.table) * self.block_size - held.num_tokens for held in self._live.values())
        free = self._num_free() * self.block_size
        return Account(held=self.capacity - free - tail, tail=tail, free=free)

    def _acquire(self, tokens: array[int], salt: str) -> tuple[int, int, list[int]] | Refusal:
        """A new sequence, the tokens reused for it, and its table, each as the contract has it."""
        sequence, needed = self._next_sequence, blocks_for(len(tokens), self.block_size)
        try:
            answer = self.cache.acquire(sequence, tokens.tolist(), salt)
        except OutOfBlocks:
            if needed <= self._num_free():
                # The scheduler would make room and ask again, for ever.
                self._wrong(f"acquire() raised OutOfBlocks, {needed} blocks needed, {self._num_free()} free")
            return self._refusal(Reason.NO_ROOM, needed)
        self._next_sequence += 1
        try:
            reused = index(answer)
        except TypeError:
            self._wrong(f"acquire() returned {answer!r:.80}, which is no number of tokens")
        if not 0 <= reused < len(tokens) or reused % self.block_size:
            rule = f"a multiple of block_size, {self.block_size}, below the {len(tokens)} tokens"
            self._wrong(f"acquire() reused {reused} tokens, which is not {rule}")
        asked = f"{named(self.cache)}: block_table()"
        table = self.cache.block_table(sequence)
        return sequence, reused, checked_table(asked, table, len(tokens), self.num_blocks, self.block_size)

    def _enter(self, table: list[int], reused: list[bytes]) -> None:
        """One holder more for each block: those of `reused` must hold just that, the others be nobody's."""
        for block, prefix in zip(table, reused, strict=False):
            if self._computed.get(block) != prefix:
                self._wrong(f"acquire() found block {block} for a prefix that was not computed there")
        for block in table[len(reused) :]:
            if self._holders[block]:
                self._wrong(f"acquire() gave block {block} to be written, which another sequence holds")
            self._computed.pop(block, None)
        self._holders.update(table)

    def _num_free(self) -> int:
        return index(self.cache.num_free_blocks)

    def _refusal(self, reason: Reason, needed_blocks: int) -> Refusal:
        free = self._num_free() * self.block_size
        return Refusal(reason, needed_blocks * self.block_size, free, free)

    def _wrong(self, what: str) -> NoReturn:
        raise ContractError(f"{named(self.cache)}: {what}")

    def _held(self, request: int) -> _Held:
        held = self._live.get(index(request))
        if held is None:
            raise KeyError(f"no request {request}")
        return held

    def check_invariants(self) -> None:
        """I1, I5 and I8 by these books; a cache may have more to say itself. AssertionError names the offender."""
        holders = Counter(block for held in self._live.values() for block in held.table)
        assert holders == self._holders, f"I2: tables hold {holders}, the books have {self._holders}"
        free = self._num_free()
        assert free + len(holders) == self.num_blocks, (
            f"I1: {named(self.cache)} counts {free} free blocks, {len(holders)} of {self.num_blocks} are in tables"
        )
        for request, held in self._live.items():
            expected = blocks_for(held.num_tokens, self.block_size)
            assert len(held.table) == expected, f"I5: request {request} has {len(held.table)} blocks, not {expected}"
            for block in held.table[held.num_computed // self.block_size :]:
                assert holders[block] == 1, f"I6: request {request} may still write block {block}, which others hold"


def _known_tokens(demand: Demand) -> array[int]:
    """The ids of all tokens of `demand`. Raises: ValueError if they are not known, and what `check_demand` raises."""
    check_demand(demand)
    if demand.token_ids is None or len(demand.token_ids) < demand.num_tokens:
        raise ValueError(
            f"request {demand.request} has no token_ids: a prefix cache of lab 5 serves only what it can find"
        )
    return demand.token_ids[: demand.num_tokens]


def _prefixes(tokens: array[int], salt: str, block_size: int) -> list[bytes]:
    """For each full block a hash of the salt and of all tokens up to its end."""
    prefixes: list[bytes] = []
    for block in contents(tokens, block_size, 0, len(tokens) // block_size):
        prefixes.append(chain_hash(prefixes[-1] if prefixes else b"", block, salt))
    return prefixes
