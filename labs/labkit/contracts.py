"""What every lab promises: the Protocols, and the errors that cross them.

Owns: the names, shapes and errors that students, public checks, hidden tests and the engine agree on. Knows nothing of
how any of them is built or tested. Everything here is fixed: changing a signature changes every student's work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class OutOfBlocks(Exception):  # noqa: N818 - the contract's name, part of every student's code
    """Too few free blocks; the call that raised it changed nothing.

    Takes any arguments. Two integers, `OutOfBlocks(needed, free)`, give the standard message.
    """

    def __str__(self) -> str:
        if len(self.args) == 2 and all(isinstance(arg, int) for arg in self.args):
            needed, free = self.args
            return f"{needed} blocks needed, {free} free"
        return super().__str__()


@runtime_checkable
class BlockAllocator(Protocol):
    """Lab 3: which sequence holds which block of KV memory.

    Every error leaves the allocator as it was. Ids are checked first (KeyError: unknown, ValueError: exists already),
    then values (ValueError), then blocks (OutOfBlocks). Integers are whatever `operator.index` takes. A sequence of
    `n` tokens holds exactly `ceil(n / block_size)` blocks. Every list that is returned is the caller's own, who may
    change it. Source: Kwon et al., SOSP 2023, sections 4.3 to 4.5.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """A pool of `num_blocks` free blocks of `block_size` tokens. ValueError unless both are at least 1."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds; an attribute or a property."""

    def allocate(self, seq: int, num_tokens: int) -> None:
        """Start sequence `seq` with room for `num_tokens` >= 1 tokens. Cost: O(blocks touched)."""

    def append(self, seq: int, num_tokens: int = 1) -> list[tuple[int, int]]:
        """Grow `seq` by `num_tokens` >= 1; returns the block copies (src, dst) the engine must make before it writes.

        A partial tail shared with another sequence is copied before it is written, and the writer gets `dst`: at most
        one copy a call. The last holder writes in place; a full tail is never copied. Cost: O(blocks touched).
        """

    def fork(self, parent: int, child: int) -> None:
        """Start `child` with every block of `parent`, the partial tail too. Takes no free block. Cost: O(blocks)."""

    def free(self, seq: int) -> None:
        """End `seq`; a block is free exactly when nobody holds it. Cost: O(blocks touched)."""

    def block_table(self, seq: int) -> list[int]:
        """Physical block ids in [0, num_blocks) in logical order. Cost: O(blocks)."""

    def num_tokens(self, seq: int) -> int:
        """Tokens of `seq`."""

    def slot_mapping(self, seq: int, start: int, stop: int) -> list[int]:
        """Slots `block * block_size + offset` of tokens start..stop-1.

        ValueError unless 0 <= start <= stop <= num_tokens; start == stop gives [].
        """


class OutOfMemory(Exception):  # noqa: N818 - the contract's name, part of every student's code
    """No hole is long enough; the call that raised it changed nothing.

    Takes any arguments. Three integers, `OutOfMemory(needed, largest, free)`, give the standard message.
    """

    def __str__(self) -> str:
        if len(self.args) == 3 and all(isinstance(arg, int) for arg in self.args):
            needed, largest, free = self.args
            return f"{needed} in a row needed, the largest hole is {largest}, {free} free in all"
        return super().__str__()


@runtime_checkable
class ContiguousAllocator(Protocol):
    """Lab 2: one contiguous range of memory for each owner, first fit.

    Sizes and starts count units (tokens, bytes: the allocator does not care). Every error leaves the allocator as it
    was. Source: Kwon et al., SOSP 2023, section 3.1, for what becomes of KV memory under it.
    """

    def __init__(self, capacity: int) -> None:
        """One hole of `capacity` units."""

    def allocate(self, owner: int, size: int) -> int:
        """Give `owner` the first `size` units of the lowest hole that has them; returns the start of the range.

        OutOfMemory, with nothing changed, if no hole is long enough, however much is free in all.
        """

    def free(self, owner: int) -> None:
        """Return the range of `owner`; it grows together with the holes that touch it. KeyError if unknown."""

    def holes(self) -> list[tuple[int, int]]:
        """Every hole as (start, size), by start; no two of them touch."""


@runtime_checkable
class AttentionBackend(Protocol):
    """Lab 4: attention over keys and values that lie in blocks. Two functions, those of a module or of an object.

    The caches are [num_blocks, block_size, kv_heads, head_dim]. One dtype for query, caches and out: float32, float16
    or bfloat16. The last dimension is contiguous, the others go by their strides. Source: Kwon et al., SOSP 2023,
    section 4.1; Dao et al., NeurIPS 2022, section 3.1, for the softmax that needs no second pass.
    """

    def store_kv(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write key and value [tokens, kv_heads, head_dim] into their slots [tokens] int64; slot -1 writes nowhere."""

    def paged_attention(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        scale: float,
        out: Tensor,
    ) -> None:
        """One query token a sequence, [batch, heads, head_dim], over the first `context_lens` tokens of its blocks.

        block_tables: [batch, max_blocks] int32, entries behind the last block are -1 or anything. context_lens: [batch]
        int32; 0 gives zeros. heads % kv_heads == 0, query head h reads KV head h // (heads // kv_heads). Every element
        of `out` [batch, heads, head_dim] is written, nothing else is.
        """


@runtime_checkable
class PrefixCache(Protocol):
    """Lab 5: blocks of KV memory that a later prompt with the same beginning can use again.

    Every error leaves the cache as it was. Ids are checked first (KeyError: unknown, ValueError: exists already), then
    values (ValueError), then blocks (OutOfBlocks). A block is shared from the moment it is committed, as long as it is
    not evicted: least recently released first, tails before heads, and only when no blank block is left. Of two
    committed copies of one content the first is the shared one; the other goes blank on release. A table never changes.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """A cache of `num_blocks` blank blocks of `block_size` tokens. ValueError unless both are at least 1."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds, blank or to be evicted; an attribute or a property."""

    def acquire(self, seq: int, tokens: list[int], salt: str = "") -> int:
        """Start `seq` with blocks for all `tokens` (ids 0 .. 2**31 - 1, at least one); returns the tokens reused.

        Reused is the longest run of committed full blocks with the same salt and the same tokens from the first one on,
        stopping before the last token: a multiple of block_size, and less than len(tokens). OutOfBlocks exactly when
        the new blocks exceed num_free_blocks less the idle blocks among the reused.
        Cost: O(tokens) and O(log num_blocks) a block.
        """

    def commit(self, seq: int, num_tokens: int) -> None:
        """The KV of the first `num_tokens` tokens is computed: their full blocks may be shared from now on.

        Cumulative and repeatable. ValueError unless 0 <= num_tokens <= the tokens acquired.
        """

    def release(self, seq: int) -> None:
        """End `seq`. Committed blocks stay for later prompts, the others are forgotten."""

    def block_table(self, seq: int) -> list[int]:
        """Physical block ids in [0, num_blocks) in logical order; the caller's own copy."""


@dataclass(frozen=True)
class StepPlan:
    """What one step of the engine is to do, as plain data: what `Scheduler.schedule` returns (lab 6).

    scheduled: request -> tokens to compute in this step, each at least 1. preempted: requests whose blocks were taken
    back; they compute all their tokens again later. admitted: requests that run from this step on, for the first time
    or again. A request that waits stands in none of the three.
    """

    scheduled: Mapping[int, int] = field(default_factory=dict)
    preempted: Collection[int] = ()
    admitted: Collection[int] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole step: at most the scheduler's `max_tokens_per_step`."""
        return sum(self.scheduled.values())


@runtime_checkable
class Scheduler(Protocol):
    """Lab 6: which requests compute how many tokens in the next step.

    A request has some tokens, of which some are computed. A step computes the tokens scheduled for it; once all are
    computed, that step gives one new token, until the request is finished. The last new token is returned and never
    computed. A running request holds `ceil(computed and scheduled tokens / block_size)` blocks; a preempted one holds
    none and has computed nothing. Source: Yu et al. (Orca), OSDI 2022, section 3; Agrawal et al. (Sarathi-Serve), OSDI
    2024, section 4, for prefill in chunks; Kwon et al., SOSP 2023, section 4.5, for preemption.
    """

    def __init__(self, num_blocks: int, block_size: int, max_tokens_per_step: int, max_running: int) -> None:
        """Nothing waits, nothing runs. ValueError unless all four are at least 1."""

    def add(self, request: int, prompt_tokens: int, max_new_tokens: int) -> None:
        """Let `request` wait. ValueError on a known id, on sizes below 1, and if it could never fit in the blocks."""

    def abort(self, request: int) -> None:
        """End `request` wherever it is; it gets no further tokens. KeyError if unknown."""

    def schedule(self) -> StepPlan:
        """The next step. Never more than `max_tokens_per_step` tokens, `max_running` requests or `num_blocks` blocks.

        A plan without tokens is given only when nothing waits and nothing runs.
        """

    def finish_step(self, finished: set[int]) -> None:
        """The step that was scheduled last is done, and the requests in `finished` ended with it."""
