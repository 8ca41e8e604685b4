"""A pool whose blocks outlive their holders, found again by what stands in them.

Owns: the pool, which block holds which published content, and the order in which hits are held, blocks evicted and new
ones taken. Knows nothing of sequences (those are `prefix_cache.py` and `kv_manager.py`), of how contents are looked up
(a `PrefixIndex`: by hash or by tree) or of which idle block goes next (`eviction.py`).

    blank       in the pool's free list: no content that anybody may want
    owned       in a table, not published: its holder may still write it
    published   found by its content, never written again; the publication itself holds one reference to it
    idle        published, and that reference is the only one: revived by a hit, or evicted for a new block

Invariants: I1 blank + idle + owned or shared == total, I2 a block's references are its holders plus one if published,
I3 in the pool, I7 the index and the published blocks agree.
Source: Kwon et al., SOSP 2023, section 4.4; idle blocks kept until they are needed as in vLLM's automatic prefix
caching.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from reference_impl.memory.block_pool import BlockPool
from reference_impl.memory.cached_block import CachedBlock
from reference_impl.memory.eviction import EvictionPolicy


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


def contents(ids: array[int], block_size: int, start: int, stop: int) -> Iterator[bytes]:
    """What stands in the full blocks start..stop-1 of a sequence: their token ids as bytes. Cost: O(tokens)."""
    return (ids[number * block_size : (number + 1) * block_size].tobytes() for number in range(start, stop))


class PublishedBlocks:
    """`num_blocks` blocks behind one index and one eviction policy, both of them its own from now on.

    `told`, where given, hears "publish" and "evict" with the block, after each of them.
    """

    def __init__(
        self,
        num_blocks: int,
        index: PrefixIndex,
        eviction: EvictionPolicy,
        told: Callable[[str, int], None] | None = None,
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self.num_evicted = 0
        """Contents lost to new blocks so far."""
        self._index = index
        self._idle = eviction
        self._told = told
        self._published: dict[int, CachedBlock] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, blank or to be evicted."""
        return self.pool.num_free + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Blocks that nobody holds and that would still be found."""
        return len(self._idle)

    def published(self) -> list[int]:
        """The blocks whose content would be found, by number. Cost: O(n log n)."""
        return sorted(self._published)

    def is_published(self, block: int) -> bool:
        """Whether `block` would be found, and so is never written again."""
        return block in self._published

    def match(self, blocks: Iterable[bytes], salt: str) -> list[CachedBlock]:
        """The published contents with which `blocks` begins. Changes nothing. Cost: that of the index."""
        return self._index.match(blocks, salt)

    def available_after(self, hits: list[CachedBlock]) -> int:
        """Blocks free for something new once `hits` are held. Cost: O(hits)."""
        # An idle block that is hit cannot also be evicted.
        return self.num_free - sum(entry.idle for entry in hits)

    def take(self, hits: list[CachedBlock], num_new: int) -> list[int]:
        """The blocks of `hits` with one holder more, and `num_new` blocks behind them with one holder each.

        The caller has checked that `num_new` is at most `available_after(hits)`; this cannot fail then.
        Cost: O(blocks), and O(log num_blocks) for each that is revived or evicted.
        """
        # Every hit is held before anything is evicted: else a hit could be handed out as new.
        blocks = self._hold(hits)
        for _ in range(num_new - self.pool.num_free):
            self._evict()
        return blocks + self.pool.take(num_new)

    def publish(self, before: CachedBlock | None, tokens: bytes, salt: str, block: int) -> CachedBlock:
        """The content `tokens` after `before` is computed in `block`; returns its entry, which the caller now links.

        The caller's link to `before` ends. Of two copies of one content the first stays published.
        """
        entry = self._index.find_or_add(before, tokens, salt)
        entry.links += 1
        if entry.block is None:
            self._publish(entry, block)
        self.unlink(before)
        return entry

    def release(self, blocks: list[int]) -> None:
        """One holder fewer for each block. Tail first: the order of eviction follows this order.

        Raises: ValueError, with nothing changed, on a double free.
        """
        self.pool.release(blocks)
        if not self._published:
            return
        for block in blocks:
            entry = self._published.get(block)
            if entry is not None and self.pool.ref_count(block) == 1:
                self._idle.add(entry)

    def link(self, entry: CachedBlock | None) -> None:
        """Somebody stands on `entry` from now on: it is not forgotten, even if it is evicted."""
        if entry is not None:
            entry.links += 1

    def unlink(self, entry: CachedBlock | None) -> None:
        """Somebody who stood on `entry` does so no more."""
        if entry is not None:
            entry.links -= 1
            self._forget_unneeded(entry)

    def _hold(self, hits: list[CachedBlock]) -> list[int]:
        blocks = []
        for entry in hits:
            assert entry.block is not None, "I7: a content without a block was matched"
            if entry.idle:
                self._idle.remove(entry)
            self._idle.hit(entry)
            blocks.append(entry.block)
        self.pool.share(blocks)
        return blocks

    def _publish(self, entry: CachedBlock, block: int) -> None:
        entry.block = block
        self._published[block] = entry
        self.pool.share([block])
        self._idle.published(entry)
        if self._told is not None:
            self._told("publish", block)

    def _evict(self) -> None:
        entry = self._idle.evict()
        block = entry.block
        assert block is not None, "I3: an idle content without a block"
        entry.block = None
        del self._published[block]
        self.pool.release([block])
        self._forget_unneeded(entry)
        self.num_evicted += 1
        if self._told is not None:
            self._told("evict", block)

    def _forget_unneeded(self, entry: CachedBlock | None) -> None:
        while entry is not None and entry.block is None and entry.links == 0:
            self._index.discard(entry)
            entry = entry.parent
            if entry is not None:
                entry.links -= 1

    def check_invariants(self, holders: Mapping[int, int], ends: Iterable[CachedBlock | None]) -> None:
        """I1 to I3 and I7 against the owner's word: who holds each block how often, and the contents it links.

        Cost: O(num_blocks + tokens published). AssertionError names the offender.
        """
        self.pool.check_invariants()
        self._idle.check_invariants()
        self._index.check_invariants()
        for block in range(self.pool.num_blocks):
            references = self.pool.ref_count(block)
            expected = holders.get(block, 0) + (block in self._published)
            assert references == expected, f"I2: block {block} counts {references} references, {expected} exist"
        idle = {block for block, entry in self._published.items() if entry.idle}
        assert idle == self._published.keys() - holders.keys(), f"I1: idle are {sorted(idle)}, by their own word"
        assert len(idle) == len(self._idle), f"I1: {len(idle)} blocks are idle, {len(self._idle)} counted"
        self._check_links(Counter(end for end in ends if end is not None))

    def _check_links(self, links: Counter[CachedBlock]) -> None:
        entries = set(self._index.entries())
        links.update(entry.parent for entry in entries if entry.parent is not None)
        with_block = {entry.block: entry for entry in entries if entry.block is not None}
        assert with_block == self._published, "I7: the index and the published blocks do not agree"
        assert links.keys() <= entries, "I7: a content stands on one that was forgotten"
        for entry in entries:
            assert entry.links == links[entry], f"I7: {entry.links} links to block {entry.block}, {links[entry]} exist"
            assert entry.links > 0 or entry.block is not None, "I7: a content that nobody needs was kept"

    def check_chain(self, end: CachedBlock | None, contents: list[bytes], salt: str, blocks: list[int]) -> None:
        """I7 for one owner: its computed `contents` are what `end` stands for, and no block of it says otherwise."""
        chain = [] if end is None else list(end.chain())[::-1]
        assert [entry.tokens for entry in chain] == contents, f"I7: the table {blocks} stands on another's content"
        for entry, block in zip(chain, blocks, strict=False):
            own = self._published.get(block)
            assert own is None or own is entry, f"I7: block {block} is published as another content"
            assert entry.salt == salt, f"I7: the table {blocks} stands on a content of another salt"
