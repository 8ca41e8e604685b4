"""The KV memory of the engine: blocks as tokens come, found again by content, shared, copied on write, swapped out.

Owns: the requests in memory (`sequence.py`), what they were promised, and what is checked before anything changes.
Knows nothing of queues, budgets or time (`sched/`), of the free list (`block_pool.py`), of how contents are found and
evicted (`published_blocks.py`) or of the host's blocks (`swap.py`).

A call has two phases: everything is checked and the whole need is known, then changes follow that cannot fail. Blocks
that are found again are held before anything is evicted for the rest, and an idle block that is found is not free too.

    slots     tokens that have a place: written, or to be written by the step that is planned
    computed  tokens whose KV is there, by the word of `commit`; only full blocks of them are published

Invariants: I1 to I4 and I7 of `published_blocks.py`, I5 and I8 of `block_table.py`, and I6: a block that a request may
still write (slots that are not computed yet) is in no other table and not published.
Source: Kwon et al., SOSP 2023, sections 4.3 to 4.5; admission by the whole prompt and the watermark as in vLLM.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from operator import index
from typing import TYPE_CHECKING, Literal

from reference_impl.memory.accounting import Account
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.cached_block import CachedBlock
from reference_impl.memory.contiguous import at_least_one
from reference_impl.memory.eviction import LRU, EvictionPolicy
from reference_impl.memory.kv_memory import BlockCopies, Demand, Grant
from reference_impl.memory.kv_policy import Reason, Refusal
from reference_impl.memory.prefix_cache import HashIndex, chain_hash
from reference_impl.memory.published_blocks import PrefixIndex, PublishedBlocks, contents
from reference_impl.memory.radix_cache import RadixIndex
from reference_impl.memory.sequence import Sequence, check_demand
from reference_impl.memory.swap import HostPool

if TYPE_CHECKING:
    from reference_impl.memory.events import EventLog

INDEXES: dict[str, Callable[[], PrefixIndex]] = {"hash": lambda: HashIndex(chain_hash), "radix": RadixIndex}
"""Name -> how published blocks are found."""

_NOTHING_NEW = Grant()


class KVManager:
    """`KVMemory` and `SwappingMemory` by blocks, with a prefix cache, fork, truncate and a log beside them.

    prefix_cache: "none" finds nothing again; an index factory takes the place of a name. eviction: makes the policy.
    watermark: the share of all blocks that stays free behind an admission, so that those in memory can grow; where
    nothing is in memory nobody could use it, and it does not apply. full_fit: an admission needs room for all known
    tokens, less what earlier admissions were promised and have not taken, though it takes only what is asked for.
    log: is told of everything that happens; without one, nothing is spent on it.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_cache: Literal["none", "hash", "radix"] | Callable[[], PrefixIndex] = "none",
        eviction: Callable[[], EvictionPolicy] = LRU,
        watermark: float = 0.0,
        full_fit: bool = True,
        num_host_blocks: int = 0,
        log: EventLog | None = None,
    ) -> None:
        """Raises: ValueError, naming the argument, on values that make no sense."""
        self.num_blocks = at_least_one("num_blocks", num_blocks)
        self.block_size = at_least_one("block_size", block_size)
        self.capacity = self.num_blocks * self.block_size
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark must be at least 0 and below 1, got {watermark}")
        if not callable(prefix_cache) and prefix_cache not in ("none", *INDEXES):
            raise ValueError(f"no prefix_cache {prefix_cache!r}; there are none, {', '.join(INDEXES)}")
        self.full_fit = full_fit
        # Rounded first, because 0.07 * 100 is a little more than 7.
        self.num_watermark_blocks = math.ceil(round(watermark * num_blocks, 6))
        self._finds = prefix_cache != "none"
        make_index = INDEXES.get(prefix_cache, INDEXES["hash"]) if isinstance(prefix_cache, str) else prefix_cache
        heard = None if log is None else log.heard
        self._blocks = PublishedBlocks(self.num_blocks, make_index(), eviction(), heard)
        self._host = HostPool(num_host_blocks)
        self._live: dict[int, Sequence] = {}
        self._swapped: dict[int, Sequence] = {}
        self._promised = 0
        self._log = log
        if log is not None:
            log.created(self, self._live, self._swapped, self._blocks, self._host)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no request on the device holds, blank or to be evicted."""
        return self._blocks.num_free

    @property
    def num_evicted(self) -> int:
        """Published blocks that were lost to new ones so far."""
        return self._blocks.num_evicted

    def match(self, demand: Demand) -> int:
        """Tokens of `demand` whose KV is there. Changes nothing. Cost: O(tokens found)."""
        check_demand(demand)
        return len(self._hits(demand)) * self.block_size

    def never_fits(self, demand: Demand) -> Refusal | None:
        check_demand(demand)
        # The last token is returned and never computed.
        slots = demand.num_tokens + demand.max_new_tokens - 1
        return self._refusal(Reason.NEVER_FITS, slots) if slots > self.capacity else None

    def admit(self, demand: Demand, num_tokens: int) -> Grant | Refusal:
        self._new_id(demand.request)
        at_least_one("num_tokens", num_tokens)
        answer: Grant | Refusal | None = self.never_fits(demand)
        if answer is None:
            hits = self._hits(demand)
            reused = len(hits) * self.block_size
            slots = min(reused + num_tokens, demand.num_tokens)
            answer = self._no_room(hits, slots, demand.num_tokens)
        if answer is None:
            sequence = Sequence(
                demand, self.block_size, slots, publishes=self._finds, promised=self._promise_to(demand)
            )
            sequence.committed = reused
            self._enter(sequence, hits)
            answer = Grant(reused) if reused else _NOTHING_NEW
        if self._log is not None:
            self._log.admitted(demand, num_tokens, answer)
        return answer

    def grow(self, request: int, num_tokens: int) -> Grant | Refusal:
        sequence = self._live.get(request)
        if sequence is None:
            raise self._absent(request)
        answer: Grant | Refusal = _NOTHING_NEW
        if num_tokens > sequence.room:
            answer = self._grow(sequence, num_tokens)
        elif num_tokens > sequence.num_tokens:
            sequence.num_tokens = num_tokens
        if self._log is not None:
            self._log.grown(request, num_tokens, answer)
        return answer

    def commit(self, request: int, num_tokens: int) -> None:
        sequence = self._live.get(request)
        if sequence is None:
            raise self._absent(request)
        if not 0 <= num_tokens <= sequence.num_tokens:
            raise ValueError(f"num_tokens must be 0 to the {sequence.num_tokens} slots of {request}, got {num_tokens}")
        before = sequence.committed
        if num_tokens > before:
            sequence.committed = num_tokens
        sequence.copied = False
        if num_tokens >= sequence.publish_at:
            self._publish(sequence)
        if self._log is not None:
            self._log.committed(request, before, num_tokens)

    def free(self, request: int) -> None:
        if request in self._swapped:
            del self._swapped[request]
            self._host.drop(request)
        else:
            self._leave(self._sequence(request))
        if self._log is not None:
            self._log.freed(request)

    def fork(self, parent: int, demand: Demand) -> Refusal | None:
        """Start the request of `demand` with every slot of `parent`. Takes no free block, so it asks for no room.

        All slots of the parent must be computed: between two steps they are. What either writes next is its own: a
        partial tail is copied before it is written, except by its last holder.
        Raises: KeyError and ValueError on ids as `admit` and `grow`, ValueError on a parent in the middle of a step,
        and on a demand that does not begin with the parent's tokens, under the parent's salt.
        """
        sequence = self._sequence(parent)
        self._new_id(demand.request)
        refusal = self.never_fits(demand)
        child = sequence.child(demand, self._promise_to(demand))
        if refusal is None:
            self._blocks.pool.share(child.blocks)
            self._blocks.link(child.computed)
            if child.tail_is_partial:
                child.room = sequence.room = sequence.num_tokens
            self._live[demand.request] = child
            self._promised += child.num_still_promised
        if self._log is not None:
            self._log.forked(parent, demand, refusal)
        return refusal

    def truncate(self, request: int, num_tokens: int) -> None:
        """Take slots back, as those of rejected draft tokens: the blocks past the first `num_tokens` slots are free.

        What is computed stays: whoever drafts truncates to the accepted tokens first and commits those.
        Raises: KeyError on an unknown id, ValueError below the tokens computed or above the slots it has.
        """
        sequence = self._sequence(request)
        if not sequence.committed <= num_tokens <= sequence.num_tokens:
            least, most = sequence.committed, sequence.num_tokens
            raise ValueError(f"num_tokens must be {least} (computed) to {most} (slots), got {num_tokens}")
        still_promised = sequence.num_still_promised
        self._blocks.release(sequence.truncate(num_tokens)[::-1])
        self._promised += sequence.num_still_promised - still_promised
        # A tail that was shared when it was last looked at may be so still: to grow, it has to be looked at again.
        sequence.room = min(sequence.room, len(sequence.blocks) * self.block_size)
        if self._log is not None:
            self._log.truncated(request, num_tokens)

    def swap_out(self, request: int) -> BlockCopies | Refusal:
        """As in the contract; the copies are made in the order of the calls.

        Every block is copied, those too that others hold: they may end or be evicted while this one is away.
        Raises: ValueError also if the request has a copy to wait for (`Grant.copies` before the `commit`): its tail
        holds nothing yet that could be moved.
        """
        sequence = self._sequence(request)
        if sequence.copied:
            raise ValueError(f"request {request} waits for the copy of its tail: commit its step before it goes")
        needed = len(sequence.blocks)
        answer: BlockCopies | Refusal
        if needed > self._host.num_free:
            free = self._host.num_free * self.block_size
            answer = Refusal(Reason.NO_HOST_ROOM, needed * self.block_size, free, free)
        else:
            answer = tuple(zip(sequence.blocks, self._host.put(request, needed), strict=True))
            self._leave(sequence)
            self._swapped[request] = sequence
        if self._log is not None:
            self._log.swapped_out(request, answer)
        return answer

    def swap_in(self, request: int) -> BlockCopies | Refusal:
        """As in the contract. It is an admission: watermark and promises count, and the next token must fit as well.

        What is still published of it is found again, and not copied: all of that is held before a block is taken.
        """
        sequence = self._swapped.get(request)
        if sequence is None:
            self._sequence(request)
            raise ValueError(f"request {request} is not swapped out")
        found = sequence.num_known // self.block_size
        hits = self._match(sequence.demand, found)
        slots = sequence.next_slots
        answer: BlockCopies | Refusal | None = self._no_room(hits, slots, max(slots, sequence.demand.num_tokens))
        if answer is None:
            on_host = self._host.drop(request)
            del self._swapped[request]
            self._enter(sequence, hits)
            answer = tuple(zip(on_host[len(hits) :], sequence.blocks[len(hits) :], strict=True))
        if self._log is not None:
            self._log.swapped_in(request, answer)
        return answer

    def block_table(self, request: int) -> list[int]:
        """Physical block ids in logical order; the caller's own copy. Errors as `grow`."""
        return list(self._sequence(request).blocks)

    def num_tokens(self, request: int) -> int:
        """Slots that the request has. Errors as `grow`."""
        return self._sequence(request).num_tokens

    def slot_mapping(self, request: int, start: int, stop: int) -> list[int]:
        """Slots of tokens start..stop-1, `block * block_size + offset`. Errors as `grow`, and outside of its slots."""
        return self._sequence(request).slot_mapping(start, stop)

    def account(self, wanted: int = 1) -> Account:
        """As in the contract: free blocks serve any request, so none are external; idle blocks are free.

        A block that several hold counts once. Cost: O(requests in memory).
        """
        at_least_one("wanted", wanted)
        # The empty slots behind every last token; a tail that is shared by forks is one tail.
        tails = {
            sequence.blocks[-1]: len(sequence.blocks) * self.block_size - sequence.num_tokens
            for sequence in self._live.values()
            if sequence.blocks
        }
        tail = sum(tails.values())
        free = self.num_free_blocks * self.block_size
        return Account(held=self.capacity - free - tail, tail=tail, free=free)

    def _hits(self, demand: Demand) -> list[CachedBlock]:
        known = 0 if demand.token_ids is None else min(demand.num_tokens - 1, len(demand.token_ids))
        # The last token is always computed, for its logits: its block is never reused.
        return self._match(demand, known // self.block_size)

    def _match(self, demand: Demand, num_blocks: int) -> list[CachedBlock]:
        """What is published of the first `num_blocks` blocks of `demand`."""
        if demand.token_ids is None or not self._finds:
            return []
        return self._blocks.match(contents(demand.token_ids, self.block_size, 0, num_blocks), demand.salt)

    def _no_room(self, hits: list[CachedBlock], slots: int, known: int) -> Refusal | None:
        """Why nobody can come in now with `hits`, `slots` slots and `known` tokens; None if they can.

        Alone in memory, a request that fits at all is always let in: nothing is promised, and no watermark is kept.
        """
        needed = blocks_for(known if self.full_fit else slots, self.block_size) - len(hits)
        free = self._blocks.available_after(hits)
        reserves = ((Reason.NO_ROOM, 0), (Reason.PROMISED, self._promised), (Reason.WATERMARK, self._kept_free()))
        for reason, blocks in reserves:
            needed += blocks
            if needed > free:
                return self._refusal(reason, needed * self.block_size, free)
        return None

    def _kept_free(self) -> int:
        return self.num_watermark_blocks if self._live else 0

    def _promise_to(self, demand: Demand) -> int:
        return blocks_for(demand.num_tokens, self.block_size) if self.full_fit else 0

    def _enter(self, sequence: Sequence, hits: list[CachedBlock]) -> None:
        """Put a checked sequence on the device, its first blocks those of `hits`."""
        num_new = blocks_for(sequence.num_tokens, self.block_size) - len(hits)
        sequence.lie_in(self._blocks.take(hits, num_new), hits)
        self._blocks.link(sequence.computed)
        self._live[sequence.demand.request] = sequence
        self._promised += sequence.num_still_promised

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence off the device."""
        del self._live[sequence.demand.request]
        self._promised -= sequence.num_still_promised
        # Tail first: both the order of eviction and the time of release follow this order.
        self._blocks.release(sequence.blocks[::-1])
        self._blocks.unlink(sequence.computed)

    def _grow(self, sequence: Sequence, num_tokens: int) -> Grant | Refusal:
        """Slots behind the room: new blocks, and a copy of the tail first if somebody else holds it too."""
        blocks = sequence.blocks
        copy_tail = sequence.tail_is_partial and self._blocks.pool.ref_count(blocks[-1]) > 1
        # One request for the copy and the growth together: either all of it fits or nothing changes.
        needed = max(0, blocks_for(num_tokens, self.block_size) - len(blocks)) + copy_tail
        if needed > self.num_free_blocks:
            reason = Reason.NO_ROOM if num_tokens <= self.capacity else Reason.NEVER_FITS
            return self._refusal(reason, needed * self.block_size, self.num_free_blocks)
        still_promised = sequence.num_still_promised
        new = self._blocks.take([], needed)
        grant = _NOTHING_NEW
        if copy_tail:
            shared_tail, own_tail = blocks[-1], new.pop(0)
            self._blocks.release([shared_tail])
            blocks[-1] = own_tail
            sequence.copied = True
            grant = Grant(copies=((shared_tail, own_tail),))
        blocks += new
        sequence.num_tokens = num_tokens
        sequence.room = len(blocks) * self.block_size
        self._promised += sequence.num_still_promised - still_promised
        return grant

    def _publish(self, sequence: Sequence) -> None:
        """Publish the full blocks that are computed and whose token ids are known."""
        ids, salt = sequence.demand.token_ids, sequence.demand.salt
        assert ids is not None, "a request without token ids has nothing to publish"
        first, stop = sequence.num_computed_blocks, sequence.num_known // self.block_size
        for number, tokens in enumerate(contents(ids, self.block_size, first, stop), start=first):
            entry = self._blocks.publish(sequence.computed, tokens, salt, sequence.blocks[number])
            sequence.stand_on(entry, number + 1)

    def _refusal(self, reason: Reason, needed_tokens: int, free_blocks: int | None = None) -> Refusal:
        free = (self.num_free_blocks if free_blocks is None else free_blocks) * self.block_size
        return Refusal(reason, needed_tokens, free, free)

    def _new_id(self, request: int) -> None:
        if index(request) in self._live or request in self._swapped:
            raise ValueError(f"request {request} is in memory already")

    def _sequence(self, request: int) -> Sequence:
        sequence = self._live.get(index(request))
        if sequence is None:
            raise self._absent(request)
        return sequence

    def _absent(self, request: int) -> Exception:
        if request in self._swapped:
            return ValueError(f"request {request} is swapped out")
        return KeyError(f"no request {request}")

    def check_invariants(self) -> None:
        """I1 to I8. Cost: O(num_blocks + tokens held or published). AssertionError names the offender."""
        live = self._live.values()
        holders = Counter(block for sequence in live for block in sequence.blocks)
        self._blocks.check_invariants(holders, (sequence.computed for sequence in live))
        self._host.check_invariants()
        for sequence in live:
            sequence.check(lambda block: holders[block] == 1 and not self._blocks.is_published(block))
            self._blocks.check_chain(sequence.computed, sequence.standing(), sequence.demand.salt, sequence.blocks)
        for request, sequence in self._swapped.items():
            num_blocks = len(self._host.blocks(request))
            expected = blocks_for(sequence.num_tokens, self.block_size)
            assert num_blocks == expected, f"I5: request {request} lies in {num_blocks} host blocks, not {expected}"
        promised = sum(sequence.num_still_promised for sequence in live)
        assert promised == self._promised, f"I1: {promised} blocks are promised, {self._promised} counted"
