"""What a way to keep the KV of requests promises, and what all ways check alike.

Owns: the Protocol `KVPolicy`, the refusals, and the checks of ids and values. Knows nothing of ranges or blocks: the
ways themselves are in `policies.py` and `paged_blocks.py`. Every call checks ids, then values, then memory, and a
refused call changes nothing. A refusal is a result, not an error: it says why, what was needed and what was free.
A token that was committed stays in its slot, unless `append` answers a copy of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from operator import index
from typing import Protocol, runtime_checkable

from reference_impl.memory.accounting import Account
from reference_impl.memory.contiguous import at_least_one

BlockCopies = tuple[tuple[int, int], ...]
"""Blocks (src, dst) to be copied, all of them read before any is written."""


class Reason(Enum):
    """Why a request or a token was refused."""

    NEVER_FITS = "more than the memory could ever give"
    TOO_LONG = "more than is ever kept for one request"
    ABOVE_BUDGET = "more than one step may compute, and prompts are not cut"
    NO_ROOM = "too little memory is free"
    NO_RANGE = "enough memory is free, but no hole is long enough"
    BATCH_RUNS = "the batch runs, and nobody joins it"
    PROMISED = "what is free is promised to requests that are in memory"
    WATERMARK = "too little memory would stay free for those that are in memory"
    NO_HOST_ROOM = "too little memory is free on the host"
    NOT_SHARED = "this memory cannot be shared between requests"

    @property
    def is_final(self) -> bool:
        """Whether waiting could not help."""
        return self in (Reason.NEVER_FITS, Reason.TOO_LONG, Reason.ABOVE_BUDGET)


@dataclass(frozen=True)
class Refusal:
    """Nothing was changed; `needed`, `free` and `largest` (the largest hole) count tokens."""

    reason: Reason
    needed: int
    free: int
    largest: int

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.needed} needed, {self.free} free, {self.largest} in the largest hole"


@runtime_checkable
class KVPolicy(Protocol):
    """One way to keep requests in a memory of `capacity` tokens, in blocks of `block_size`; a range has blocks of 1."""

    capacity: int
    block_size: int
    copied_tokens: int
    """Tokens read and written again so far, only to make room."""

    def admit(self, request: int, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Refusal | None:
        """Take `request` in, with room for the KV of its prompt; None if that worked.

        Only the policies that say so look at `true_new_tokens` to decide: no server knows it beforehand. All use it
        for their account. Raises: ValueError on a known id, or unless prompt >= 1 and 1 <= true <= max.
        """

    def never_fits(self, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Refusal | None:
        """The final refusal that such a request would get from an empty memory too; None if waiting can help.

        Changes nothing. Raises: ValueError unless prompt >= 1 and 1 <= true <= max.
        """

    def append(self, request: int, num_tokens: int = 1) -> BlockCopies | Refusal:
        """Keep `num_tokens` more; the blocks that must be copied for it before anything is written.

        Raises: KeyError on an unknown id, ValueError beyond the true length or below 1.
        """

    def commit(self, request: int, num_tokens: int) -> None:
        """The KV of the first `num_tokens` tokens is written. Cumulative.

        Raises: KeyError on an unknown id, ValueError beyond the tokens that are kept.
        """

    def fork(
        self, parent: int, request: int, num_tokens: int, max_new_tokens: int, true_new_tokens: int
    ) -> Refusal | None:
        """Start `request`, of `num_tokens` tokens, with all blocks of `parent`, whose tokens are all committed.

        Raises: KeyError on an unknown parent, ValueError as `admit`, in the middle of the parent's step, and on fewer
        tokens than the parent keeps.
        """

    def block_table(self, request: int) -> list[int]:
        """The blocks of the tokens kept, in logical order; the caller's own copy. KeyError on an unknown id."""

    def finish(self, request: int) -> None:
        """Forget `request`, done or preempted. KeyError on an unknown id."""

    def account(self, wanted: int = 1) -> Account:
        """Where every slot is now; free memory is split by whether it could serve a request of `wanted` tokens."""


@dataclass
class Live:
    """A request in memory: tokens held now, at its true end, at the latest end it was allowed, and written so far."""

    held: int
    final: int
    limit: int
    computed: int = 0


class Requests(ABC):
    """The live requests, and the checks of ids and values that all policies share."""

    def __init__(self, capacity: int, block_size: int = 1) -> None:
        self.capacity = at_least_one("capacity", capacity)
        self.block_size = at_least_one("block_size", block_size)
        self.copied_tokens = 0
        self._live: dict[int, Live] = {}

    @abstractmethod
    def _refusal(self, needed: int, reason: Reason | None = None) -> Refusal:
        """A refusal of `needed` tokens; without a reason, the one that the memory gives now."""

    @abstractmethod
    def _never_fits(self, live: Live) -> Refusal | None:
        """The refusal of a request that no empty memory of this capacity could take; None if there is hope."""

    def never_fits(self, prompt_tokens: int, max_new_tokens: int, true_new_tokens: int) -> Refusal | None:
        return self._never_fits(self._lengths(prompt_tokens, max_new_tokens, true_new_tokens))

    def commit(self, request: int, num_tokens: int) -> None:
        live = self._known(request)
        if not 0 <= num_tokens <= live.held:
            raise ValueError(f"num_tokens must be 0 to the {live.held} slots of request {request}, got {num_tokens}")
        live.computed = max(live.computed, num_tokens)

    def fork(
        self, parent: int, request: int, num_tokens: int, max_new_tokens: int, true_new_tokens: int
    ) -> Refusal | None:
        child = self._child(parent, request, num_tokens, max_new_tokens, true_new_tokens)
        return self._refusal(child.held, Reason.NOT_SHARED)

    def _child(self, parent: int, request: int, num_tokens: int, max_new: int, true_new: int) -> Live:
        family = self._known(parent)
        child = self._announced(request, num_tokens, max_new, true_new)
        if family.computed != family.held:
            raise ValueError(
                f"request {parent} has {family.held} slots and {family.computed} computed tokens: "
                "commit its step before it is forked"
            )
        if child.held < family.held:
            raise ValueError(f"num_tokens is {child.held}, the parent has {family.held} computed tokens")
        child.held = child.computed = family.held
        return child

    def _announced(self, request: int, prompt: int, max_new: int, true_new: int) -> Live:
        if index(request) in self._live:
            raise ValueError(f"request {request} is in memory already")
        return self._lengths(prompt, max_new, true_new)

    def _lengths(self, prompt: int, max_new: int, true_new: int) -> Live:
        prompt, max_new = at_least_one("prompt_tokens", prompt), at_least_one("max_new_tokens", max_new)
        true_new = at_least_one("true_new_tokens", true_new)
        if true_new > max_new:
            raise ValueError(f"true_new_tokens is {true_new}, more than max_new_tokens, {max_new}")
        return Live(prompt, prompt + true_new, prompt + max_new)

    def _known(self, request: int) -> Live:
        live = self._live.get(index(request))
        if live is None:
            raise KeyError(f"no request {request}")
        return live

    def _growing(self, request: int, num_tokens: int) -> tuple[Live, int]:
        live = self._known(request)
        held = live.held + at_least_one("num_tokens", num_tokens)
        if held > live.final:
            raise ValueError(f"request {request} would hold {held} tokens, {live.final} were announced")
        return live, held
