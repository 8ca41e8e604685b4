"""One request in the memory of `kv_manager.py`: its table, how far it is computed, and what it may do without asking.

Owns: the counters beside a block table, and what a demand must be to be taken in. Knows nothing of the pool: who shares
a block, and when a block may be taken, is for the manager to say.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from operator import index

from reference_impl.memory.block_table import BlockTable
from reference_impl.memory.cached_block import CachedBlock
from reference_impl.memory.contiguous import at_least_one
from reference_impl.memory.kv_memory import Demand
from reference_impl.memory.published_blocks import contents

NEVER = sys.maxsize
"""More tokens than there will ever be."""


class Sequence(BlockTable):
    """A block table with `room`, `committed` and the content that its computed blocks stand for."""

    __slots__ = (
        "committed",
        "computed",
        "copied",
        "demand",
        "num_computed_blocks",
        "promised",
        "publish_at",
        "publishes",
        "room",
    )

    def __init__(self, demand: Demand, block_size: int, num_tokens: int, *, publishes: bool, promised: int) -> None:
        super().__init__(block_size, [], num_tokens)
        self.demand = demand
        self.publishes = publishes and demand.token_ids is not None
        self.promised = promised
        """Blocks that it may come to by the word of its admission."""
        self.committed = 0
        """Tokens whose KV is computed."""
        self.copied = False
        """Whether its tail is still to be copied, by the step that is planned."""
        self.room = 0
        """Tokens up to which it grows in place: fewer than its blocks hold while its tail may be shared."""
        self.lie_in([], [])

    def lie_in(self, blocks: list[int], hits: list[CachedBlock]) -> None:
        """Its blocks are these from now on; the first of them are those of `hits`, the rest is its own."""
        self.blocks = blocks
        self.room = len(blocks) * self.block_size
        self.stand_on(hits[-1] if hits else None, len(hits))

    def stand_on(self, computed: CachedBlock | None, num_blocks: int) -> None:
        """The content of its first `num_blocks` blocks is `computed`: what it publishes next stands on that."""
        self.computed = computed
        self.num_computed_blocks = num_blocks
        # Computed tokens from which there is something to publish.
        self.publish_at: int = (num_blocks + 1) * self.block_size if self.publishes else NEVER

    @property
    def num_still_promised(self) -> int:
        """Blocks of its promise that it has not taken."""
        return max(0, self.promised - len(self.blocks))

    @property
    def num_known(self) -> int:
        """Computed tokens whose ids are known: what could be published, or found again."""
        ids = self.demand.token_ids
        return 0 if ids is None or not self.publishes else min(self.committed, len(ids))

    @property
    def next_slots(self) -> int:
        """Slots that it has, and one for its next token if there is to be one that is computed."""
        end = self.demand.num_tokens + self.demand.max_new_tokens - 1
        return max(self.num_tokens, min(self.num_tokens + 1, end))

    def child(self, demand: Demand, promised: int) -> Sequence:
        """Another request with the same blocks, computed as far. Raises: ValueError if `demand` is no such request."""
        self._check_child(demand)
        child = Sequence(demand, self.block_size, self.num_tokens, publishes=self.publishes, promised=promised)
        child.lie_in(list(self.blocks), [])
        child.stand_on(self.computed, self.num_computed_blocks)
        child.committed = self.committed
        return child

    def _check_child(self, demand: Demand) -> None:
        parent = self.demand
        if self.committed != self.num_tokens:
            raise ValueError(
                f"request {parent.request} has {self.num_tokens} slots and {self.committed} computed tokens: "
                "commit its step, or truncate it, before it is forked"
            )
        if demand.num_tokens < self.num_tokens:
            raise ValueError(f"num_tokens is {demand.num_tokens}, the parent has {self.num_tokens} computed tokens")
        if demand.salt != parent.salt:
            raise ValueError(f"salt is {demand.salt!r}, the parent's is {parent.salt!r}")
        mine, other = parent.token_ids, demand.token_ids
        if mine is None and other is None:
            return
        if mine is None or other is None or mine[: self.num_tokens] != other[: self.num_tokens]:
            raise ValueError(f"token_ids do not begin with the {self.num_tokens} tokens of request {parent.request}")

    def standing(self) -> list[bytes]:
        """The contents of the blocks that it stands on, by its own tokens. Cost: O(tokens)."""
        ids = self.demand.token_ids
        return [] if ids is None else list(contents(ids, self.block_size, 0, self.num_computed_blocks))

    def check(self, is_own: Callable[[int], bool]) -> None:
        """I5, I6 and I8, and the counters among themselves; `is_own` says whether only this request may see a block.

        AssertionError names the request.
        """
        self.check_invariants()
        name, room = f"request {self.demand.request}", len(self.blocks) * self.block_size
        assert self.committed <= self.num_tokens <= self.room <= room, (
            f"I5: {name}: {self.committed} computed, {self.num_tokens} slots, room for {self.room} in {room}"
        )
        published = self.num_computed_blocks * self.block_size
        assert published <= self.committed, f"I7: {name} stands on {published} tokens, {self.committed} are computed"
        if self.committed < self.room:
            for block in self.blocks[self.committed // self.block_size :]:
                assert is_own(block), f"I6: {name} may still write block {block}, which is shared or published"


def check_demand(demand: Demand) -> None:
    """Raises: ValueError or TypeError, naming the field, on a demand that makes no sense."""
    index(demand.request)
    at_least_one("num_tokens", demand.num_tokens)
    at_least_one("max_new_tokens", demand.max_new_tokens)
    ids = demand.token_ids
    # Contents are compared as bytes, so every request's ids must be of one width.
    if ids is not None and not (isinstance(ids, array) and ids.typecode == "i"):
        raise TypeError(f"token_ids must be an array of typecode 'i', got {ids!r:.60}")
    if not isinstance(demand.salt, str):
        raise TypeError(f"salt must be a string, got {demand.salt!r}")
