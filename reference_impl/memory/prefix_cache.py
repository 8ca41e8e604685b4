"""Blocks that outlive their sequence, found again by what stands in them: the reference for lab 5.

Owns: the block tables of the live sequences, which block holds which published content, and what is checked before
anything changes. Knows nothing of how contents are looked up (`HashIndex` here, a tree in `radix_cache.py`) or of which
idle block goes next (`eviction.py`).

    blank       in the pool's free list: no content that anybody may want
    owned       in a table, not published: its holder may still write it
    published   found by its content, never written again; the cache itself keeps one reference to it
    idle        published, and the cache's reference is the only one: revived by a hit, or evicted for a new block

Invariants: I1 blank + idle + owned or shared == total, I2 a block's references are its tables plus one if published,
I3 in the pool, I4 no table holds a blank block, I6 what a sequence may still write is its own and unpublished,
I7 a published hash is that of parent, tokens and salt, and only computed blocks are published.
Source: Kwon et al., SOSP 2023, section 4.4; hashing by block chain as in vLLM's automatic prefix caching.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import index
from typing import Protocol

from labkit.contracts import OutOfBlocks
from reference_impl.memory.block_pool import BlockPool
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.cached_block import CachedBlock
from reference_impl.memory.eviction import LRU, EvictionPolicy

MAX_TOKEN_ID = 2**31 - 1

HashFunction = Callable[[bytes, bytes, str], bytes]
"""(the parent's hash or b"", the block's tokens, salt) -> hash."""


def chain_hash(parent: bytes, tokens: bytes, salt: str) -> bytes:
    """SHA-256 over the parent's hash, the salt and the tokens; lengths come first, so no field runs into the next."""
    salt_bytes = salt.encode("utf-8", "surrogatepass")
    return hashlib.sha256(struct.pack("<QQ", len(parent), len(salt_bytes)) + parent + salt_bytes + tokens).digest()


class PrefixIndex(Protocol):
    """Content -> `CachedBlock`. An index holds every content that has a block or carries one that does."""

    def match(self, blocks: Iterable[bytes], salt: str) -> list[CachedBlock]:
        """The longest run from the first block on of contents that have a block. Cost: O(blocks matched)."""

    def find_or_add(self, parent: CachedBlock | None, tokens: bytes, salt: str) -> CachedBlock:
        """That content's entry, new if there was none."""

    def discard(self, entry: CachedBlock) -> None:
        """Forget an entry on which nothing stands."""

    def entries(self) -> Iterator[CachedBlock]:
        """Every entry, in no order."""

    def check_invariants(self) -> None:
        """AssertionError names an entry that would not be found, or found by another's content."""


class HashIndex:
    """Contents by chained hash. Entries of equal hash share a bucket, and only an equal content is a match."""

    def __init__(self, hash_block: HashFunction) -> None:
        self._hash_block = hash_block
        self._buckets: dict[bytes, list[CachedBlock]] = {}

    def match(self, blocks: Iterable[bytes], salt: str) -> list[CachedBlock]:
        matched: list[CachedBlock] = []
        parent: CachedBlock | None = None
        for tokens in blocks:
            entry, _ = self._find(parent, tokens, salt)
            if entry is None or entry.block is None:
                break
            matched.append(entry)
            parent = entry
        return matched

    def find_or_add(self, parent: CachedBlock | None, tokens: bytes, salt: str) -> CachedBlock:
        entry, digest = self._find(parent, tokens, salt)
        if entry is None:
            entry = CachedBlock(parent, tokens, salt, digest)
            self._buckets.setdefault(digest, []).append(entry)
        return entry

    def discard(self, entry: CachedBlock) -> None:
        bucket = self._buckets[entry.digest]
        bucket.remove(entry)
        if not bucket:
            del self._buckets[entry.digest]

    def entries(self) -> Iterator[CachedBlock]:
        return (entry for bucket in self._buckets.values() for entry in bucket)

    def _find(self, parent: CachedBlock | None, tokens: bytes, salt: str) -> tuple[CachedBlock | None, bytes]:
        digest = self._hash_block(b"" if parent is None else parent.digest, tokens, salt)
        for entry in self._buckets.get(digest, ()):
            if entry.is_content(parent, tokens, salt):
                return entry, digest
        return None, digest

    def check_invariants(self) -> None:
        """I7, and one entry for each content. Cost: O(tokens cached)."""
        for digest, bucket in self._buckets.items():
            for entry in bucket:
                parent = b"" if entry.parent is None else entry.parent.digest
                is_hash = entry.digest == digest == self._hash_block(parent, entry.tokens, entry.salt)
                assert is_hash, f"I7: block {entry.block} does not stand under the hash of its content"
                same = [other for other in bucket if other.is_content(entry.parent, entry.tokens, entry.salt)]
                assert same == [entry], f"I7: block {entry.block} and another hold one content"


class _Sequence:
    """One live sequence: its tokens, its table, and how far its blocks are computed."""

    __slots__ = ("blocks", "computed", "num_computed_blocks", "salt", "tokens")

    def __init__(self, tokens: array[int], salt: str, hits: list[CachedBlock], blocks: list[int]) -> None:
        self.tokens = tokens
        self.salt = salt
        self.blocks = blocks
        self.num_computed_blocks = len(hits)
        self.computed = hits[-1] if hits else None
        """The content of its first `num_computed_blocks` blocks, held fast: what it publishes next stands on that."""


class IndexedCache:
    """The contract of `labkit.contracts.PrefixCache` over any index and any eviction policy."""

    def __init__(
        self, num_blocks: int, block_size: int, prefix_index: PrefixIndex, eviction: Callable[[], EvictionPolicy]
    ) -> None:
        self.num_blocks = _at_least("num_blocks", num_blocks, 1)
        self.block_size = _at_least("block_size", block_size, 1)
        self._pool = BlockPool(self.num_blocks)
        self._index = prefix_index
        self._idle = eviction()
        self._published: dict[int, CachedBlock] = {}
        self._sequences: dict[int, _Sequence] = {}

    @property
    def num_free_blocks(self) -> int:
        return self._pool.num_free + len(self._idle)

    def acquire(self, seq: int, tokens: Iterable[int], salt: str = "") -> int:
        seq = index(seq)
        if seq in self._sequences:
            raise ValueError(f"sequence {seq} exists already")
        ids = _token_ids(tokens)
        if not isinstance(salt, str):
            raise TypeError(f"salt must be a string, got {salt!r}")
        # The last token is always computed, for its logits: its block is never reused.
        hits = self._index.match(self._full_blocks(ids, 0, (len(ids) - 1) // self.block_size), salt)
        num_new = blocks_for(len(ids), self.block_size) - len(hits)
        # An idle block that is hit cannot also be evicted.
        available = self.num_free_blocks - sum(entry.idle for entry in hits)
        if num_new > available:
            raise OutOfBlocks(num_new, available)
        blocks = self._hold(hits)
        for _ in range(num_new - self._pool.num_free):
            self._evict()
        sequence = _Sequence(ids, salt, hits, blocks + self._pool.take(num_new))
        if sequence.computed is not None:
            sequence.computed.links += 1
        self._sequences[seq] = sequence
        return len(hits) * self.block_size

    def commit(self, seq: int, num_tokens: int) -> None:
        sequence = self._sequence(seq)
        num_tokens = _at_least("num_tokens", num_tokens, 0)
        if num_tokens > len(sequence.tokens):
            raise ValueError(f"num_tokens must be at most the {len(sequence.tokens)} tokens acquired, got {num_tokens}")
        first, stop = sequence.num_computed_blocks, num_tokens // self.block_size
        for number, tokens in enumerate(self._full_blocks(sequence.tokens, first, stop), start=first):
            before = sequence.computed
            entry = self._index.find_or_add(before, tokens, sequence.salt)
            entry.links += 1
            sequence.computed = entry
            sequence.num_computed_blocks = number + 1
            if entry.block is None:
                self._publish(entry, sequence.blocks[number])
            self._unlink(before)

    def release(self, seq: int) -> None:
        sequence = self._sequence(seq)
        # Tail first: both the order of eviction and the time of release follow this order.
        blocks = sequence.blocks[::-1]
        self._pool.release(blocks)
        for block in blocks:
            entry = self._published.get(block)
            if entry is not None and self._pool.ref_count(block) == 1:
                self._idle.add(entry)
        del self._sequences[index(seq)]
        self._unlink(sequence.computed)

    def block_table(self, seq: int) -> list[int]:
        return list(self._sequence(seq).blocks)

    def _hold(self, hits: list[CachedBlock]) -> list[int]:
        blocks = []
        for entry in hits:
            assert entry.block is not None, "I7: a content without a block was matched"
            if entry.idle:
                self._idle.remove(entry)
            self._idle.hit(entry)
            blocks.append(entry.block)
        self._pool.share(blocks)
        return blocks

    def _publish(self, entry: CachedBlock, block: int) -> None:
        entry.block = block
        self._published[block] = entry
        self._pool.share([block])
        self._idle.published(entry)

    def _evict(self) -> None:
        entry = self._idle.evict()
        block = entry.block
        assert block is not None, "I3: an idle content without a block"
        entry.block = None
        del self._published[block]
        self._pool.release([block])
        self._forget_unneeded(entry)

    def _unlink(self, entry: CachedBlock | None) -> None:
        if entry is not None:
            entry.links -= 1
            self._forget_unneeded(entry)

    def _forget_unneeded(self, entry: CachedBlock | None) -> None:
        while entry is not None and entry.block is None and entry.links == 0:
            self._index.discard(entry)
            entry = entry.parent
            if entry is not None:
                entry.links -= 1

    def _full_blocks(self, ids: array[int], start: int, stop: int) -> Iterator[bytes]:
        size = self.block_size
        return (ids[number * size : (number + 1) * size].tobytes() for number in range(start, stop))

    def _sequence(self, seq: int) -> _Sequence:
        sequence = self._sequences.get(index(seq))
        if sequence is None:
            raise KeyError(f"no sequence {seq}")
        return sequence

    def check_invariants(self) -> None:
        """I1 to I4, I6 and I7. Cost: O(num_blocks + tokens held or cached). AssertionError names the offender."""
        self._pool.check_invariants()
        self._idle.check_invariants()
        self._index.check_invariants()
        holders = Counter(block for sequence in self._sequences.values() for block in sequence.blocks)
        for block in range(self.num_blocks):
            references = self._pool.ref_count(block)
            expected = holders[block] + (block in self._published)
            assert references == expected, f"I2: block {block} counts {references} references, {expected} exist"
        idle = {block for block, entry in self._published.items() if entry.idle}
        assert idle == self._published.keys() - holders.keys(), f"I1: idle are {sorted(idle)}, by their own word"
        assert len(idle) == len(self._idle), f"I1: {len(idle)} blocks are idle, {len(self._idle)} counted"
        self._check_links()
        for seq, sequence in self._sequences.items():
            self._check_sequence(seq, sequence, holders)

    def _check_links(self) -> None:
        ends = (sequence.computed for sequence in self._sequences.values())
        links = Counter(end for end in ends if end is not None)
        entries = set(self._index.entries())
        links.update(entry.parent for entry in entries if entry.parent is not None)
        with_block = {entry.block: entry for entry in entries if entry.block is not None}
        assert with_block == self._published, "I7: the index and the published blocks do not agree"
        assert links.keys() <= entries, "I7: a content stands on one that was forgotten"
        for entry in entries:
            assert entry.links == links[entry], f"I7: {entry.links} links to block {entry.block}, {links[entry]} exist"
            assert entry.links > 0 or entry.block is not None, "I7: a content that nobody needs was kept"

    def _check_sequence(self, seq: int, sequence: _Sequence, holders: Counter[int]) -> None:
        for block in sequence.blocks[sequence.num_computed_blocks :]:
            alone = holders[block] == 1 and block not in self._published
            assert alone, f"I6: sequence {seq} may still write block {block}, which is shared or published"
        chain = [] if sequence.computed is None else list(sequence.computed.chain())[::-1]
        computed = [entry.tokens for entry in chain]
        expected = list(self._full_blocks(sequence.tokens, 0, sequence.num_computed_blocks))
        assert computed == expected, f"I7: sequence {seq} stands on a content that is not its own"
        for entry, block in zip(chain, sequence.blocks, strict=False):
            own = self._published.get(block)
            assert own is None or own is entry, f"I7: block {block} of sequence {seq} is published as another content"
            assert entry.salt == sequence.salt, f"I7: sequence {seq} stands on a content of another salt"


class PrefixCache(IndexedCache):
    """Prefix cache by chained block hashes; every method's errors and cost are stated in the contract.

    `eviction` makes the policy; `hash_block` the hash. A weak hash costs time, never content: see `HashIndex`.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        eviction: Callable[[], EvictionPolicy] = LRU,
        hash_block: HashFunction = chain_hash,
    ) -> None:
        super().__init__(num_blocks, block_size, HashIndex(hash_block), eviction)


def _token_ids(tokens: Iterable[int]) -> array[int]:
    # By way of a list: an array would read a bytes object as raw memory.
    listed = list(tokens)
    if not listed:
        raise ValueError("tokens must hold at least one token")
    try:
        ids = array("i", listed)
        if min(ids) >= 0:
            return ids
    except (OverflowError, TypeError):
        pass
    for place, token in enumerate(listed):
        if not hasattr(token, "__index__"):
            raise TypeError(f"token ids must be integers, got {token!r} at position {place}")
        if not 0 <= index(token) <= MAX_TOKEN_ID:
            raise ValueError(f"token ids must be 0 to {MAX_TOKEN_ID}, got {token} at position {place}")
    raise AssertionError("a token id was refused that is in range")


def _at_least(name: str, value: int, least: int) -> int:
    value = index(value)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value
