"""Ways to keep the KV of requests in memory: contiguous three ways, growing, padded; and all ways by name.

Owns: how much memory a request is given, when, and what happens when it runs short. Knows nothing of queues or time:
whether a refused request waits, and whom to preempt, is for the caller to say (see `occupancy.py`).
The contract is in `kv_policy.py`, the way by blocks in `paged_blocks.py`.
Source: Kwon et al., SOSP 2023, sections 3.1 and 6.1 (reserving the maximum, a power of two, or the true length).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Literal

from labkit.contracts import OutOfMemory
from reference_impl.memory.accounting import Account, split_free
from reference_impl.memory.buddy import BuddyAllocator
from reference_impl.memory.contiguous import ContiguousAllocator, at_least_one
from reference_impl.memory.kv_policy import BlockCopies, KVPolicy, Live, Reason, Refusal, Requests
from reference_impl.memory.paged_blocks import PagedBlocks

Placement = Literal["first", "best", "buddy"]

Rule = Callable[[Live, int], int]
"""How many tokens to reserve for a request, all in one range and once for all, where no range has more than so many."""


def reserve_max(max_length: int) -> Rule:
    """The longest sequence that the model could make, for every request."""
    length = at_least_one("max_length", max_length)
    return lambda live, longest: length


def reserve_power_of_two(live: Live, longest: int) -> int:
    """The prompt, and the power of two next above the true output: a guess wrong by a factor of less than two.

    A guess beyond the longest range is cut to that: 8 tokens and 8 more fit in 16, so 9 tokens and 7 more do as well.
    """
    guess = live.held + (1 << (live.final - live.held - 1).bit_length())
    return max(live.final, min(guess, live.limit, longest))


def reserve_oracle(live: Live, longest: int) -> int:
    """Exactly what the request will use. No server can know it; it bounds what any guess of lengths could gain."""
    return live.final


class _Ranges(Requests):
    """Each live request has one range of an allocator, under the request's id unless a subclass moves it."""

    def __init__(self, capacity: int, placement: Placement) -> None:
        super().__init__(capacity)
        self.memory = BuddyAllocator(capacity) if placement == "buddy" else ContiguousAllocator(capacity, placement)

    def _refusal(self, needed: int, reason: Reason | None = None) -> Refusal:
        sizes = [size for _, size in self.memory.holes()]
        free, largest = sum(sizes), max(sizes, default=0)
        if reason is None:
            reason = Reason.NO_RANGE if needed <= free else Reason.NO_ROOM
        if needed > self.memory.longest_possible:
            reason = Reason.NEVER_FITS
        return Refusal(reason, needed, free, largest)

    def account(self, wanted: int = 1) -> Account:
        held = reserved = internal = 0
        for request, live in self._live.items():
            length = self._range(request)[1]
            # A range that can still grow may be shorter than the request's end.
            used = min(live.final, length)
            held += live.held
            reserved += used - live.held
            internal += length - used
        external, free = split_free(self.memory.holes(), at_least_one("wanted", wanted))
        return Account(held, reserved, internal, 0, external, free)

    def block_table(self, request: int) -> list[int]:
        held = self._known(request).held
        start, _ = self._range(request)
        return list(range(start, start + held))

    def _range(self, request: int) -> tuple[int, int]:
        """(start, size) of what a live request has."""
        return self.memory.range_of(request)


class ReservedRanges(_Ranges):
    """One range for the whole life of a request, as long as `rule` says; tokens never need more memory."""

    def __init__(self, capacity: int, rule: Rule, placement: Placement = "first") -> None:
        super().__init__(capacity, placement)
        self._rule = rule

    def admit(self, request: int, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Refusal | None:
        live = self._announced(request, prompt_tokens, max_new_tokens, true_new_tokens)
        if (refusal := self._never_fits(live)) is not None:
            return refusal
        size = self._rule(live, self.memory.longest_possible)
        try:
            self.memory.allocate(request, size)
        except OutOfMemory:
            return self._refusal(size)
        self._live[index(request)] = live
        return None

    def _never_fits(self, live: Live) -> Refusal | None:
        size = self._rule(live, self.memory.longest_possible)
        if size < live.final:
            # The server would have to stop it at the model's longest sequence: it is refused at the door instead.
            return self._refusal(live.final, Reason.TOO_LONG)
        return self._refusal(size) if size > self.memory.longest_possible else None

    def append(self, request: int, num_tokens: int = 1) -> BlockCopies | Refusal:
        live, held = self._growing(request, num_tokens)
        live.held = held
        return ()

    def finish(self, request: int) -> None:
        self._known(request)
        self.memory.free(request)
        del self._live[index(request)]


class GrowingRanges(_Ranges):
    """A range as long as the prompt; when it is full, twice as long: in place if it can, else elsewhere.

    A move needs the new range while the old one is still there, and copies every token written. `copied_tokens` counts
    them, `copied_bytes` at `bytes_per_token`. A range never exceeds the request's limit. The old range is free at once:
    another request may be given it in the same step, because all copies of a step are read before any is written.
    """

    def __init__(self, capacity: int, bytes_per_token: int = 1, placement: Literal["first", "best"] = "first") -> None:
        super().__init__(capacity, placement)
        self.bytes_per_token = at_least_one("bytes_per_token", bytes_per_token)
        self._range_ids: dict[int, int] = {}
        self._next_range_id = 0

    @property
    def copied_bytes(self) -> int:
        """Bytes read and written again only because ranges were too short."""
        return self.copied_tokens * self.bytes_per_token

    def admit(self, request: int, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Refusal | None:
        live = self._announced(request, prompt_tokens, max_new_tokens, true_new_tokens)
        if (refusal := self._never_fits(live)) is not None:
            return refusal
        if not self._take(request, live.held):
            return self._refusal(live.held)
        self._live[index(request)] = live
        return None

    def _never_fits(self, live: Live) -> Refusal | None:
        return self._refusal(live.limit) if live.limit > self.capacity else None

    def append(self, request: int, num_tokens: int = 1) -> BlockCopies | Refusal:
        live, needed = self._growing(request, num_tokens)
        copies: BlockCopies | None = ()
        if needed > (length := self._range(request)[1]):
            # Twice as long, so that a request moves O(log tokens) times; as long as needed where that has no room.
            copies = self._grow(request, min(live.limit, max(needed, 2 * length)))
            if copies is None:
                copies = self._grow(request, needed)
        if copies is None:
            return self._refusal(needed)
        live.held = needed
        return copies

    def finish(self, request: int) -> None:
        self._known(request)
        self.memory.free(self._range_ids.pop(index(request)))
        del self._live[index(request)]

    def _grow(self, request: int, size: int) -> BlockCopies | None:
        """The copies that a range of `size` costs; None, with nothing changed, if there is no room for it."""
        old = self._range_ids[index(request)]
        start, length = self.memory.range_of(old)
        assert isinstance(self.memory, ContiguousAllocator), "buddies do not grow in place"
        if self.memory.extend(old, size - length):
            return ()
        if not self._take(request, size):
            return None
        self.memory.free(old)
        computed, new_start = self._live[index(request)].computed, self._range(request)[0]
        self.copied_tokens += computed
        return tuple(zip(range(start, start + computed), range(new_start, new_start + computed), strict=True))

    def _take(self, request: int, size: int) -> bool:
        try:
            self.memory.allocate(self._next_range_id, size)
        except OutOfMemory:
            return False
        self._range_ids[index(request)] = self._next_range_id
        self._next_range_id += 1
        return True

    def _range(self, request: int) -> tuple[int, int]:
        return self.memory.range_of(self._range_ids[index(request)])


class PaddedBatch(Requests):
    """One rectangle for a batch: rows as long as the longest prompt and the longest allowed output together.

    Requests join until the first of them has KV in its row. From then on nobody joins, and the rectangle stays where it
    is, finished rows with it, until the last row is done. Prompts end in one column, so a short one starts further
    right in its row.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._running: tuple[int, int] | None = None
        self._starts: dict[int, int] = {}
        """Request -> slot of its first token, once the batch runs."""

    def admit(self, request: int, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Refusal | None:
        live = self._announced(request, prompt_tokens, max_new_tokens, true_new_tokens)
        if (refusal := self._never_fits(live)) is not None:
            return refusal
        if self._running is not None:
            return self._refusal(live.limit, Reason.BATCH_RUNS)
        rows, length = self._rectangle()
        self._live[index(request)] = live
        wider_rows, wider = self._rectangle()
        if wider_rows * wider > self.capacity:
            del self._live[index(request)]
            return self._refusal(wider_rows * wider - rows * length)
        return None

    def _refusal(self, needed: int, reason: Reason | None = None) -> Refusal:
        rows, length = self._rectangle()
        free = self.capacity - rows * length
        return Refusal(Reason.NO_ROOM if reason is None else reason, needed, free, free)

    def _never_fits(self, live: Live) -> Refusal | None:
        return self._refusal(live.limit, Reason.NEVER_FITS) if live.limit > self.capacity else None

    def append(self, request: int, num_tokens: int = 1) -> BlockCopies | Refusal:
        live, held = self._growing(request, num_tokens)
        self._run()
        live.held = held
        return ()

    def commit(self, request: int, num_tokens: int) -> None:
        super().commit(request, num_tokens)
        if num_tokens:
            self._run()

    def finish(self, request: int) -> None:
        self._known(request)
        del self._live[index(request)]
        if not self._live:
            self._running = None
            self._starts = {}

    def block_table(self, request: int) -> list[int]:
        held = self._known(request).held
        start = (self._starts or self._rows())[index(request)]
        return list(range(start, start + held))

    def account(self, wanted: int = 1) -> Account:
        rows, length = self._rectangle()
        live = self._live.values()
        held = sum(row.held for row in live)
        reserved = sum(row.final - row.held for row in live)
        # Pads before the prompt, steps after the row's own end, and whole rows that are done.
        internal = sum(length - row.final for row in live) + (rows - len(live)) * length
        external, free = split_free([(0, self.capacity - rows * length)], at_least_one("wanted", wanted))
        return Account(held, reserved, internal, 0, external, free)

    def _run(self) -> None:
        """Something stands in a row: from now on the rectangle and its rows stay as they are."""
        if self._running is None:
            self._running, self._starts = self._rectangle(), self._rows()

    def _rows(self) -> dict[int, int]:
        """Request -> slot of its first token, before the batch runs. Cost: O(rows)."""
        _, length = self._rectangle()
        return {
            request: row * length + self._longest_prompt() - live.held
            for row, (request, live) in enumerate(self._live.items())
        }

    def _rectangle(self) -> tuple[int, int]:
        """(rows, slots in a row). Until the batch runs nothing has been appended: what a row holds is its prompt."""
        if self._running is not None:
            return self._running
        output = max((live.limit - live.held for live in self._live.values()), default=0)
        return len(self._live), self._longest_prompt() + output

    def _longest_prompt(self) -> int:
        return max((live.held for live in self._live.values()), default=0)


@dataclass(frozen=True)
class Sizes:
    """What a policy is made from: memory and longest sequence in tokens, tokens of a block, and how ranges are found.

    `placement` is how the three policies that reserve find a range; the source assumes buddies for them.
    """

    capacity: int
    max_length: int
    block_size: int = 16
    placement: Placement = "buddy"


POLICIES: dict[str, Callable[[Sizes], KVPolicy]] = {
    "padded": lambda sizes: PaddedBatch(sizes.capacity),
    "reserve_max": lambda sizes: ReservedRanges(sizes.capacity, reserve_max(sizes.max_length), sizes.placement),
    "pow2": lambda sizes: ReservedRanges(sizes.capacity, reserve_power_of_two, sizes.placement),
    "oracle": lambda sizes: ReservedRanges(sizes.capacity, reserve_oracle, sizes.placement),
    "grow": lambda sizes: GrowingRanges(sizes.capacity),
    "paged": lambda sizes: PagedBlocks(sizes.capacity, sizes.block_size),
}
"""Name -> the policy for these sizes."""
