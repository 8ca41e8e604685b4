"""Who holds which block of KV memory: pure Python, no torch.

Owns: the pool of physical blocks with its reference counts (`block_pool.py`), the block table of one sequence
(`block_table.py`), the allocator that joins them behind the contract of lab 3 (`block_allocator.py`), and the prefix
cache of lab 5 by hash or by tree (`prefix_cache.py`, `radix_cache.py`, `eviction.py`, all on `published_blocks.py`).
What a scheduler sees of memory is `kv_memory.py`; the engine's own is `kv_manager.py`, with its requests
(`sequence.py`), the way to the host (`swap.py`) and a log to be played (`events.py`). Several sequences on one prompt:
`sharing.py`; any cache of lab 5 in the manager's place: `cache_memory.py`. Beside them the worlds before paging:
contiguous ranges and buddies (`contiguous.py`, `buddy.py`), ways to keep requests in any (`policies.py`,
`paged_blocks.py`, for a scheduler `policy_memory.py`), what they make of memory (`accounting.py`, `occupancy.py`,
`paradox.py`). Knows nothing of models, kernels or schedules; of contents only whether two are equal.
Start with `block_pool.py`, then `kv_manager.py`; the invariants I1 to I8 are named where they are checked.
"""

from reference_impl.memory.accounting import Account
from reference_impl.memory.block_allocator import BlockAllocator
from reference_impl.memory.block_pool import BlockPool
from reference_impl.memory.block_table import BlockTable
from reference_impl.memory.buddy import BuddyAllocator
from reference_impl.memory.contiguous import ContiguousAllocator
from reference_impl.memory.events import EventLog
from reference_impl.memory.eviction import FIFO, LFU, LRU, SLRU, EvictionPolicy
from reference_impl.memory.kv_manager import KVManager
from reference_impl.memory.kv_memory import Demand, ForkingMemory, Grant, KVMemory, PlacedMemory, SwappingMemory
from reference_impl.memory.kv_policy import KVPolicy, Reason, Refusal
from reference_impl.memory.paged_blocks import PagedBlocks
from reference_impl.memory.policies import POLICIES, Sizes
from reference_impl.memory.policy_memory import PolicyMemory
from reference_impl.memory.prefix_cache import PrefixCache
from reference_impl.memory.radix_cache import RadixCache
from reference_impl.memory.swap import Recovery, SwapCost

__all__ = [
    "FIFO",
    "LFU",
    "LRU",
    "POLICIES",
    "SLRU",
    "Account",
    "BlockAllocator",
    "BlockPool",
    "BlockTable",
    "BuddyAllocator",
    "ContiguousAllocator",
    "Demand",
    "EventLog",
    "EvictionPolicy",
    "ForkingMemory",
    "Grant",
    "KVManager",
    "KVMemory",
    "KVPolicy",
    "PagedBlocks",
    "PlacedMemory",
    "PolicyMemory",
    "PrefixCache",
    "RadixCache",
    "Reason",
    "Recovery",
    "Refusal",
    "Sizes",
    "SwapCost",
    "SwappingMemory",
]
