"""Blocks as tokens come, by any allocator of lab 3, as a way to keep KV beside those of `policies.py`.

Owns: what the allocator is asked and when, and the check of what it answers: it may be a student's. Knows nothing of
how it finds a block. The reference allocator passes the same checks, which take O(blocks answered).
Any free block serves any request, so no free memory is external.
Source: Kwon et al., SOSP 2023, sections 4.3 (tables) and 4.4 (sharing, copy-on-write).
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import NoReturn

from labkit.contracts import BlockAllocator as BlockContract
from labkit.contracts import OutOfBlocks
from reference_impl.memory.accounting import Account
from reference_impl.memory.answers import checked_table
from reference_impl.memory.block_allocator import BlockAllocator
from reference_impl.memory.block_table import blocks_for
from reference_impl.memory.contiguous import at_least_one
from reference_impl.memory.kv_policy import BlockCopies, Live, Reason, Refusal, Requests
from reference_impl.plugin import ContractError, named


class PagedBlocks(Requests):
    """`KVPolicy` by the allocator that `allocator` makes; nobody else calls it.

    Raises: ValueError on a capacity that is not whole blocks, because a comparison at equal bytes would not be one.
    """

    def __init__(
        self, capacity: int, block_size: int = 16, allocator: Callable[[int, int], BlockContract] = BlockAllocator
    ) -> None:
        super().__init__(capacity, block_size)
        if self.capacity % self.block_size:
            raise ValueError(f"capacity {capacity} is no multiple of block_size {block_size}")
        self.num_blocks = self.capacity // self.block_size
        self.blocks = allocator(self.num_blocks, self.block_size)
        self._family: set[int] = set()
        """Live requests that were forked, or from which one was: their blocks may be in several tables."""

    def admit(self, request: int, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Refusal | None:
        live = self._announced(request, prompt_tokens, max_new_tokens, true_new_tokens)
        if (refusal := self._never_fits(live)) is not None:
            return refusal
        try:
            self.blocks.allocate(request, live.held)
        except OutOfBlocks:
            return self._refusal(self._slots(live.held))
        self._live[index(request)] = live
        return None

    def _never_fits(self, live: Live) -> Refusal | None:
        return self._refusal(live.limit, Reason.NEVER_FITS) if live.limit > self.capacity else None

    def append(self, request: int, num_tokens: int = 1) -> BlockCopies | Refusal:
        live, held = self._growing(request, num_tokens)
        try:
            copies = self._copies(request, self.blocks.append(request, held - live.held))
        except OutOfBlocks:
            needed = self._slots(held) - self._slots(live.held)
            # Who may share its tail may need one block more, for its copy.
            copy = self.block_size if request in self._family and live.held % self.block_size else 0
            return self._refusal(needed + copy)
        live.held = held
        return copies

    def fork(
        self, parent: int, request: int, num_tokens: int, max_new_tokens: int, true_new_tokens: int
    ) -> Refusal | None:
        child = self._child(parent, request, num_tokens, max_new_tokens, true_new_tokens)
        if (refusal := self._never_fits(child)) is not None:
            return refusal
        self.blocks.fork(parent, request)
        self._live[index(request)] = child
        self._family |= {index(parent), index(request)}
        return None

    def finish(self, request: int) -> None:
        self._known(request)
        self.blocks.free(request)
        del self._live[index(request)]
        self._family.discard(index(request))

    def block_table(self, request: int) -> list[int]:
        live = self._known(request)
        answer = self.blocks.block_table(request)
        asked = f"{named(self.blocks)}: block_table({request})"
        return checked_table(asked, answer, live.held, self.num_blocks, self.block_size)

    def account(self, wanted: int = 1) -> Account:
        """Blocks in several tables count once. Cost: O(requests), and O(blocks) for those that were forked."""
        at_least_one("wanted", wanted)
        free = self.blocks.num_free_blocks * self.block_size
        if not self._family:
            held = sum(live.held for live in self._live.values())
            tail = sum(self._slots(live.held) - live.held for live in self._live.values())
            return Account(held=held, tail=tail, free=free)
        # The empty slots behind every last token; a tail that is shared by forks is one tail.
        tails = {self.block_table(request)[-1]: -live.held % self.block_size for request, live in self._live.items()}
        tail = sum(tails.values())
        return Account(held=self.capacity - free - tail, tail=tail, free=free)

    def _slots(self, tokens: int) -> int:
        return blocks_for(tokens, self.block_size) * self.block_size

    def _refusal(self, needed: int, reason: Reason | None = None) -> Refusal:
        free = self.blocks.num_free_blocks * self.block_size
        if reason is None and needed <= free:
            # The scheduler would make room and ask again, for ever.
            blocks = f"{needed // self.block_size} blocks needed, {free // self.block_size} free"
            raise ContractError(f"{named(self.blocks)}: allocate() or append() raised OutOfBlocks, {blocks}")
        return Refusal(Reason.NO_ROOM if reason is None else reason, needed, free, free)

    def _copies(self, request: int, answer: list[tuple[int, int]]) -> BlockCopies:
        """What `append` answered. Raises: ContractError unless it is a copy into the request's own table, or none."""
        if isinstance(answer, list) and not answer:
            return ()
        try:
            ((src, dst),) = ((index(src), index(dst)) for src, dst in answer)
        except (TypeError, ValueError):
            self._wrong(request, answer, "which is no list of at most one copy (src, dst)")
        if not 0 <= src < self.num_blocks or dst not in self.blocks.block_table(request):
            self._wrong(request, answer, "which does not lead into its table")
        return ((src, dst),)

    def _wrong(self, request: int, answer: object, why: str) -> NoReturn:
        raise ContractError(f"{named(self.blocks)}: append({request}) returned {answer!r:.80}, {why}")
