"""What a scheduler and a runner ask of KV memory, whichever way that memory is kept.

Owns: the Protocol `KVMemory`, what is said when asking (`Demand`) and what is answered (`Grant`, or a `Refusal` with
its reason); and what some memories can do besides: swap, fork, and say where each token lies. Knows nothing of queues,
budgets or time. Three implementations stand beside it: `kv_manager.py` (blocks, prefix cache, copy-on-write, swap),
`policy_memory.py` (any way of `policies.py`, and any allocator of lab 3) and `cache_memory.py` (any cache of lab 5), so
that one scheduler serves them all and a comparison exchanges one part.
Every call checks ids, then values, then memory; a refused call changes nothing.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from reference_impl.memory.accounting import Account
from reference_impl.memory.kv_policy import BlockCopies as BlockCopies
from reference_impl.memory.kv_policy import Refusal


@dataclass(frozen=True, slots=True)
class Demand:
    """What is known of a request when it asks for memory.

    num_tokens: its prompt, and after a preemption also what it had made. max_new_tokens: how many more it may make at
    most. true_new_tokens: how many it will make, which only a simulator knows; a memory that looks at it says so.
    token_ids: the ids of its tokens, which the owner may append to; the last may be a guess until it is computed, the
    others never change. None where contents do not matter, and then nothing of this request is ever found again. salt:
    requests share blocks only under one salt.
    """

    request: int
    num_tokens: int
    max_new_tokens: int
    true_new_tokens: int | None = None
    token_ids: array[int] | None = None
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request got.

    num_reused: tokens whose KV was there already (at admission). copies: to be made before the step writes.
    """

    num_reused: int = 0
    copies: BlockCopies = ()


@runtime_checkable
class KVMemory(Protocol):
    """KV memory of `capacity` tokens, as a scheduler sees it."""

    capacity: int

    def never_fits(self, demand: Demand) -> Refusal | None:
        """The refusal that not even an empty memory could spare this request; None if it could be served alone.

        A request that could be served can be served again, however many of its tokens it has made meanwhile.
        """

    def admit(self, demand: Demand, num_tokens: int) -> Grant | Refusal:
        """Take the request in, with slots for what can be reused and for up to `num_tokens` of its tokens behind that.

        Raises: ValueError on a known id, or values below 1. Cost: O(its blocks), and a hash a block where it looks up.
        """

    def grow(self, request: int, num_tokens: int) -> Grant | Refusal:
        """Slots for the first `num_tokens` tokens of the request; fewer than it has slots for changes nothing.

        Raises: KeyError on an unknown id. Cost: O(blocks taken).
        """

    def commit(self, request: int, num_tokens: int) -> None:
        """The KV of the first `num_tokens` tokens is computed: it may be found by others from now on.

        Cumulative. Raises: KeyError on an unknown id, ValueError beyond the slots it has.
        """

    def free(self, request: int) -> None:
        """Forget the request, done or preempted. KeyError on an unknown id. Cost: O(its blocks)."""

    def account(self, wanted: int = 1) -> Account:
        """Where every slot is now; free memory is split by whether it could serve a request of `wanted` tokens."""

    def check_invariants(self) -> None:
        """AssertionError names the invariant and the offender."""


def longest_served(memory: KVMemory, at_most: int) -> int:
    """Tokens, prompt and answer together, of the longest request that `memory` could serve alone; 0 if not even two.

    Less than the capacity where ranges have certain lengths only. Not more than `at_most` tokens are tried.
    Cost: O(log at_most) calls of `never_fits`.
    """

    def refused(tokens: int) -> bool:
        return memory.never_fits(Demand(0, 1, tokens - 1, token_ids=array("i", [0]))) is not None

    # Whoever can be served can be served with less: the first length that is refused ends those that are not.
    first = bisect_left(range(2, at_most + 1), True, key=refused) + 2
    return first - 1 if first > 2 else 0


@runtime_checkable
class PlacedMemory(KVMemory, Protocol):
    """KV memory in `num_blocks` blocks of `block_size` tokens each, that says where every token lies.

    Token t of a request lies in slot `table[t // block_size] * block_size + t % block_size` of its block table. No two
    requests share a slot, except for tokens that are computed: found again, or forked. What is computed stays in its
    slot, but for the copies that are in a `Grant`.
    """

    num_blocks: int
    block_size: int

    def block_table(self, request: int) -> list[int]:
        """Physical block ids in logical order, for every slot the request has; the caller's own copy.

        Raises: KeyError on an unknown id, ValueError on one that is swapped out. Cost: O(its blocks).
        """


@runtime_checkable
class ForkingMemory(KVMemory, Protocol):
    """KV memory in which a request can start with everything that another one has computed."""

    def fork(self, parent: int, demand: Demand) -> Refusal | None:
        """Start the request of `demand` with every slot of `parent`, all of them computed; it takes no memory.

        Raises: KeyError and ValueError on ids as `admit` and `grow`, ValueError on a parent in the middle of a step,
        and on a demand that does not begin with the parent's tokens.
        """


@runtime_checkable
class SwappingMemory(KVMemory, Protocol):
    """KV memory that can move a request to the host and back; it keeps its id meanwhile, and `free` ends it there."""

    def swap_out(self, request: int) -> BlockCopies | Refusal:
        """Move a request to the host: blocks (device, host). Its device blocks are free once they are copied.

        Raises: KeyError on an unknown id, ValueError on one that is swapped out already.
        """

    def swap_in(self, request: int) -> BlockCopies | Refusal:
        """Bring a request back: blocks (host, device); what its tables lead to is as it was before.

        Raises: KeyError on an unknown id, ValueError on one that is not swapped out.
        """
