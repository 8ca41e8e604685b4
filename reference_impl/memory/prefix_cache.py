"""Blocks that outlive their sequence, found again by what stands in them: the reference for lab 5.

Owns: the block tables of the live sequences, how far each is computed, and what is checked before anything changes.
Knows nothing of the states of a block (`published_blocks.py`), of how contents are looked up (`HashIndex` here, a tree
in `radix_cache.py`) or of which idle block goes next (`eviction.py`).

Invariants: those of `published_blocks.py`, I4 no table holds a blank block, I6 what a sequence may still write is its
own and unpublished, I7 a published hash is that of parent, tokens and salt, and only computed blocks are published.
Source: Kwon et al., SOSP 2023, section 4.4; hashing by block chain as in vLLM's automatic prefix caching.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import index

from labkit.contracts import OutOfBlocks
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.cached_block import CachedBlock
from reference_impl.memory.eviction import LRU, EvictionPolicy
from reference_impl.memory.published_blocks import PrefixIndex, PublishedBlocks, contents

MAX_TOKEN_ID = 2**31 - 1

HashFunction = Callable[[bytes, bytes, str], bytes]
"""(the parent's hash or b"", the block's tokens, salt) -> hash."""


def chain_hash(parent: bytes, tokens: bytes, salt: str) -> bytes:
    """SHA-256 over the parent's hash, the salt and the tokens; lengths come first, so no field runs into the next."""
    salt_bytes = salt.encode("utf-8", "surrogatepass")
    return hashlib.sha256(struct.pack("<QQ", len(parent), len(salt_bytes)) + parent + salt_bytes + tokens).digest()


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
        self._blocks = PublishedBlocks(self.num_blocks, prefix_index, eviction())
        self._sequences: dict[int, _Sequence] = {}

    @property
    def num_free_blocks(self) -> int:
        return self._blocks.num_free

    def acquire(self, seq: int, tokens: Iterable[int], salt: str = "") -> int:
        seq = index(seq)
        if seq in self._sequences:
            raise ValueError(f"sequence {seq} exists already")
        ids = _token_ids(tokens)
        if not isinstance(salt, str):
            raise TypeError(f"salt must be a string, got {salt!r}")
        # The last token is always computed, for its logits: its block is never reused.
        hits = self._blocks.match(contents(ids, self.block_size, 0, (len(ids) - 1) // self.block_size), salt)
        num_new = blocks_for(len(ids), self.block_size) - len(hits)
        available = self._blocks.available_after(hits)
        if num_new > available:
            raise OutOfBlocks(num_new, available)
        sequence = _Sequence(ids, salt, hits, self._blocks.take(hits, num_new))
        self._blocks.link(sequence.computed)
        self._sequences[seq] = sequence
        return len(hits) * self.block_size

    def commit(self, seq: int, num_tokens: int) -> None:
        sequence = self._sequence(seq)
        num_tokens = _at_least("num_tokens", num_tokens, 0)
        if num_tokens > len(sequence.tokens):
            raise ValueError(f"num_tokens must be at most the {len(sequence.tokens)} tokens acquired, got {num_tokens}")
        first, stop = sequence.num_computed_blocks, num_tokens // self.block_size
        for number, tokens in enumerate(contents(sequence.tokens, self.block_size, first, stop), start=first):
            block = sequence.blocks[number]
            sequence.computed = self._blocks.publish(sequence.computed, tokens, sequence.salt, block)
            sequence.num_computed_blocks = number + 1

    def release(self, seq: int) -> None:
        sequence = self._sequence(seq)
        # Tail first: both the order of eviction and the time of release follow this order.
        self._blocks.release(sequence.blocks[::-1])
        del self._sequences[index(seq)]
        self._blocks.unlink(sequence.computed)

    def block_table(self, seq: int) -> list[int]:
        return list(self._sequence(seq).blocks)

    def _sequence(self, seq: int) -> _Sequence:
        sequence = self._sequences.get(index(seq))
        if sequence is None:
            raise KeyError(f"no sequence {seq}")
        return sequence

    def check_invariants(self) -> None:
        """I1 to I4, I6 and I7. Cost: O(num_blocks + tokens held or cached). AssertionError names the offender."""
        holders = Counter(block for sequence in self._sequences.values() for block in sequence.blocks)
        self._blocks.check_invariants(holders, (sequence.computed for sequence in self._sequences.values()))
        for seq, sequence in self._sequences.items():
            for block in sequence.blocks[sequence.num_computed_blocks :]:
                alone = holders[block] == 1 and not self._blocks.is_published(block)
                assert alone, f"I6: sequence {seq} may still write block {block}, which is shared or published"
            computed = list(contents(sequence.tokens, self.block_size, 0, sequence.num_computed_blocks))
            self._blocks.check_chain(sequence.computed, computed, sequence.salt, sequence.blocks)


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
